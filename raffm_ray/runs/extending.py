"""Extending a run: more rounds than it began with, where one of so many rounds from the beginning would have come the same way."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import floor
from pathlib import Path
from shutil import rmtree
from typing import Any

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.files import read_whole, sync, write_atomically
from raffm_ray.runs import checkpoint
from raffm_ray.runs.reader import SUMMARY
from raffm_ray.runs.recorder import write_json
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.server.early_stopping import is_evaluated
from raffm_ray.server.ranking import next_ranking
from raffm_ray.server.rounds import learning_rate
from raffm_ray.server.state import ServerState, setup_strategy
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import dump

EXTENSIONS = "extensions.json"
MAY_CHANGE = ("rounds", "salience.until")
"""Settings that an extension may change. The second is a fraction of the first: another one may mean the same round."""
MADE_AT_THE_END = (
    SUMMARY,
    "report.html",
    "report.png",
    "shares.png",
    "profile.png",
    "units.png",
    "units.parquet",
    "clients.png",
    "participation.png",
)
"""The summary first: without it the rest is of nobody's."""


@dataclass(frozen=True)
class Extension:
    """That a run of `from_rounds` became one of `to_rounds`, and went on after round `after_round`. `until`: what `salience.until` was
    before; `time`: when, UTC."""

    from_rounds: int
    to_rounds: int
    after_round: int
    until: float
    time: str


def is_extended(begun: Experiment, experiment: Experiment) -> bool:
    """Whether an experiment is another one, longer or not, than that in a run's folder."""
    return (begun.rounds, begun.salience.until) != (experiment.rounds, experiment.salience.until)


def recorded_extensions(folder: Path, experiment: Experiment) -> list[Extension]:
    """What was recorded of the extensions of a run that is of these rounds now, in order: one that was prepared and never came into force
    does not count. Raises UserError for a file that is damaged."""
    path = folder / EXTENSIONS
    if not path.is_file():
        return []
    try:
        found = [Extension(**one) for one in json.loads(read_whole(path))]
        return [one for one in found if 0 < one.from_rounds < one.to_rounds <= experiment.rounds and 0 <= one.until <= 1]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a record of extensions: {in_short(error)}") from None


def earlier_experiments(folder: Path, experiment: Experiment) -> list[Experiment]:
    """The experiment as it was before each of its extensions."""
    return [_with(experiment, one.from_rounds, one.until) for one in recorded_extensions(folder, experiment)]


def _with(experiment: Experiment, rounds: int, until: float) -> Experiment:
    salience = experiment.salience.model_copy(update={"until": until})
    return experiment.model_copy(update={"rounds": rounds, "salience": salience})


def check_longer(begun: Experiment, experiment: Experiment, folder: Path) -> None:
    """Raises UserError where the experiment has fewer rounds than the run in a folder, or another `salience.until` and no more rounds."""
    if experiment.rounds < begun.rounds:
        raise UserError(
            f"resume: --rounds {experiment.rounds}: {folder} is a run of {begun.rounds}; only more rounds are possible"
        )
    if experiment.rounds == begun.rounds:
        raise UserError(
            f"resume: --salience.until {experiment.salience.until}: {folder} has {begun.salience.until}, and only with more rounds it may be "
            f"another, got {experiment.rounds} rounds"
        )


def _rates(experiment: Experiment, rows: Sequence[RoundRow]) -> list[float]:
    return [learning_rate(experiment, row.round) for row in rows if row.round]


def _rankings(experiment: Experiment, rows: Sequence[RoundRow]) -> list[int | None]:
    """What the next ranking was, before every round and once it had begun."""
    if not setup_strategy(experiment).salience:
        return []
    found, ranked_at = list[int | None](), 0
    for row in rows:
        if row.round:
            found.append(next_ranking(experiment, row.round - 1, ranked_at))
            ranked_at = row.round - 1 if row.ranked else ranked_at
            found.append(next_ranking(experiment, row.round - 1, ranked_at))
    return found


def _evaluations(experiment: Experiment, rows: Sequence[RoundRow]) -> list[bool]:
    return [is_evaluated(experiment, row.round) for row in rows]


def _same_until(begun: Experiment, rounds: int) -> float:
    """The shortest fraction of so many rounds that ends the ranking after the round after which it ended before."""
    last = floor(begun.salience.until * begun.rounds)
    near = (round(at / rounds, digits) for digits in range(1, 18) for at in (last, last + 0.5))
    return next(until for until in near if floor(until * rounds) == last)


def _rate_remedy(begun: Experiment, experiment: Experiment) -> str:
    return f"local.schedule would have to be constant, and is {begun.local.schedule}"


def _ranking_remedy(begun: Experiment, experiment: Experiment) -> str:
    until = _same_until(begun, experiment.rounds)
    return (
        f"salience.until would have to be {until}, and is {experiment.salience.until} "
        f"(--salience.until {until} ends the ranking after round {floor(until * experiment.rounds)}, as before)"
    )


def _evaluation_remedy(begun: Experiment, experiment: Experiment) -> str:
    return f"evaluation.every would have to divide {begun.rounds}, and is {begun.evaluation.every}"


@dataclass(frozen=True)
class Scheduled:
    """A setting by which something is spread over all rounds: what it led to in the rounds that are done, and what it would have to be."""

    values: Callable[[Experiment, Sequence[RoundRow]], Sequence[Any]]
    remedy: Callable[[Experiment, Experiment], str]


SCHEDULED: Mapping[str, Scheduled] = {
    "local.schedule": Scheduled(_rates, _rate_remedy),
    "salience.until": Scheduled(_rankings, _ranking_remedy),
    "evaluation.every": Scheduled(_evaluations, _evaluation_remedy),
}
"""Everything that reads `rounds` in the course of a run, but for its end."""


def differing(begun: Experiment, experiment: Experiment, rows: Sequence[RoundRow]) -> list[str]:
    """What would have to be otherwise for the rounds that are done to be those of the longer experiment, too; nothing where they are."""
    return [
        one.remedy(begun, experiment) for one in SCHEDULED.values() if one.values(begun, rows) != one.values(experiment, rows)
    ]


def check_goes_on(state: ServerState, experiment: Experiment, folder: Path) -> None:
    """Raises UserError where early stopping leaves no more rounds to run."""
    patience = experiment.evaluation.patience
    if patience is not None and state.best is not None and state.best.since >= patience:
        raise UserError(
            f"{folder}: cannot be extended: it stopped after round {state.round} by evaluation.patience {patience}, and would not go on"
        )


def extend(folder: Path, begun: Experiment, experiment: Experiment, after_round: int, save: Callable[[], None]) -> None:
    """Makes of a folder's run, finished or not, a longer one that is not finished, after a round.

    `save`: copies the folder to where it is mirrored. Whenever this is interrupted, the folder is a run that can be resumed: of the old
    rounds until `config.yaml` is written.
    """
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        extension = Extension(begun.rounds, experiment.rounds, after_round, begun.salience.until, now)
        known = [*recorded_extensions(folder, begun), extension]
        write_json(folder / EXTENSIONS, [asdict(one) for one in known])
        for name in MADE_AT_THE_END:
            (folder / name).unlink(missing_ok=True)
        rmtree(folder / "checkpoints" / "final", ignore_errors=True)
        checkpoint.remove(folder / "checkpoints", after=after_round)
        save()
        write_atomically(folder / "config.yaml", dump(_with(begun, experiment.rounds, experiment.salience.until)).encode())
        sync([folder / "config.yaml", folder])
    except OSError as error:
        raise UserError(f"{folder}: cannot be extended: {error.strerror}") from None
