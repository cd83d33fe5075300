"""Loggers: what is told of a run in the form of one library, chosen by `loggers`.

Used inside `runs` only:

- `table`: all loggers by name
- `content`: numbers and settings that they are told
- `tensorboard_events`: events for TensorBoard
- `csv_file`: rounds as one CSV file
- `mlflow_run`: a run of MLflow
- `wandb_run`: a run of Weights & Biases
- `telemetry`: rounds as Prometheus metrics, chosen by `pool.metrics`

A library is imported where its logger begins, and never otherwise.

Start reading at `table`.
"""

__all__ = ["table"]
