"""Everything before round 1: the experiment is checked and loaded, and the starting model is made.

Open to other packages:

- `baselines`: the strategies that an experiment's own is compared with
- `client_parts`: which of a client's examples it trains on, and which measure it
- `defaults`: learning rates and epochs that the user leaves open
- `equal_resources`: budgets and rounds that hold a resource equal over strategies
- `pinning`: data and models from the hub at one commit
- `prepare`: finds every mistake before training starts
- `pretraining`: trains the starting model on public examples
- `starting_parameters`: the parameters of round 1
- `public_calibration`: salience statistics of public examples
- `run_forecast`: memory and time of a run, expected and measured
- `pace_search`: how fast the residual stream is cut, by public examples

Used inside only:

- `head_training`: trains a new head on features of a model that stays as it is
- `model_for_task`: the model with the head that the data needs
- `memory_forecast`: peaks of the driver and of a worker
- `time_forecast`: seconds of the rounds, from a few timed steps

Imports `basics`, `settings`, `axes`, `data`, `models`, `subnetworks`, `devices`, `clients`, `server`, `pool`.

Start reading at `prepare`.
"""

__all__ = [
    "baselines",
    "client_parts",
    "defaults",
    "equal_resources",
    "pace_search",
    "pinning",
    "prepare",
    "pretraining",
    "public_calibration",
    "run_forecast",
    "starting_parameters",
]
