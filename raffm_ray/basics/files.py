"""Atomic writes, locks on folders, and checks of paths."""

import errno
import fcntl
import os
import stat
from _thread import start_new_thread
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from shutil import rmtree

from raffm_ray.basics.errors import UserError

LOCK = ".lock"
"""The file of a folder that is locked by who holds it; it stays when nobody does."""
SYNCED_AT_ONCE = 8
"""Files: the disk takes several as fast as one."""


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync(paths: Iterable[Path]) -> None:
    """Returns when files and folders are on the disk, so that they outlast a loss of power. Raises OSError."""
    chosen = list(paths)
    parts = [chosen[start::SYNCED_AT_ONCE] for start in range(min(SYNCED_AT_ONCE, len(chosen)))]
    # No futures, nor threads that are waited for as they start: Ctrl-C meanwhile can leave a lock taken that the thread needs to end.
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work(part: Iterable[Path]) -> None:
        try:
            for path in part:
                _sync(path)
        except BaseException as error:  # whatever it is, who waits must hear of it
            ended.put(error)
        else:
            ended.put(None)

    for part in parts:
        start_new_thread(work, (part,))
    for error in [ended.get() for _ in parts]:
        if error is not None:
            raise error


def read_whole(path: Path) -> bytes:
    """What a file holds. Raises OSError, also for what is none: a pipe or a device might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    return path.read_bytes()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file through a temporary name, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


@contextmanager
def atomic_folder(place: Path, unsynced: Iterable[Path] = ()) -> Iterator[Path]:
    """A new folder under a temporary name, which becomes `place` at the end, replacing what is there, once all in it and `unsynced` are
    on the disk; nothing happens to `place` where the end is not reached."""
    temporary = place.with_name(f".{place.name}.tmp")
    rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    yield temporary
    sync([*temporary.iterdir(), temporary, *unsynced])
    if place.exists():
        rmtree(place)
    temporary.rename(place)
    sync([place.parent])


def check_path(path: Path) -> None:
    """Raises UserError for what no file system takes as a path: too long, or with a zero byte; whether it exists is not asked."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def check_no_links(folder: Path) -> None:
    """Raises UserError where something in a folder that is to be written to is a symbolic link: that would be written elsewhere."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise UserError(f"{path}: a symbolic link: what is in a run's folder is written there and nowhere else")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made where it is not there; the system lets go of it when the process ends, however it does.

    Raises UserError when another process holds it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is at work in it") from None
        except OSError as error:
            raise UserError(f"{folder}: its file system cannot lock files: {error.strerror}") from None
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Waits for whoever is in it with the same lock file, of this machine or of others that share the file system; the system lets go
    of it when a process ends, however it does. Where a file system cannot lock files nobody waits: for work that may be done twice."""
    with path.open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
