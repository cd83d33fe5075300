"""Copies a run's folder to an object store after every round, and fetches it from there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

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


class Mirror:
    """What is at a URL (`s3://bucket/run`, `gs://...`, or any other of pyarrow's file systems) of a run's local folder.

    At every moment, what is there is a run that can be resumed: a checkpoint counts once its sums are there, which are copied after all
    else and removed before it. Raises UserError where there is no such store, or it does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self._told("is not a place for runs"):
            self._store, root = FileSystem.from_uri(self.url)
        self._root = root.rstrip("/")
        self._copied: dict[str, tuple[int, int, int] | None] = {}
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
        here = _files(folder)
        self._copied = {name: here.get(name) for name in wanted}

    def save(self, folder: Path) -> None:
        """Copies what is new or changed in the local folder, and removes what is not in it any more."""
        here = _files(folder)
        if SUMMARY not in here:
            here = {name: state for name, state in here.items() if not LOGS & set(PurePosixPath(name).parts)}
        changed = [name for name, state in here.items() if self._copied.get(name) != state]
        with self._told(f"{folder} cannot be copied there"):
            for name in sorted(changed, key=_order):
                self._put(folder / name, f"{self._root}/{name}")
                self._copied[name] = here[name]
            for name in sorted(self._copied.keys() - here.keys(), key=_order, reverse=True):
                self._remove(f"{self._root}/{name}")
                del self._copied[name]

    def try_to_save(self, folder: Path, tell: Callable[[str], None]) -> None:
        """As `save`, but a store that fails is only told of, the first time in a row: there is another time."""
        try:
            self.save(folder)
            self._failed = False
        except UserError as error:
            if not self._failed:
                tell(f"note: {error}; it is tried again after the next round")
            self._failed = True

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


def _files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What tells a file's content from another that it had before, by name; hidden files are of this machine."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (one.st_ino, one.st_size, one.st_mtime_ns) for name, one in found.items() if not _hidden(name)}


def _order(name: str) -> tuple[int, str]:
    """The configuration first: with it, it is a run."""
    return LAST.get(PurePosixPath(name).name, -1 if name == CONFIG else 0), name


def _vouched(name: str) -> set[str]:
    """The files without which this one is left of a copy that was cut short: a checkpoint's sums."""
    place = PurePosixPath(name).parent
    return {f"{place}/{SUMS}"} if place.name.startswith("round-") and place.parent.name == "checkpoints" else set()
