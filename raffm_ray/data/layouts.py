"""How data lies in a local file or folder: which of its files are which split. Nothing is read before its split is asked for."""

import csv
import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from glob import escape, has_magic
from logging import CRITICAL
from pathlib import Path
from typing import Any, NamedTuple

from raffm_ray.basics.cache import check_libraries_cache
from raffm_ray.basics.errors import UserError, in_short

BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".arrow": "arrow",
}
"""A file's ending -> the builder of `datasets` that reads it; folders are recognised by what is in them, images too."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Endings behind these, of files that the library unpacks."""
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files that `datasets` and the hub put beside data: they describe it, and are no split."""
SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")
"""Names of folders that are splits, as `datasets` knows them."""
IMAGES = "imagefolder"

Origin = Callable[[int], str]
"""Where a row of a split is, counted from 0: its file, and its row there counted from 1."""


class Place(NamedTuple):
    """A local file or folder, and what errors call it: as it was given, for its path may hold what the environment has."""

    where: Path
    shown: str


class Splits(Mapping[str, tuple[Any, Origin]]):
    """Splits by name, each a `datasets.Dataset` and where its rows are. Only those that are asked for are read, once."""

    def __init__(self, readers: Mapping[str, Callable[[], tuple[Any, Origin]]]) -> None:
        self._readers, self._read = dict(readers), dict[str, tuple[Any, Origin]]()

    def __getitem__(self, name: str) -> tuple[Any, Origin]:
        if name not in self._read:
            self._read[name] = self._readers[name]()
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def in_memory(tables: Mapping[str, Any]) -> Splits:
    """Splits of tables that are read already."""
    return Splits({name: partial(lambda *found: found, table, of_split(name)) for name, table in tables.items()})


def of_split(name: str) -> Origin:
    """Where rows are of which no file is known."""
    return lambda row: f"split {name!r}, row {row + 1}"


def ending(path: Path) -> str:
    """A file's ending in small letters, without that of its compression; empty where it is of no known kind."""
    *others, last = ["", *(one.lower() for one in path.suffixes)]
    found = others[-1] if last in COMPRESSED and others else last
    return found if found in BUILDERS else ""


def splits_in(place: Place, subset: str | None) -> Splits:
    """The splits of a local file or folder.

    A folder is one that `save_to_disk` wrote; or its files name its splits (`validation_matched.parquet`, `train-00000-of-00002.parquet`), here,
    in `data/`, or in a folder for each split; or it holds images, by class or with `metadata.csv`; what else the library knows is left to it, such
    as subsets. Names are literal: the library would take `data[1].csv` for a pattern. Raises UserError for what is none of them.
    """
    where = place.where
    if where.is_file():
        return Splits({"train": partial(_files, [where], place)})
    if (where / "dataset_dict.json").is_file():
        return _saved({name: where / name for name in _saved_splits(where / "dataset_dict.json")}, place)
    if (where / "state.json").is_file() and (where / "dataset_info.json").is_file():
        return _saved({"train": where}, place)
    if subset is None and not _configured(where):
        folders = [one for one in sorted(where.iterdir()) if one.is_dir() and one.name in SPLITS]
        by_folder = {one.name: files for one in folders if (files := _data_files(one))}
        named = {**by_folder, **_files_by_split(where / "data"), **_files_by_split(where)}
        images = {one.name: one for one in folders if one.name not in named}
        if named or "train" in images:
            readers = {name: partial(_images, folder, place) for name, folder in images.items()}
            return Splits(readers | {name: partial(_files, files, place) for name, files in named.items()})
    if has_magic(str(where)) or any(map(_describes_images, where.glob("metadata.*"))):
        return in_memory(load(IMAGES, place, subset, data_dir=escape(str(where))))
    return in_memory(load(str(where), place, subset))


def load(name: str, place: Place, subset: str | None = None, **arguments: Any) -> Any:
    """What the library loads. Raises UserError, in one line, where it cannot."""
    import datasets

    check_libraries_cache(datasets.config.HF_DATASETS_CACHE)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(CRITICAL)  # what is wrong is said once, by us
    try:
        return datasets.load_dataset(name, subset, **arguments)
    except Exception as error:  # whatever the library raises for files that it cannot read and names that it cannot reach
        raise unreadable(place, error.__cause__ if isinstance(error.__cause__, Exception) else error) from None


def unreadable(place: Place, error: Exception) -> UserError:
    """What is said of data that a library cannot read."""
    told = in_short(error).replace(str(place.where), place.shown)
    if isinstance(error, UnicodeDecodeError):
        told += "; texts must be stored as UTF-8, or as UTF-16 that says so at its beginning"
    if "corresponds to no data" in told:
        told = "it has no rows"
    return UserError(f"task.data: {place.shown} cannot be read as a data set: {told}")


def _data_files(where: Path) -> list[Path]:
    """The files of data in a folder: none that begins with a dot, as copies by other systems leave them, and none that describes others."""
    there = sorted(where.iterdir()) if where.is_dir() else []
    return [
        one
        for one in there
        if ending(one) and not one.name.startswith(".") and one.name not in ABOUT and not _describes_images(one)
    ]


def _describes_images(file: Path) -> bool:
    """Whether a file is the `metadata.csv` of a folder of images: its heading has a `file_name`."""
    if file.stem != "metadata" or not file.is_file():
        return False
    with file.open("rb") as opened:
        first = opened.readline(100_000).decode("utf-8-sig", "replace")
    if file.suffix.lower() in (".csv", ".tsv"):
        return any(name.strip().endswith("file_name") for name in next(csv.reader([first]), []))
    return "file_name" in first or file.suffix.lower() == ".parquet"


def _configured(where: Path) -> bool:
    """Whether a card says which files are which: `configs` in the heading of README.md, as on the hub."""
    card = where / "README.md"
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    return text.startswith("---") and re.search(r"^configs:", text.split("\n---", 1)[0], re.MULTILINE) is not None


def _files_by_split(where: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in _data_files(where):
        stem = file.name[: -len("".join(file.suffixes[-2:]))] if file.suffix.lower() in COMPRESSED else file.stem
        found.setdefault(re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", stem), []).append(file)
    return found


def _saved_splits(path: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(path.read_bytes())["splits"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"task.data: {path}: not what save_to_disk writes: {in_short(error)}") from None


def _saved(folders: Mapping[str, Path], place: Place) -> Splits:
    def read(name: str, folder: Path) -> tuple[Any, Origin]:
        import datasets

        try:
            return datasets.load_from_disk(str(folder)), of_split(name)
        except Exception as error:  # whatever the library raises for files that are missing or damaged
            raise unreadable(place, error) from None

    return Splits({name: partial(read, name, folder) for name, folder in folders.items()})


def _files(files: Sequence[Path], place: Place) -> tuple[Any, Origin]:
    base = place.where if place.where.is_dir() else place.where.parent

    def origin(row: int) -> str:
        for one in files[:-1]:  # how many rows each file has is only asked when something is wrong
            length = len(_table([one], place))
            if row < length:
                return f"{one.relative_to(base)}, row {row + 1}"
            row -= length
        return f"{files[-1].relative_to(base)}, row {row + 1}"

    return _table(files, place), origin


def _table(files: Sequence[Path], place: Place) -> Any:
    endings = sorted({ending(one) for one in files})
    if len(endings) > 1:
        raise UserError(f"task.data: {place.shown} holds files of several kinds ({', '.join(endings)}): name one of them")
    for one in files:
        if not one.is_file():
            raise UserError(f"task.data: {one}: not a file")
    arguments = _reading(endings[0], files[0], place)
    where = {"train": [escape(str(one)) for one in files]}
    table = load(BUILDERS[endings[0]], place, data_files=where, **arguments)["train"]
    if BUILDERS[endings[0]] != "json" or len(table) != len(files):
        return table
    fields = [name for name, feature in table.features.items() if _is_list_of_rows(feature)]
    if len(fields) == 1:  # the rows are one field of an object, as in {"version": 1, "data": [...]}
        return load("json", place, data_files=where, field=fields[0])["train"]
    if all(isinstance(feature, dict) for feature in table.features.values()):
        raise UserError(
            f"task.data: {place.shown}: a table by columns, as pandas writes it unless told otherwise: write it by rows (orient='records')"
        )
    return table


def _is_list_of_rows(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", None), dict) or (
        isinstance(feature, list) and len(feature) == 1 and isinstance(feature[0], dict)
    )


def _reading(kind: str, file: Path, place: Place) -> dict[str, Any]:
    """Arguments of the builder for files like this one."""
    if BUILDERS[kind] == "parquet":
        return _plain_columns(file, place)
    if BUILDERS[kind] != "csv":
        return {}
    # Words like "null" or "N/A" are texts and names of classes, not missing values.
    reading = {"keep_default_na": False, **({"sep": "\t"} if kind == ".tsv" else {})}
    with file.open("rb") as opened:
        return {**reading, "encoding": "utf-16"} if opened.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else reading


def _plain_columns(file: Path, place: Place) -> dict[str, Any]:
    """The columns of a Parquet file as types that everything here reads, where it has others: views and large texts, dictionaries and decimals are
    those of another writer for the same values. Columns of types that `datasets` has not, such as maps, are left out. Nothing where there is
    nothing to change. Raises UserError for a file that is not Parquet."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(place, error) from None
    if b"huggingface" in (schema.metadata or {}):
        return {}  # the library wrote it, and knows its columns better
    fields = []
    for one in schema:
        plain = pa.field(one.name, plain_type(one.type))
        with suppress(
            ValueError, NotImplementedError, TypeError
        ):  # of a type that the library cannot hold: the column is left out
            datasets.Features.from_arrow_schema(pa.schema([plain]))
            fields.append(plain)
    if [one.type for one in fields] == schema.types:
        return {}
    return {"columns": [one.name for one in fields], "features": datasets.Features.from_arrow_schema(pa.schema(fields))}


def plain_type(kind: Any) -> Any:
    """The usual Arrow type for the values of another one: text, bytes, list, the values of a dictionary, whole numbers for decimals without a fraction."""
    import pyarrow as pa

    types = pa.types
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if types.is_decimal(kind):
        return pa.int64() if kind.scale == 0 else pa.float64()
    if types.is_large_list(kind) or types.is_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        return pa.list_(plain_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(one.name, plain_type(one.type)) for one in kind])
    return kind


def _images(folder: Path, place: Place) -> tuple[Any, Origin]:
    """A split of images in a folder of its own, with metadata there or beside it."""
    patterns = [f"{escape(str(folder))}/**", *(escape(str(one)) for one in sorted(place.where.glob("metadata.*")))]
    return load(IMAGES, place, data_files={"train": patterns})["train"], of_split(folder.name)
