"""One trial of a study: the runs of one configuration, one seed after the other. It uses neither Optuna nor Ray."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raffm_ray.basics.errors import BadUpdateError, ClientError, UserError, WorkerLostError
from raffm_ray.basics.files import LOCK, in_turn
from raffm_ray.data.metrics import worst
from raffm_ray.reports.comparison_table import MEASURES
from raffm_ray.runs.loop import no_callback
from raffm_ray.runs.recorder import RoundRow
from raffm_ray.runs.simulation import resume, simulate
from raffm_ray.settings.experiment import Experiment

WATCHED: Mapping[str, Callable[[str, RoundRow], float | None]] = {
    "full": lambda metric, row: row.metric,
    "worst_class": lambda metric, row: worst(metric, list(row.class_metrics.values())) if row.class_metrics else None,
}
"""Measures that a run has after every evaluated round too: (metric's name, round) -> value, None of a round without evaluation."""
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
    """How a trial ended. `measures`: of `comparison_table.MEASURES`, a value a seed; `reason`: why it failed, else ""."""

    measures: Mapping[str, list[float | None]] = field(default_factory=dict)
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

    measures: dict[str, list[float | None]] = {name: [] for name in MEASURES}
    for position, experiment in enumerate(work.experiments):
        folder = work.folder / f"seed-{experiment.seed}"
        watch = on_round if position == 0 else no_callback
        try:
            if folder.is_dir():
                with in_turn(folder / LOCK):  # a trial of before an interruption may not have let go of it yet
                    pass
            begun = (folder / "config.yaml").is_file()
            summary = resume(folder, on_round=watch) if begun else simulate(experiment, folder, on_round=watch)
        except _PrunedError:
            return Outcome(pruned=True)
        except (UserError, ClientError, BadUpdateError, WorkerLostError) as error:
            return Outcome(reason=str(error))
        for name, value in MEASURES.items():
            measures[name].append(value(summary))
    return Outcome(measures)
