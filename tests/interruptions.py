"""Interrupts a run at any moment at which it touches its folder, and lets it go on."""

import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from quick import quick
from rich.console import Console

from raffm_ray.basics.files import locked
from raffm_ray.clients.local_training import one_thread
from raffm_ray.runs.loop import Environment
from raffm_ray.runs.simulation import completed
from raffm_ray.runs.writing.hashed_arrays import write_arrays


class Interrupted(BaseException):
    """Raised inside a run; like KeyboardInterrupt, nobody takes it for an error."""


class Moments:
    """Interrupts a run before it touches its folder for the `left`-th time: files opened, renamed, removed, folders made.

    From then on nothing touches that folder, neither the thread that would have nor any other, until `folder` is None: what was being
    written stays as it is, as after a kill.
    """

    folder: Path | None = None
    left = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or event not in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"):
            return
        touched = [str(one) for one in arguments if str(self.folder) in str(one)]
        if touched and "tensorboard" not in touched[0]:  # a thread of its own writes there
            self.left -= 1
            if self.left <= 0:
                raise Interrupted

    def interrupt(self, folder: Path, after: int) -> None:
        self.folder, self.left = folder, after


MOMENTS = Moments()
sys.addaudithook(MOMENTS)


def die_writing(patch: pytest.MonkeyPatch, folder: Path, checkpoint: int) -> None:
    """Interrupts a run, as `Moments` does, when half of the arrays of this checkpoint, counted from 1, are written; what else the run does
    meanwhile ends when it touches its folder."""
    real, calls = write_arrays, count(1)

    def half(path: Path, arrays: Any) -> str:
        digest = real(path, arrays)
        if next(calls) != checkpoint:
            return digest
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        MOMENTS.interrupt(folder, 1)
        raise Interrupted

    patch.setattr("raffm_ray.runs.checkpoint.write_arrays", half)


def go(folder: Path, **changes: Any) -> dict[str, Any]:
    """Runs on in a folder, from wherever the run there is."""
    with one_thread(), locked(folder):
        prepared, start, pool = quick(**changes)
        return completed(prepared, start, folder, Environment(pool, Console(quiet=True)))
