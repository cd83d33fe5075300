"""raffm_ray: federated fine-tuning of one foundation model on devices that are not alike, simulated on Ray.

Everything that the commands do, from Python:

    import raffm_ray

    experiment = raffm_ray.load("experiments/digits.yaml", ["--rounds", "20"])
    summary = raffm_ray.simulate(experiment, "runs/mine", on_round=lambda row: print(row.round, row.metric))
    raffm_ray.write_report("runs/mine")
    raffm_ray.deploy("runs/mine", "small", {"params": 0.35})
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raffm_ray.registration import tell_transformers

__version__ = "0.1.0"

if TYPE_CHECKING:
    from raffm_ray.comparison import compare
    from raffm_ray.config import load, parse
    from raffm_ray.deploying import deploy
    from raffm_ray.deployment import Forms
    from raffm_ray.elastic import open_supernet
    from raffm_ray.errors import UserError
    from raffm_ray.report import write_report
    from raffm_ray.settings import Experiment
    from raffm_ray.several import write_comparison
    from raffm_ray.simulation import resume, simulate
    from raffm_ray.study import run_study
    from raffm_ray.study_settings import Study, load_study

_HOMES = {
    "Experiment": "settings", "Forms": "deployment", "Study": "study_settings", "UserError": "errors", "compare": "comparison", "deploy": "deploying", "load": "config",
    "load_study": "study_settings", "open_supernet": "elastic", "parse": "config", "resume": "simulation", "run_study": "study", "simulate": "simulation",
    "write_comparison": "several", "write_report": "report",
}  # fmt: skip
"""Public name -> its module, imported when it is first used: a command that needs no torch does not wait for it."""

__all__ = [
    "Experiment", "Forms", "Study", "UserError", "__version__", "compare", "deploy", "load", "load_study", "open_supernet", "parse", "resume", "run_study", "simulate",
    "write_comparison", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raffm_ray' has no attribute {name!r}")
    return getattr(import_module(f"raffm_ray.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


tell_transformers()
