"""Who is told of a run: a user's callbacks, whose exceptions end it, and loggers, which never do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from warnings import warn

from rich.console import Console

from raffm_ray.basics.errors import in_short
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.settings.experiment import Experiment


@dataclass(frozen=True)
class StartedRun:
    """A run that begins or goes on. `folder`: where it is written; `experiment`: all of its settings; `rounds`: those that are recorded
    already, none of a new run."""

    folder: Path
    experiment: Experiment
    rounds: tuple[RoundRow, ...] = ()


def ignore(_: Any) -> None:
    """Does nothing."""


@dataclass(frozen=True)
class Callback:
    """Functions that are told of a run; each may be left out.

    `start`: once, before the first round that is still to do; `round`: of every round, 0 included, once it is recorded, with its
    evaluation if it has one; `evaluation`: after that, of rounds that have one; `end`: of the summary, once everything is written,
    baselines and report too; `interrupted`: of the exception, where the run does not come to its end.

    What one of them raises ends the run, which can be resumed; rounds that were recorded before are not told again. `interrupted` must
    not raise.

    >>> import raffm_ray
    >>> metrics = []
    >>> callback = raffm_ray.Callback(evaluation=lambda row: metrics.append(row.metric))
    """

    start: Callable[[StartedRun], object] = ignore
    round: Callable[[RoundRow], object] = ignore
    evaluation: Callable[[RoundRow], object] = ignore
    end: Callable[[dict[str, Any]], object] = ignore
    interrupted: Callable[[BaseException], object] = ignore


OnRound = Callable[[RoundRow], object]
"""What is told of every round, as by `Callback.round`."""
Report = Callable[[Path], object]
"""Writes the report of a finished run into its folder."""
Opener = Callable[[StartedRun], Callback]
"""What a logger is: given the run, it returns what is told of it."""


@dataclass
class Listeners:
    """All who are told of the run of one strategy. `loggers`: by name; one that fails is told nothing more, which `tell` says once."""

    callbacks: Sequence[Callback] = ()
    loggers: Mapping[str, Opener] = field(default_factory=dict)
    tell: Callable[[str], object] = warn
    started: bool = False
    _open: dict[str, Callback] = field(default_factory=dict)

    def start(self, run: StartedRun) -> None:
        """Opens the loggers, and tells of the start."""
        self.started = True
        for name, opener in self.loggers.items():
            with self._kept_from_the_run(name):
                self._open[name] = _checked(opener(run))
        self._tell_all("start", run)

    def round(self, row: RoundRow) -> None:
        """Tells of a round that is recorded."""
        self._tell_all("round", row)
        if row.metric is not None:
            self._tell_all("evaluation", row)

    def end(self, summary: Mapping[str, Any]) -> None:
        """Tells of the end."""
        self._tell_all("end", summary)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the run: where it does not come to its end, they are told so."""
        try:
            yield
        except BaseException as error:
            if self.started:
                self._tell_all("interrupted", error)
            raise

    def _tell_all(self, event: Literal["start", "round", "evaluation", "end", "interrupted"], told: Any) -> None:
        for name, logger in list(self._open.items()):
            with self._kept_from_the_run(name):
                # A copy: what a logger does to it is no part of the run.
                getattr(logger, event)(deepcopy(told) if event in ("round", "evaluation", "end") else told)
        for one in self.callbacks:
            getattr(one, event)(told)

    @contextmanager
    def _kept_from_the_run(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            told = f"{type(error).__name__}: {in_short(error)}"
            self.tell(f"note: loggers: {name} failed, and is told nothing more of this run, which goes on: {told}")


def told_of_failures(console: Console) -> Callable[[str], object]:
    """What tells of a logger that failed: the console, or a warning where that shows nothing."""
    return warn if console.quiet else partial(console.print, highlight=False, soft_wrap=True)


def _checked(given: object) -> Callback:
    if not isinstance(given, Callback):
        raise TypeError(f"expected a raffm_ray.Callback, got {type(given).__name__}")
    return given
