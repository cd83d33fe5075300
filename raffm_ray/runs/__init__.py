"""One run: the loop over rounds, its records, checkpoints and resuming.

Open to other packages:

- `simulation`: starts and resumes whole runs
- `loop`: the loop over rounds
- `evaluation`: measures subnetworks on held-out examples
- `recorder`: writes Parquet records, the model and `summary.json`
- `reader`: reads a run's folder
- `made_with`: command, versions and hardware of every start
- `resuming`: checks that a run may go on
- `checkpoint`: writes, reads and removes checkpoints
- `mirror`: copies a run's folder to an object store
- `locations`: folders and URLs of runs
- `progress`: the progress bar
- `callbacks`: who is told of a run
- `client_states`: what clients keep, as files
- `rounds`: one round on a pool
- `records`: the Parquet files of the records

Used inside only:

- `extending`: makes a longer run of one that began with fewer rounds
- `summary`: computes rows of the records and the content of `summary.json`
- `hints`: what is said where a run learns nothing, or slowly
- `client_metrics`: what every client gets, on its own held-out examples
- `loggers`: what is told to TensorBoard, MLflow and others
- `writing`: how files are written beside the next round

Imports `basics`, `settings`, `axes`, `data`, `models`, `subnetworks`, `clients`, `server`, `pool`, `preparation`.

Start reading at `simulation`.
"""

__all__ = [
    "callbacks",
    "checkpoint",
    "client_states",
    "evaluation",
    "locations",
    "loop",
    "made_with",
    "mirror",
    "progress",
    "reader",
    "recorder",
    "records",
    "resuming",
    "rounds",
    "simulation",
]
