"""raffm_ray: federated fine-tuning of one foundation model on devices that are not alike, simulated on Ray.

Everything that the commands do, from Python:

    import raffm_ray

    experiment = raffm_ray.load("experiments/digits.yaml", ["--rounds", "20"])
    summary = raffm_ray.simulate(experiment, "runs/mine", on_round=lambda row: print(row.round, row.metric))
    raffm_ray.write_report("runs/mine")
    raffm_ray.deploy("runs/mine", "small", {"layer_params": 0.35})

Decorators add to it, for example `@raffm_ray.strategy("mine")`; a file with such functions is a plug-in of an experiment.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raffm_ray.basics.cache import lend_cache
from raffm_ray.basics.version import __version__
from raffm_ray.subnetworks.transformers_registration import tell_transformers

if TYPE_CHECKING:
    from raffm_ray.basics.errors import UserError
    from raffm_ray.basics.registry import PLUGIN_SETTINGS
    from raffm_ray.clients.client_updates import CLIENT_UPDATES
    from raffm_ray.data.metrics import METRICS
    from raffm_ray.data.partition import PARTITIONS
    from raffm_ray.data.tasks import TASKS
    from raffm_ray.deployment.deploy import deploy
    from raffm_ray.deployment.model_folder import ExportFormats
    from raffm_ray.deployment.supernet import open_supernet
    from raffm_ray.devices.availability import AVAILABILITY
    from raffm_ray.models.architecture import FAMILIES
    from raffm_ray.models.objectives import OBJECTIVES
    from raffm_ray.reports.multi_run_report import write_comparison
    from raffm_ray.reports.run_report import write_report
    from raffm_ray.runs.simulation import resume, simulate
    from raffm_ray.server.aggregation import AGGREGATION_RULES
    from raffm_ray.server.optimizers import SERVER_OPTIMIZERS
    from raffm_ray.server.strategies import STRATEGIES
    from raffm_ray.settings.experiment import Experiment
    from raffm_ray.settings.loading import load, parse
    from raffm_ray.studies.comparison import compare
    from raffm_ray.studies.study import run_study
    from raffm_ray.studies.study_settings import Study, load_study
    from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS
    from raffm_ray.subnetworks.salience import METRICS as SALIENCE

    aggregation, availability, client_optimizer = AGGREGATION_RULES.add, AVAILABILITY.add, OPTIMIZERS.add
    client_update = CLIENT_UPDATES.add
    family, metric, objective, partition = FAMILIES.add, METRICS.add, OBJECTIVES.add, PARTITIONS.add
    plugin_settings, salience, server_optimizer = PLUGIN_SETTINGS.add, SALIENCE.add, SERVER_OPTIMIZERS.add
    strategy, task = STRATEGIES.add, TASKS.add

_HOMES = {
    "Experiment": "settings.experiment",
    "ExportFormats": "deployment.model_folder",
    "Study": "studies.study_settings",
    "UserError": "basics.errors",
    "compare": "studies.comparison",
    "deploy": "deployment.deploy",
    "load": "settings.loading",
    "load_study": "studies.study_settings",
    "open_supernet": "deployment.supernet",
    "parse": "settings.loading",
    "resume": "runs.simulation",
    "run_study": "studies.study",
    "simulate": "runs.simulation",
    "write_comparison": "reports.multi_run_report",
    "write_report": "reports.run_report",
}
"""Public name -> its module, imported when it is first used: a command that needs no torch does not wait for it."""

_DECORATORS = {
    "aggregation": ("server.aggregation", "AGGREGATION_RULES"),
    "availability": ("devices.availability", "AVAILABILITY"),
    "client_optimizer": ("subnetworks.client_optimizers", "OPTIMIZERS"),
    "client_update": ("clients.client_updates", "CLIENT_UPDATES"),
    "family": ("models.architecture", "FAMILIES"),
    "metric": ("data.metrics", "METRICS"),
    "objective": ("models.objectives", "OBJECTIVES"),
    "partition": ("data.partition", "PARTITIONS"),
    "plugin_settings": ("basics.registry", "PLUGIN_SETTINGS"),
    "salience": ("subnetworks.salience", "METRICS"),
    "server_optimizer": ("server.optimizers", "SERVER_OPTIMIZERS"),
    "strategy": ("server.strategies", "STRATEGIES"),
    "task": ("data.tasks", "TASKS"),
}
"""Decorator -> the table that it adds rows to, and the module of that."""

_RENAMED = {"Forms": "ExportFormats"}

__all__ = [
    "Experiment",
    "ExportFormats",
    "Study",
    "UserError",
    "__version__",
    "aggregation",
    "availability",
    "client_optimizer",
    "client_update",
    "compare",
    "deploy",
    "family",
    "load",
    "load_study",
    "metric",
    "objective",
    "open_supernet",
    "parse",
    "partition",
    "plugin_settings",
    "resume",
    "run_study",
    "salience",
    "server_optimizer",
    "simulate",
    "strategy",
    "task",
    "write_comparison",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _DECORATORS:
        home, table = _DECORATORS[name]
        return getattr(import_module(f"raffm_ray.{home}"), table).add
    if name not in _HOMES:
        told = f"; it is now {_RENAMED[name]!r}" if name in _RENAMED else ""
        raise AttributeError(f"module 'raffm_ray' has no attribute {name!r}{told}")
    try:
        return getattr(import_module(f"raffm_ray.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"raffm_ray.{name}: {error}: install raffm-ray with all that it depends on", name=error.name
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_DECORATORS})


lend_cache()
tell_transformers()
