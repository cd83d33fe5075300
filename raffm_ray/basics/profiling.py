"""Stopwatches: where a round's real time goes. Nothing that is measured here changes a result."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

PHASES = {
    "pretrain": "training on the public part, before round 1",
    "plan": "ranking, drawing clients, cutting plans",
    "forecast": "clients' first steps, timed before round 1 to tell how long the run will take",
    "broadcast": "parameters and package to the workers' store",
    "cut": "subnetworks cut and made into modules",
    "calibrate": "statistics for the ranking",
    "train": "local training",
    "return": "a block's sum in the full model's shape",
    "add": "blocks added up, averaged, the server's step",
    "evaluate": "the held-out and validation parts",
    "checkpoint": "what a run goes on from",
    "record": "records, progress",
    "wait": "workers without work, results on their way",
    "other": "the rest",
}
"""Of a round, in the order in which they are shown: what is meant by each."""
BY_WORKERS = ("cut", "calibrate", "train", "return", "evaluate")


class Stopwatch:
    """The phase that a process is in. Phases may lie inside each other: every second belongs to the innermost alone."""

    def __init__(self) -> None:
        self._phase, self._since, self._seconds = "other", perf_counter(), dict[str, float]()

    def _switch(self, phase: str) -> str:
        now, before = perf_counter(), self._phase
        self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Counts what happens inside for this phase, one of PHASES."""
        before = self._switch(phase)
        try:
            yield
        finally:
            self._switch(before)

    def spent(self, phase: str, seconds: float) -> None:
        """Counts seconds that were measured elsewhere for this phase."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def taken(self) -> dict[str, float]:
        """Seconds by phase since this was last asked; they are all the seconds since then."""
        self._switch(self._phase)
        seconds, self._seconds = self._seconds, {}
        return seconds


class Profile(Stopwatch):
    """A driver's stopwatch, and what workers told of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: dict[str, float] = {}

    def add(self, seconds: Mapping[str, float], workers: int) -> None:
        """Adds what one of so many workers spent on a call."""
        for phase in BY_WORKERS:
            self._workers[phase] = self._workers.get(phase, 0.0) + seconds.get(phase, 0.0) / workers

    def taken(self) -> dict[str, float]:
        """Seconds by phase, all of PHASES, since this was last asked: they add up to real time."""
        workers, self._workers = self._workers, {}
        return explained(super().taken(), workers)


def explained(driver: Mapping[str, float], workers: Mapping[str, float]) -> dict[str, float]:
    """The driver's seconds by phase, with the time that it waited divided as its workers', which are means over them.

    Where these worked for longer than the driver waited, because it worked too, all of theirs are scaled down to the waiting; where
    it waited for longer, what remains is `wait`.
    """
    waited, worked = driver.get("wait", 0.0), sum(workers.values())
    scale = min(1.0, waited / worked) if worked > 0 else 0.0
    seconds = {phase: driver.get(phase, 0.0) + scale * workers.get(phase, 0.0) for phase in PHASES}
    return seconds | {"wait": waited - scale * worked}
