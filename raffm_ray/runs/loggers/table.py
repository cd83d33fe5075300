"""Loggers by name, and which of them a run has."""

from dataclasses import dataclass
from importlib.util import find_spec

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.registry import Table
from raffm_ray.runs.callbacks import Opener
from raffm_ray.runs.loggers.csv_file import write_csv
from raffm_ray.runs.loggers.mlflow_run import log_to_mlflow
from raffm_ray.runs.loggers.tensorboard_events import write_events
from raffm_ray.runs.loggers.wandb_run import log_to_wandb
from raffm_ray.settings.experiment import Experiment


@dataclass(frozen=True)
class Logger:
    """`opened`: given a run that begins or goes on, returns what is told of it; `library`: that it imports, "" for none; `extra`: of this
    project that brings the library, "" where none does."""

    opened: Opener
    library: str = ""
    extra: str = ""


LOGGERS: Table[Logger] = Table(
    "logger",
    {
        "tensorboard": Logger(write_events, "tensorboard"),
        "csv": Logger(write_csv),
        "mlflow": Logger(log_to_mlflow, "mlflow", "mlflow"),
        "wandb": Logger(log_to_wandb, "wandb", "wandb"),
    },
)
"""By the names in an experiment's `loggers`."""


def chosen_loggers(experiment: Experiment) -> dict[str, Opener]:
    """An experiment's loggers by name; none of their libraries is imported. Raises UserError for a name that is not known, and for a
    library that is not installed."""
    found = {}
    for name in experiment.loggers:
        row = LOGGERS.chosen(name, experiment.plugin_settings, "loggers")
        if row.library and find_spec(row.library) is None:
            wanted = f"'raffm-ray[{row.extra}]'" if row.extra else row.library
            raise UserError(f"loggers: {name} needs the library {row.library}, which is not installed: pip install {wanted}")
        found[name] = row.opened
    return found
