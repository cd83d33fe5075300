"""Where examples come from: the `datasets` library over the hub or local files, and the public, clients' and held-out rows of a task."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.errors import SECRET, UserError, near_miss
from raffm_ray.data.examples import UNOWNED, owner_of
from raffm_ray.data.layouts import BUILDERS, Origin, Place, Splits, ending, in_memory, load, of_split, splits_in


@dataclass(frozen=True)
class Rows:
    """Some rows of a data set, not yet read: `table` is a `datasets.Dataset`, `key` names its content. `origin`: where rows of all the data
    are, of which these are those at `positions`, all of them where that is None."""

    table: Any
    key: str
    origin: Origin = field(default=of_split("train"), compare=False)
    positions: NDArray[np.int64] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.table)

    def select(self, indices: NDArray[np.int64]) -> "Rows":
        """The rows at these indices, in their order."""
        key = sha256(f"{self.key}{indices.tobytes().hex()}".encode()).hexdigest()
        positions = indices if self.positions is None else self.positions[indices]
        return Rows(self.table.select(indices), key, self.origin, positions)

    def place(self, row: int) -> str:
        """Where one of these rows is, counted from 0: in which file, and which of the file's rows, counted from 1 without a heading."""
        return self.origin(row if self.positions is None else int(self.positions[row]))

    def mistake(self, role: str, row: int, told: str) -> UserError:
        """What is wrong with one of these rows, by the role of its column."""
        return UserError(f"task.columns.{role}: {self.place(row)} (rows are counted from 1, without a heading): {told}")

    def column(self, role: str, name: str) -> Any:
        """A column by its name. Raises UserError that lists the columns that are there."""
        if name not in self.table.column_names:
            there = self.table.column_names
            if len(there) == 1 and (found := [mark for mark in (";", "\t", "|") if mark in there[0]]):
                raise UserError(
                    f"task.columns.{role}: the data has one column, {there[0]!r}: its columns seem to be separated by {found[0]!r}, but those of a "
                    ".csv file are by commas, and of a .tsv file by tabs"
                )
            raise UserError(f"task.columns.{role}: the data has no column {name!r}{near_miss(name, there, listed=True)}")
        return self.table[name]


def expand(path: str, setting: str = "task.data") -> str:
    """`$NAME/sst2` with the environment's NAME. `setting`: whose path it is. Raises UserError where NAME is not set, or is a secret's."""
    for name in re.findall(r"\$\{?(\w+)\}?", path):
        if SECRET.search(name):
            raise UserError(f"{setting}: {path!r}: the environment variable {name} is a secret by its name, not a folder")
        if not os.environ.get(name):
            raise UserError(f"{setting}: {path!r} needs the environment variable {name}, which is not set: it names a folder")
    return os.path.expanduser(os.path.expandvars(path))


def content_key(where: Path) -> str:
    """A name for what is in a local file, or in a folder and under which names."""
    files = [where] if where.is_file() else sorted(file for file in where.rglob("*") if file.is_file())
    listed = [
        f"{file.relative_to(where)}:{_digest(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)}"
        for file in files
    ]
    return sha256("\n".join(listed).encode()).hexdigest()


@lru_cache(maxsize=100_000)
def _digest(path: str, size: int, changed_ns: int) -> str:
    """Of a file's content; read again in this process only where its size or its time of change is another."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def open_splits(data: str, subset: str | None, revision: str | None = None) -> tuple[Splits, str]:
    """The splits of a data set, of which local ones are read when they are asked for, and a name for their content. `revision`: of one on the
    hub.

    `data`: a local file (Parquet, CSV, JSON), a local folder of such files or of images by class, or a name on the hub. Raises
    UserError where it cannot be found or read.
    """
    path = expand(data)
    where = Path(path)
    if where.is_file() and not ending(where):
        raise UserError(f"task.data: {data}: files must end in one of {', '.join(BUILDERS)}")
    if where.exists():
        if not where.is_file() and not where.is_dir():
            raise UserError(f"task.data: {where}: neither a file nor a folder")
        splits, key = splits_in(Place(where, data), subset), content_key(where)
        if len(splits) == 1:
            splits[next(iter(splits))]  # the only one: what is wrong with it is said now
        return splits, f"{key}:{subset or ''}"
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or ending(where):
        beside = [str(Path(data).parent / other.name) for other in where.parent.iterdir()] if where.parent.is_dir() else []
        told = near_miss(data, beside)
        raise UserError(f"task.data: {data}: no such file or folder{told if 'did you mean' in told else ''}")
    loaded = load(path, Place(where, data), subset, **({"revision": revision} if revision else {}))
    return in_memory(loaded), f"{path}:{subset}:{revision}:{'/'.join(f'{split}={len(rows)}' for split, rows in loaded.items())}"


def split_of(splits: Splits, key: str, split: str, setting: str) -> Rows:
    """One split. Raises UserError that lists those there."""
    if split not in splits:
        raise UserError(f"{setting}: the data has no split {split!r}{near_miss(split, splits, listed=True)}")
    table, origin = splits[split]
    return Rows(table, f"{key}:{split}", origin)


def divide(
    rows: Rows, held_out: Rows | float, public: int, limit: int | None, rng: np.random.Generator, validation: int = 0
) -> tuple[Rows, Rows, Rows, Rows | None]:
    """Random public, clients', held-out and validation rows, None of which there are none; at most `limit` rows in all but the
    held-out ones together.

    Raises UserError when nothing is left for the clients.
    """
    order = rng.permutation(len(rows))
    testing = round(held_out * len(rows)) if isinstance(held_out, float) else 0
    training = order[testing : None if limit is None else testing + limit]
    given = public + validation
    if given >= len(training):
        raise UserError(f"task: {told_parts(public, validation, testing)} leave none of {len(training) + testing} to the clients")
    held = rows.select(np.sort(order[:testing])) if isinstance(held_out, float) else held_out
    validating = rows.select(np.sort(training[public:given])) if validation else None
    return rows.select(np.sort(training[:public])), rows.select(np.sort(training[given:])), held, validating


def told_parts(public: int, validation: int, held_out: int) -> str:
    """How many examples the parts take that are not the clients', as an error says it."""
    return f"{public} public{f', {validation} validation' if validation else ''} and {held_out} held-out examples"


def _owners(values: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """[examples]: the number of each one's owner, owners in their order, `UNOWNED` where there is none; and the owners' names."""
    owned = np.array([owner_of(value) is not None for value in values.tolist()], dtype=bool)
    groups = np.full(len(values), UNOWNED, dtype=np.int64)
    names, groups[owned] = np.unique(values[owned], return_inverse=True)
    return groups, tuple(map(str, names.tolist()))


def _times(values: NDArray[Any]) -> NDArray[np.int64]:
    """[examples]: each one's place in the order of these numbers, dates or texts; equal ones share a place."""
    if any(owner_of(value) is None for value in values.tolist()):
        raise UserError("task.columns.time: the column has empty cells")
    try:
        return np.unique(values, return_inverse=True)[1].astype(np.int64)
    except TypeError:
        raise UserError("task.columns.time: values of several kinds have no order") from None


ABOUT = ("group", "time")
"""Roles of columns that say something about examples, and are no input of a model."""


def told_about(columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The fields of `Examples` that follow from the columns of the roles in `ABOUT`, of those that there are. Raises UserError for times that
    have no order."""
    found: dict[str, Any] = {}
    if "group" in columns:
        found["groups"], found["group_names"] = _owners(columns["group"])
    if "time" in columns:
        found["times"] = _times(columns["time"])
    return found
