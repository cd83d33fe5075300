"""Where examples come from: the `datasets` library over the hub or local files, and the public, clients' and held-out rows of a task."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import escape, has_magic
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.errors import SECRET, UserError, in_short, near_miss

BUILDERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
"""A file's ending -> the builder of `datasets` that reads it; folders are recognised by what is in them, images too."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a data set, not yet read: `table` is a `datasets.Dataset`, `key` names its content."""

    table: Any
    key: str

    def __len__(self) -> int:
        return len(self.table)

    def select(self, indices: NDArray[np.int64]) -> "Rows":
        """The rows at these indices, in their order."""
        return Rows(self.table.select(indices), sha256(f"{self.key}{indices.tobytes().hex()}".encode()).hexdigest())

    def column(self, role: str, name: str) -> Any:
        """A column by its name. Raises UserError that lists the columns that are there."""
        if name not in self.table.column_names:
            there = self.table.column_names
            raise UserError(f"task.columns.{role}: the data has no column {name!r}{near_miss(name, there, listed=True)}")
        return self.table[name]


def expand(path: str) -> str:
    """`$NAME/sst2` with the environment's NAME. Raises UserError where it is not set, or is a secret's."""
    for name in re.findall(r"\$\{?(\w+)\}?", path):
        if SECRET.search(name):
            raise UserError(
                f"task.data: {path!r}: the environment variable {name} is a secret by its name, not the folder of data"
            )
        if not os.environ.get(name):
            raise UserError(
                f"task.data: {path!r} needs the environment variable {name}, which is not set: it names the folder of the data"
            )
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


def _builder(where: Path) -> tuple[str, dict[str, Any]]:
    """The builder of `datasets` for a local place, and its arguments.

    A folder's files name its splits (`validation_matched.parquet`, `train-00000-of-00002.parquet`); one without such files is left to
    the library, which knows folders of images. Names are literal: the library would take `data[1].csv` for a pattern.
    """
    if not where.is_file() and not where.is_dir():
        raise UserError(f"task.data: {where}: neither a file nor a folder")
    files = [where] if where.is_file() else sorted(file for file in where.iterdir() if file.suffix in BUILDERS)
    for file in files:
        if not file.is_file():
            raise UserError(f"task.data: {file}: not a file")
    if not files:
        return ("imagefolder", {"data_dir": escape(str(where))}) if has_magic(str(where)) else (str(where), {})
    endings = {file.suffix for file in files}
    if len(endings) > 1:
        raise UserError(f"task.data: {where} holds files of several kinds ({', '.join(sorted(endings))}): name one of them")
    by_split: dict[str, list[str]] = {}
    for file in files:
        split = "train" if where.is_file() else re.sub(r"-\d+-of-\d+$", "", file.stem)
        by_split.setdefault(split, []).append(escape(str(file)))
    ending = endings.pop()
    # Words like "null" or "N/A" are texts and names of classes, not missing values.
    reading = {"keep_default_na": False, **({"sep": "\t"} if ending == ".tsv" else {})} if BUILDERS[ending] == "csv" else {}
    return BUILDERS[ending], {"data_files": by_split, **reading}


def open_splits(data: str, subset: str | None, revision: str | None = None) -> tuple[Mapping[str, Any], str]:
    """All splits of a data set, and a name for their content. `revision`: of one on the hub.

    `data`: a local file (Parquet, CSV, JSON), a local folder of such files or of images by class, or a name on the hub. Raises
    UserError where it cannot be found or read.
    """
    import datasets

    path = expand(data)
    where = Path(path)
    if not where.exists() and (path.startswith((".", "/", "~")) or path.count("/") != 1 or where.suffix in BUILDERS):
        beside = [str(Path(data).parent / other.name) for other in where.parent.iterdir()] if where.parent.is_dir() else []
        told = near_miss(data, beside)
        raise UserError(f"task.data: {data}: no such file or folder{told if 'did you mean' in told else ''}")
    if where.is_file() and where.suffix not in BUILDERS:
        raise UserError(f"task.data: {data}: files must end in one of {', '.join(BUILDERS)}")
    name, arguments = _builder(where) if where.exists() else (path, {"revision": revision} if revision else {})
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(name, subset, **arguments)
    except Exception as error:  # whatever the library raises for files that it cannot read and names that it cannot reach
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise UserError(f"task.data: {data} cannot be read as a data set: {in_short(cause).replace(path, data)}") from None
    key = content_key(where) if where.exists() else f"{path}:{subset}:{revision}"
    return loaded, f"{key}:{'/'.join(f'{split}={len(rows)}' for split, rows in loaded.items())}"


def split_of(splits: Mapping[str, Any], key: str, split: str, setting: str) -> Rows:
    """One split. Raises UserError that lists those there."""
    if split not in splits:
        raise UserError(f"{setting}: the data has no split {split!r}{near_miss(split, splits, listed=True)}")
    return Rows(splits[split], f"{key}:{split}")


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


def class_names(tables: Sequence[Rows], name: str) -> list[str] | None:
    """The names of a label column's classes: of its `ClassLabel` feature, or its sorted strings; None where labels are numbers."""
    import datasets

    feature = tables[0].table.features[name]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        for rows in tables:
            check_no_missing(rows.table[name], name)
        return sorted({value for rows in tables for value in rows.table.unique(name)})
    return None


def check_no_missing(labels: Sequence[Any], name: str) -> None:
    """Raises UserError for the first row whose label is missing: an empty cell of a table of texts is no class of its own."""
    for row, value in enumerate(labels, 1):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise UserError(
                f"task.columns.label: row {row} has no value in {name!r} (rows of the data are counted from 1, without a heading): "
                "leave out what has no label"
            )
