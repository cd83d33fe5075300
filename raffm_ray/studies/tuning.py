"""The learning rate of every strategy of a comparison, by as many trials for each, on the validation part."""

from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from raffm_ray.preparation.baselines import alone
from raffm_ray.settings.experiment import Experiment
from raffm_ray.studies.checked_study import check_study
from raffm_ray.studies.study import run_study
from raffm_ray.studies.study_settings import Study

RATE = "local.learning_rate"
SPREAD = 10.0
"""Rates are searched from a tenth of the experiment's to ten times as much, on a logarithmic scale."""
FIRST = (1.0, 3.0, 1 / 3)
"""What the first trials' rates are, in parts of the experiment's: the same ones for every strategy."""


class Tuned(NamedTuple):
    """`experiment`: with the rates that were found, and the validation part that they were chosen on; `rates`: by strategy."""

    experiment: Experiment
    rates: dict[str, float]


def _study(base: Experiment, trials: int) -> Study:
    rate, objective = base.local.learning_rate, "curve_area" if base.evaluation.sizes else "full_model"
    assert rate is not None  # preparing chooses one
    return Study(
        name=base.name,
        experiment=base.model_dump(mode="json"),
        space={RATE: {"low": rate / SPREAD, "high": rate * SPREAD, "log": True}},
        objectives=(objective,),
        trials=trials,
        seeds=(base.seed,),
        enqueue=tuple({RATE: rate * part} for part in FIRST[:trials]),
    )


def tuned(experiment: Experiment, trials: int, folder: Path, console: Console) -> Tuned:
    """Runs a study of the learning rate for the experiment's strategy and each of its baselines, in `folder`/<strategy>; the first trials have
    the rates of `FIRST`. Raises UserError as `run_study`."""
    checked = check_study(_study(experiment, trials), experiment)
    experiment = experiment.model_copy(update={"task": checked.base.task})
    for line in checked.notes:
        console.print(f"note: {line}", highlight=False, soft_wrap=True)
    rates: dict[str, float] = {}
    for entry in (None, *experiment.baselines):
        name, base = entry.shown if entry else experiment.strategy.name, alone(experiment, entry)
        console.print(f"compare: {trials} trials of the learning rate of {name}", highlight=False)
        content = run_study(_study(base, trials), base, folder / name.replace(" ", "-"), console)
        best = next(row for row in content["trials"] if row["number"] == content["best"])
        rates[name] = float(best["settings"][RATE])
    own = experiment.local.model_copy(update={"learning_rate": rates[experiment.strategy.name]})
    baselines = tuple(
        one.model_copy(update={"local": {**one.local, "learning_rate": rates[one.shown]}}) for one in experiment.baselines
    )
    return Tuned(experiment.model_copy(update={"local": own, "baselines": baselines}), rates)
