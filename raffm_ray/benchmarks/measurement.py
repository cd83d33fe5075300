"""Measures two sides in turns: this project, and a limit such as a plain PyTorch loop; and how much memory an action takes at its peak.

On the CPU torch does not count memory: what the process holds is looked at.
"""

import ctypes
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from mmap import PAGESIZE
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import numpy as np

from raffm_ray.basics.machine import peak_rss_bytes, resident_bytes, status_bytes
from raffm_ray.benchmarks.warm_processes import WarmProcesses

T = TypeVar("T")
Backend = Literal["ray", "in_process"]
JUDGED: dict[str, Callable[[float, float], float]] = {
    "ratio": lambda ours, limit: ours / limit,
    "ours": lambda ours, limit: ours,
    "extra": lambda ours, limit: ours - limit,
}
"""What a target bounds: ours over the limit, ours alone, or what ours takes more."""


@dataclass(frozen=True)
class Row:
    """A line of the table. `ours`, `limit`: one value a repetition, in `unit`; the pair of a repetition was measured one after the other.

    `judged`: a row of `JUDGED`; `target`: the most that its median may be, or with `at_least` the least; None where there is none.
    """

    what: str
    unit: str
    ours: tuple[float, ...]
    limit: tuple[float, ...]
    target: float | None = None
    judged: str = "ratio"
    at_least: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> list[float]:
        """What is judged, by repetition."""
        return [JUDGED[self.judged](*pair) for pair in zip(self.ours, self.limit, strict=True)]

    @property
    def ratio(self) -> float:
        """The median over repetitions of ours over the limit."""
        return median(map(JUDGED["ratio"], self.ours, self.limit))

    @property
    def value(self) -> float:
        """The median of what is judged."""
        return median(self.values())

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of what is judged."""
        low, high = np.percentile(self.values(), [25, 75])
        return float(low), float(high)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps to the target; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def content(self) -> dict[str, Any]:
        """The row as JSON has it."""
        summary = {
            "ours_median": median(self.ours),
            "limit_median": median(self.limit),
            "ratio": self.ratio,
            "value": self.value,
            "quartiles": self.quartiles,
            "met": self.met,
        }
        return {**asdict(self), **summary}


def scaled(values: Sequence[float], factor: float) -> tuple[float, ...]:
    """Every value in another unit."""
    return tuple(factor * value for value in values)


@dataclass
class Bench:
    """What a case is given. `quick`: something small instead, whose numbers mean nothing; `progress`: (part done, in words).

    `processes`: processes for plain loops, as many as the run has workers; `backend`: where our own clients run.
    """

    workers: int
    repetitions: int
    quick: bool
    progress: Callable[[float, str], None]
    processes: WarmProcesses
    backend: Backend = "ray"

    @property
    def few(self) -> int:
        """Repetitions of what takes long because it starts processes."""
        return min(self.repetitions, 3)


def interleaved(bench: Bench, repetitions: int, actions: Sequence[Callable[[], T]], told: str = "") -> list[tuple[T, ...]]:
    """What each action gave, by repetition: all once a repetition, the first one changing, so that what else the machine does hits all."""
    given: list[list[T]] = [[] for _ in actions]
    for repetition in range(repetitions):
        bench.progress(repetition / repetitions, f"{told} {repetition + 1}/{repetitions}".strip())
        for turn in range(len(actions)):
            position = (repetition + turn) % len(actions)
            given[position].append(actions[position]())
    return [tuple(values) for values in given]


CLEAR = Path("/proc/self/clear_refs")
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _MMAP_MAX = -3, -1, -4
"""mallopt(3)'s names for its parameters."""
_SMALL_BYTES = 65536


def return_memory_at_once() -> None:
    """Has glibc give freed memory back, so that what is held is what is used. Elsewhere nothing changes."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_MMAP_MAX, 65536)  # glibc's own value
        library.mallopt(_MMAP_THRESHOLD, _SMALL_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _SMALL_BYTES)
        library.malloc_trim(0)


def peak_growth(action: Callable[[], object]) -> tuple[int, str]:
    """By how many bytes, at least a page, the process grew while the action ran, and how that is known.

    Linux: the peak (VmHWM), reset before, over what was held before (VmRSS). Where it cannot be reset: over the peak before, which is
    right only for an action that takes more than everything before it.
    """
    gc.collect()
    return_memory_at_once()
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        before = peak_rss_bytes()
        action()
        return max(PAGESIZE, peak_rss_bytes() - before), "growth of the peak resident set since the process began"
    before = resident_bytes()
    action()
    return max(
        PAGESIZE, (status_bytes("VmHWM") or peak_rss_bytes()) - before
    ), "growth of the resident set to its peak (VmHWM, reset before)"
