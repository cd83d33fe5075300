"""Temporary folders that are removed when their process ends. If it was killed, the next process removes them."""

import atexit
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TextIO

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import LOCK, locked

INSIDE = "in"
"""The folder in the folder: what uses it may open it to everybody, as Ray does."""


def process_folder(parent: Path, prefix: str, before: Callable[[], None] = lambda: None) -> Path:
    """A new folder that nobody else can look into, removed when this process ends, after a call of `before`.

    Raises UserError where it cannot be made.
    """
    for left in parent.glob(f"{prefix}*"):
        _remove_where_nobody_holds(left)
    try:
        made = Path(mkdtemp(prefix=f".{prefix}", dir=parent))
        (made / INSIDE).mkdir()
        file = (made / LOCK).open("a")
        fcntl.flock(file, fcntl.LOCK_EX)
        place = made.rename(made.with_name(made.name[1:]))  # only now do others look at it, when it is held
    except OSError as error:
        raise UserError(f"{parent}: no temporary folder can be made there: {error.strerror}") from None
    atexit.register(_end, place, file, os.getpid(), before)
    return place / INSIDE


def _remove_where_nobody_holds(place: Path) -> None:
    try:
        if place.is_symlink() or not place.is_dir() or place.stat().st_uid != os.getuid():
            return
        if not {one.name for one in place.iterdir()} <= {LOCK, INSIDE}:  # something else of that name
            return
        with locked(place):
            rmtree(place, ignore_errors=True)
    except (UserError, OSError):  # somebody holds it, or removed it in the meantime
        return


def _end(place: Path, file: TextIO, maker: int, before: Callable[[], None]) -> None:
    """`file`: what holds the folder until then."""
    if os.getpid() == maker:  # not a fork of it
        before()
        rmtree(place, ignore_errors=True)
    file.close()
