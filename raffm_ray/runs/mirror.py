"""Copies a run's folder to an object store after every round, and fetches it from there."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.runs.checkpoint import SUMS
from raffm_ray.runs.reader import SUMMARY

CONFIG = "config.yaml"
LAST = {SUMS: 1, SUMMARY: 2}
"""Files that vouch for others, which are therefore written before them and removed after them."""
LOGS = {"tensorboard", "mlflow", "wandb", "rounds.csv"}
"""Files and folders of loggers, which grow every round, and are made anew from the records by who goes on: copied once, at the end."""
OBJECTS = {"s3", "gcs", "abfs"}
"""Stores in which a file is whole as soon as it is there, and folders are but parts of names."""
SETTLED_NS = 1_000_000_000
"""How long ago a folder must have changed for its time stamp to tell whether it changes again: those of some systems are coarse."""
Content = tuple[int, int, int]
"""What tells a file's content from another that it had before."""


class Listing(NamedTuple):
    """A local folder's own files and folders, as they were at a time; `changed_ns`: its time stamp then."""

    at_ns: int
    changed_ns: int
    files: dict[str, Content]
    folders: list[str]

    def holds(self, changed_ns: int) -> bool:
        """Whether it is still right, if files are only written under other names and renamed."""
        return changed_ns == self.changed_ns and self.at_ns - changed_ns > SETTLED_NS


class Mirror:
    """What is at a URL (`s3://bucket/run`, `gs://...`, or any other of pyarrow's file systems) of a run's local folder.

    At every moment, what is there is a run that can be resumed: a checkpoint counts once its sums are there, which are copied after all
    else and removed before it. What is being written is hidden, and is copied once it is whole. Raises UserError where there is no such store, or it does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self._told("is not a place for runs"):
            self._store, root = FileSystem.from_uri(self.url)
        self._root = root.rstrip("/")
        self._copied: dict[str, Content | None] = {}
        self._listings: dict[str, Listing] = {}
        self._gone: set[str] = set()
        self._failed = False

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self.url}: {what}: {in_short(error)}") from None

    def _names(self) -> set[str]:
        """Of all files there, hidden ones left out. Raises UserError for one whose name leads out of the run's folder."""
        with self._told("cannot be read"):
            found = self._store.get_file_info(FileSelector(self._root, allow_not_found=True, recursive=True))
        names = {info.path.removeprefix(self._root).lstrip("/") for info in found if info.type == FileType.File}
        for name in names:
            if ".." in PurePosixPath(name).parts or "\\" in name or "\0" in name:
                raise UserError(f"{self.url}: {name}: a name that leads out of a run's folder")
        return {name for name in names if not _hidden(name)}

    def begin(self) -> None:
        """Raises UserError unless nothing is there yet, and something can be written there and removed again."""
        if names := self._names():
            resumed = CONFIG in names and SUMMARY not in names
            told = f"; raffm-ray resume {self.url} goes on with the run that is not finished" if resumed else ""
            raise UserError(f"--out {self.url}: holds {min(names)} already; nothing is overwritten{told}")
        with self._told("cannot be written to"):
            if self._store.type_name not in OBJECTS:
                self._store.create_dir(self._root, recursive=True)
            with self._store.open_output_stream(f"{self._root}/.probe") as probe:
                probe.write(b"raffm-ray")
            self._store.delete_file(f"{self._root}/.probe")

    def fetch(self, folder: Path, checkpoints: bool = True) -> None:
        """Copies the run to a new local folder, without its checkpoints and model if they are not wanted.

        Raises UserError where there is none.
        """
        names = self._names()
        if CONFIG not in names:
            raise UserError(f"{self.url}: no run here ({CONFIG} is missing)")
        wanted = names if checkpoints else {name for name in names if "checkpoints" not in PurePosixPath(name).parts}
        with self._told("cannot be read"):
            for name in sorted(wanted):
                if _vouched(name) <= names:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    copy_files(f"{self._root}/{name}", str(folder / name), self._store, LocalFileSystem())
        here = self._files(folder)
        self._copied = {name: here.get(name) for name in wanted}

    def save(self, folder: Path, settled: bool = True) -> None:
        """Copies what is new or changed in the local folder, and removes what is not in it any more. `settled`: whether nobody else is at work
        in it; if not, folders that did not change are not looked into, and what seems to be gone is removed the next time."""
        if settled:
            self._listings = {}
        self._save(folder, self._files(folder), settled)

    def try_to_save(self, folder: Path, tell: Callable[[str], None], settled: bool = False) -> None:
        """As `save`, but a store that fails is only told of, the first time in a row: there is another time."""
        try:
            self.save(folder, settled)
            self._failed = False
        except UserError as error:
            if not self._failed:
                tell(f"note: {error}; it is tried again after the next round")
            self._failed = True

    @contextmanager
    def watching(self, folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
        """Around a run: where it does not come to its end, what was written last is copied all the same."""
        try:
            yield
        except BaseException:
            self.try_to_save(folder, tell, settled=True)
            raise

    def _save(self, folder: Path, here: dict[str, Content], settled: bool) -> None:
        if SUMMARY not in here:
            here = {name: state for name, state in here.items() if not LOGS & set(PurePosixPath(name).parts)}
        changed, missed = [name for name, state in here.items() if self._copied.get(name) != state], False
        with self._told(f"{folder} cannot be copied there"):
            for name in sorted(changed, key=_order):
                if missed and PurePosixPath(name).name in LAST:
                    continue
                try:
                    self._put(folder / name, f"{self._root}/{name}")
                except OSError:
                    if settled or (folder / name).exists():
                        raise
                    missed = True  # it was removed meanwhile
                else:
                    self._copied[name] = here[name]
            # Who replaces files while they are listed may hide both the old and the new: what is gone twice is gone.
            gone = self._copied.keys() - here.keys()
            removed, self._gone = gone if settled else gone & self._gone, gone
            for name in sorted(() if missed else removed, key=_order, reverse=True):
                self._remove(f"{self._root}/{name}")
                del self._copied[name]

    def _files(self, folder: Path, inside: str = "") -> dict[str, Content]:
        """By name, of a local folder and those in it; hidden files are of this machine, or being written."""
        found, before = dict[str, Content](), self._listings.get(inside)
        with suppress(FileNotFoundError):  # it was removed meanwhile
            changed_ns = (folder / inside).stat().st_mtime_ns
            if before is None or not before.holds(changed_ns):
                before = self._listings[inside] = _listing(folder / inside, changed_ns)
            found = {f"{inside}{name}": state for name, state in before.files.items()}
            for name in before.folders:
                found |= self._files(folder, f"{inside}{name}/")
        return found

    def _put(self, source: Path, target: str) -> None:
        place = PurePosixPath(target)
        whole = self._store.type_name in OBJECTS
        if not whole:
            self._store.create_dir(str(place.parent), recursive=True)
        first = target if whole else str(place.with_name(f".{place.name}.tmp"))
        copy_files(str(source), first, LocalFileSystem(), self._store)
        if not whole:
            self._store.move(first, target)

    def _remove(self, target: str) -> None:
        if self._store.get_file_info(target).type == FileType.File:
            self._store.delete_file(target)
        parent = str(PurePosixPath(target).parent)
        if self._store.type_name not in OBJECTS and not self._store.get_file_info(FileSelector(parent, allow_not_found=True)):
            self._store.delete_dir(parent)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _listing(folder: Path, changed_ns: int) -> Listing:
    one = Listing(time.time_ns(), changed_ns, {}, [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                one.folders.append(entry.name)
            elif entry.is_file():
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    one.files[entry.name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return one


def _order(name: str) -> tuple[int, str]:
    """The configuration first: with it, it is a run."""
    return LAST.get(PurePosixPath(name).name, -1 if name == CONFIG else 0), name


def _vouched(name: str) -> set[str]:
    """The files without which this one is left of a copy that was cut short: a checkpoint's sums."""
    place = PurePosixPath(name).parent
    return {f"{place}/{SUMS}"} if place.name.startswith("round-") and place.parent.name == "checkpoints" else set()
