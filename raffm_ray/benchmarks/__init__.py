"""Benchmarks: each prints a table and writes it as JSON, with a picture, into a folder of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Benchmark = Callable[[Sequence[str], Path, Any], Any]
"""(flags, folder, console) -> the table that is shown."""


def _extraction() -> Benchmark:
    from raffm_ray.benchmarks.extraction import extraction

    return extraction


BENCHMARKS: dict[str, Callable[[], Benchmark]] = {"extraction": _extraction}
"""By name; each is imported only when it is run."""
