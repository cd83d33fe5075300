"""raffm_ray: federated fine-tuning of one foundation model on devices that are not alike, simulated on Ray.

Everything that the commands do, from Python:

    import raffm_ray

    experiment = raffm_ray.load("experiments/digits.yaml").with_settings(rounds=20)
    run = raffm_ray.run(experiment, "runs/mine", on_round=lambda row: print(row.round, row.metric))
    run.summary["full_model"], run.clients.groupby("device")["bytes_up"].sum()
    small = run.model(budget={"layer_params": 0.35})

`Experiment` and its groups of settings, such as `TaskSettings`, are classes with keyword arguments; `ModelSettings.of` takes a fitted model.
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
    from raffm_ray.deployment.finished_run import Run, run
    from raffm_ray.deployment.model_folder import ExportFormats
    from raffm_ray.deployment.supernet import open_supernet
    from raffm_ray.devices.availability import AVAILABILITY
    from raffm_ray.models.architecture import FAMILIES
    from raffm_ray.models.objectives import OBJECTIVES
    from raffm_ray.reports.comparisons.report import write_comparison
    from raffm_ray.reports.run_report import write_report
    from raffm_ray.runs.callbacks import Callback
    from raffm_ray.runs.loggers.table import LOGGERS
    from raffm_ray.runs.simulation import resume, simulate
    from raffm_ray.server.adapter_rules.rules import ADAPTER_RULES
    from raffm_ray.server.aggregation import AGGREGATION_RULES
    from raffm_ray.server.optimizers import SERVER_OPTIMIZERS
    from raffm_ray.server.selection.table import SELECTIONS
    from raffm_ray.server.strategies import STRATEGIES
    from raffm_ray.settings.adapters import AdapterSettings
    from raffm_ray.settings.clients import ClientSettings
    from raffm_ray.settings.compression import ExtractionSettings, FleetSettings, SalienceSettings
    from raffm_ray.settings.evaluation import EvaluationSettings
    from raffm_ray.settings.execution import CheckpointSettings, PlacementSettings, PoolSettings
    from raffm_ray.settings.experiment import ClockSettings, Experiment, LocalSettings, ServerSettings
    from raffm_ray.settings.loading import load, parse
    from raffm_ray.settings.plugins import PluginSettings
    from raffm_ray.settings.strategy import BaselineSettings, StrategySettings
    from raffm_ray.settings.task_and_model import ModelSettings, PretrainSettings, TaskSettings
    from raffm_ray.studies.comparison import compare
    from raffm_ray.studies.study import run_study
    from raffm_ray.studies.study_settings import Study, load_study
    from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS
    from raffm_ray.subnetworks.salience import METRICS as SALIENCE

    adapter_rule = ADAPTER_RULES.add
    aggregation, availability, client_optimizer = AGGREGATION_RULES.add, AVAILABILITY.add, OPTIMIZERS.add
    client_update, logger = CLIENT_UPDATES.add, LOGGERS.add
    family, metric, objective, partition = FAMILIES.add, METRICS.add, OBJECTIVES.add, PARTITIONS.add
    plugin_settings, salience, server_optimizer = PLUGIN_SETTINGS.add, SALIENCE.add, SERVER_OPTIMIZERS.add
    selection, strategy, task = SELECTIONS.add, STRATEGIES.add, TASKS.add

_HOMES = {
    "AdapterSettings": "settings.adapters",
    "BaselineSettings": "settings.strategy",
    "Callback": "runs.callbacks",
    "CheckpointSettings": "settings.execution",
    "ClientSettings": "settings.clients",
    "ClockSettings": "settings.experiment",
    "EvaluationSettings": "settings.evaluation",
    "Experiment": "settings.experiment",
    "ExportFormats": "deployment.model_folder",
    "ExtractionSettings": "settings.compression",
    "FleetSettings": "settings.compression",
    "LocalSettings": "settings.experiment",
    "ModelSettings": "settings.task_and_model",
    "PlacementSettings": "settings.execution",
    "PluginSettings": "settings.plugins",
    "PoolSettings": "settings.execution",
    "PretrainSettings": "settings.task_and_model",
    "Run": "deployment.finished_run",
    "SalienceSettings": "settings.compression",
    "ServerSettings": "settings.experiment",
    "StrategySettings": "settings.strategy",
    "Study": "studies.study_settings",
    "TaskSettings": "settings.task_and_model",
    "UserError": "basics.errors",
    "compare": "studies.comparison",
    "deploy": "deployment.deploy",
    "load": "settings.loading",
    "load_study": "studies.study_settings",
    "open_supernet": "deployment.supernet",
    "parse": "settings.loading",
    "resume": "runs.simulation",
    "run": "deployment.finished_run",
    "run_study": "studies.study",
    "simulate": "runs.simulation",
    "write_comparison": "reports.comparisons.report",
    "write_report": "reports.run_report",
}
"""Public name -> its module, imported when it is first used: a command that needs no torch does not wait for it."""

_DECORATORS = {
    "adapter_rule": ("server.adapter_rules.rules", "ADAPTER_RULES"),
    "aggregation": ("server.aggregation", "AGGREGATION_RULES"),
    "availability": ("devices.availability", "AVAILABILITY"),
    "client_optimizer": ("subnetworks.client_optimizers", "OPTIMIZERS"),
    "client_update": ("clients.client_updates", "CLIENT_UPDATES"),
    "family": ("models.architecture", "FAMILIES"),
    "logger": ("runs.loggers.table", "LOGGERS"),
    "metric": ("data.metrics", "METRICS"),
    "objective": ("models.objectives", "OBJECTIVES"),
    "partition": ("data.partition", "PARTITIONS"),
    "plugin_settings": ("basics.registry", "PLUGIN_SETTINGS"),
    "salience": ("subnetworks.salience", "METRICS"),
    "selection": ("server.selection.table", "SELECTIONS"),
    "server_optimizer": ("server.optimizers", "SERVER_OPTIMIZERS"),
    "strategy": ("server.strategies", "STRATEGIES"),
    "task": ("data.tasks", "TASKS"),
}
"""Decorator -> the table that it adds rows to, and the module of that."""

_RENAMED = {"Forms": "ExportFormats"}

__all__ = [
    "AdapterSettings",
    "BaselineSettings",
    "Callback",
    "CheckpointSettings",
    "ClientSettings",
    "ClockSettings",
    "EvaluationSettings",
    "Experiment",
    "ExportFormats",
    "ExtractionSettings",
    "FleetSettings",
    "LocalSettings",
    "ModelSettings",
    "PlacementSettings",
    "PluginSettings",
    "PoolSettings",
    "PretrainSettings",
    "Run",
    "SalienceSettings",
    "ServerSettings",
    "StrategySettings",
    "Study",
    "TaskSettings",
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
    "logger",
    "metric",
    "objective",
    "open_supernet",
    "parse",
    "partition",
    "plugin_settings",
    "resume",
    "run",
    "run_study",
    "salience",
    "selection",
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
