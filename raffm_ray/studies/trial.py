"""One trial of a study: the runs of one configuration, one seed after the other, and what they are measured by: metrics on the validation
part, and costs. The held-out part is for what is reported. It uses neither Optuna nor Ray."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raffm_ray.basics.errors import BadUpdateError, ClientError, UserError, WorkerLostError
from raffm_ray.basics.files import LOCK, in_turn
from raffm_ray.data.metrics import worst
from raffm_ray.reports.comparisons.content import MEASURES
from raffm_ray.runs import checkpoint
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.runs.simulation import resume, simulate
from raffm_ray.settings.experiment import Experiment

Measure = Callable[[Mapping[str, Any]], float | None]

HELD_OUT: Mapping[str, Measure] = {name: MEASURES[name] for name in ("full_model", "worst_device_type", "curve_area")}
"""The task's metric on the held-out part, by name; better higher or lower as the metric is. All other measures are costs."""

CHOSEN_BY: Mapping[str, Measure] = {
    **MEASURES,
    "full_model": lambda summary: summary["validation"]["full_model"],
    "worst_device_type": lambda summary: summary["validation"]["worst_device_type"]["metric"],
    "curve_area": lambda summary: summary["validation_curve_area"],
}
"""What objectives and constraints rest on: name -> its value in a run's summary."""

WATCHED: Mapping[str, Callable[[str, RoundRow], float | None]] = {
    "full_model": lambda metric, row: row.validation_metric,
    "worst_device_type": lambda metric, row: (
        worst(metric, list(row.validation_device_type_metrics.values())) if row.validation_device_type_metrics else None
    ),
}
"""Measures that a pruner is told after every evaluated round: (metric's name, round) -> value, None of a round without evaluation."""

Report = Callable[[int, float], bool]
"""(round, value) -> whether the trial is to stop."""


@dataclass(frozen=True)
class TrialTask:
    """What a trial is to do. `experiments`: the same under every seed; `watched`: of `WATCHED`, what is reported of the first seed's
    rounds, None for nothing."""

    number: int
    experiments: Sequence[Experiment]
    folder: Path
    metric: str
    watched: str | None


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `measures`: of `CHOSEN_BY`, a value a seed; `held_out`: the same of `HELD_OUT`; `hints`: by seed, what its run says of itself;
    `reason`: why it failed, else ""."""

    measures: Mapping[str, list[float | None]] = field(default_factory=dict)
    held_out: Mapping[str, list[float | None]] = field(default_factory=dict)
    hints: Sequence[Sequence[str]] = ()
    reason: str = ""
    pruned: bool = False


class _PrunedError(Exception):
    pass


def run_trial(work: TrialTask, report: Report) -> Outcome:
    """Runs each seed in a folder `seed-<n>`, or goes on with the run that is there. A run that cannot work or is stopped is an outcome."""

    def on_round(row: RoundRow) -> None:
        value = WATCHED[work.watched](work.metric, row) if work.watched and row.round else None
        if value is not None and report(row.round, value):
            raise _PrunedError

    measures: dict[str, list[float | None]] = {name: [] for name in CHOSEN_BY}
    held_out: dict[str, list[float | None]] = {name: [] for name in HELD_OUT}
    hints: list[list[str]] = []
    for position, experiment in enumerate(work.experiments):
        folder = work.folder / f"seed-{experiment.seed}"
        watch = on_round if position == 0 else None
        try:
            if folder.is_dir():
                with in_turn(folder / LOCK):  # a trial of before an interruption may not have let go of it yet
                    pass
            begun = (folder / "config.yaml").is_file()
            summary = resume(folder, on_round=watch) if begun else simulate(experiment, folder, on_round=watch)
            checkpoint.remove(folder / "checkpoints")  # of many runs, each too large to keep
        except _PrunedError:
            return Outcome(pruned=True)
        except (UserError, ClientError, BadUpdateError, WorkerLostError) as error:
            return Outcome(reason=str(error))
        hints.append(summary["hints"])
        for found, asked in ((measures, CHOSEN_BY), (held_out, HELD_OUT)):
            for name, value in asked.items():
                found[name].append(value(summary))
    return Outcome(measures=measures, held_out=held_out, hints=hints)
