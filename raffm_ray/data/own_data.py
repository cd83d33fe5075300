"""Data that a function gives instead of a file: columns of rows, or arrays that are a model's inputs already."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.errors import UserError, in_short, near_miss
from raffm_ray.data.examples import Column, Examples, Indices, ragged
from raffm_ray.data.labels import label_count, notes_on_classes, positive_class
from raffm_ray.data.metrics import F1, METRICS, Answers, defined, f1_of
from raffm_ray.data.sources import ABOUT, told_about, told_parts
from raffm_ray.data.task_types import TASK_TYPES
from raffm_ray.settings.task_and_model import TaskSettings

TRAIN = "train"
IMAGES = 3
"""Dimensions from which an array of numbers below 256 is one of images: [images, height, width] or [..., colours]."""


def own_rows(settings: TaskSettings, rng: np.random.Generator) -> Any:
    """What gives the data of a task: the same for the same settings and generator.

    Columns by name, each a list or an array; a `datasets.Dataset`; a torch `Dataset` or a list of such rows, mappings or pairs of an
    input and a label; or a mapping from names of splits to any of these. Of a task whose rows are `ready`: arrays by the names of the
    model's inputs, with `labels`.
    """
    raise NotImplementedError  # only its signature is used, to check what plug-ins register


def _splits(data: Any) -> dict[str, Any]:
    if isinstance(data, Mapping) and data and all(_is_table(one) for one in data.values()):
        return dict(data)
    return {TRAIN: data}


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "column_names") or hasattr(value, "__getitems__")


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def _columns(name: str, data: Any, roles: Sequence[str]) -> dict[str, Any]:
    """Columns by name of what holds rows one by one. Raises UserError for what does not."""
    if isinstance(data, Mapping):
        return {str(key): _array(values) for key, values in data.items()}
    try:
        rows = [data[index] for index in range(len(data))]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"task {name!r}: its function gave {type(data).__name__}, and not columns, a Dataset or rows: {in_short(error)}"
        ) from None
    if rows and not isinstance(rows[0], Mapping):
        rows = [dict(zip(roles, row, strict=False)) for row in rows]
    return {str(key): [_array(row[key]) for row in rows] for key in (rows[0] if rows else ())}


def _images(values: Any) -> Any:
    """Images, where an array is of such."""
    from PIL import Image

    if isinstance(values, list) and values and isinstance(values[0], np.ndarray) and values[0].ndim >= IMAGES - 1:
        values = np.stack(values)
    if isinstance(values, np.ndarray) and values.ndim >= IMAGES:
        if values.dtype != np.uint8:
            raise UserError(f"expected images as whole numbers from 0 to 255 (uint8), got {values.dtype}")
        return [Image.fromarray(one) for one in values]
    if isinstance(values, list) and values and isinstance(values[0], np.ndarray | np.generic):
        return [one.item() if one.ndim == 0 else one.tolist() for one in values]
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def splits_of(name: str, data: Any, roles: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What a function gave as splits of the `datasets` library, and a name for its content. `roles`: of the columns of pairs. Raises
    UserError for what is no data."""
    import datasets
    import pyarrow as pa

    found, digest = {}, sha256()
    for split, one in _splits(data).items():
        try:
            table = one if hasattr(one, "column_names") else None
            if table is None:
                columns = {key: _images(values) for key, values in _columns(name, one, roles).items()}
                table = datasets.Dataset.from_dict(columns)
        except UserError as error:
            raise UserError(f"task {name!r}: {str(error).removeprefix(f'task {name!r}: ')}") from None
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise UserError(f"task {name!r}: its rows are no columns of one length: {in_short(error)}") from None
        found[split] = table
        digest.update(f"|{split}|{table.features}|".encode())
        for batch in table.with_format("arrow").iter(1000):
            with pa.BufferOutputStream() as sink:
                with pa.ipc.new_stream(sink, batch.schema.remove_metadata()) as writer:
                    writer.write_table(batch.replace_schema_metadata(None))
                digest.update(sink.getvalue())
    return found, digest.hexdigest()


def ready_splits(name: str, data: Any) -> dict[str, Examples]:
    """What a function gave as examples, by split. Raises UserError for what holds no labels, or arrays of unlike lengths."""
    found = {}
    for split, one in _splits(data).items():
        if not isinstance(one, Mapping) or "labels" not in one:
            raise UserError(f"task {name!r}: expected arrays by the names of the model's inputs, with `labels`")
        columns: dict[str, Column] = {key: _ready(key, _array(values)) for key, values in one.items()}
        lengths = {key: len(values) for key, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"task {name!r}: arrays of one length are expected, got {lengths}")
        labels = columns.pop("labels")
        about = {role: np.asarray(columns.pop(role)) for role in ABOUT if role in columns}
        found[split] = Examples(columns, labels, **told_about(about))
    return found


def _ready(key: str, values: Any) -> Column:
    if key.endswith("input_ids"):
        return ragged(values, 0)
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64) if array.dtype.kind in "iu" else array


def divided(
    examples: Examples, held_out: Examples | float, settings: TaskSettings, rng: np.random.Generator
) -> tuple[Examples, Examples, Examples, Examples | None]:
    """Random public, clients', held-out and validation examples, None of which there are none; as `sources.divide`.

    Raises UserError when nothing is left for the clients.
    """
    public, validation = settings.public, settings.validation
    order = rng.permutation(len(examples))
    testing = round(held_out * len(examples)) if isinstance(held_out, float) else 0
    if testing + public + validation >= len(order):
        raise UserError(f"task: {told_parts(public, validation, testing)} leave none of {len(order)} to the clients")
    parts: list[NDArray[np.int64]] = np.split(order, np.cumsum([testing, public, validation]))
    held, shown, validating, owned = (examples.part(np.sort(part)) for part in parts)
    if settings.examples is not None:
        owned = owned.part(np.arange(min(len(owned), max(1, settings.examples - public - validation))))
    return shown, owned, held_out if isinstance(held_out, Examples) else held, validating if validation else None


def digits() -> Examples:
    """scikit-learn's optical digits: 1,797 real 8 x 8 grey images of 10 classes (Alpaydin and Kaynak 1998), scaled to -1..1."""
    spec = find_spec("sklearn")  # only its file is read: importing it takes a second
    assert spec is not None
    assert spec.origin is not None
    table = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = (table[:, :-1].reshape(-1, 1, 8, 8) / 8.0 - 1.0).astype(np.float32)
    return Examples({"pixel_values": images}, table[:, -1].astype(np.int64))


def parts_of_arrays(
    settings: TaskSettings,
    kind: str,
    splits: Mapping[str, Examples],
    held_out: str | float,
    metric: str,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Fields of a task whose examples are what a model takes already. Raises UserError for splits that are not there."""
    for key, split in (("train", settings.train), ("held_out", held_out)):
        if isinstance(split, str) and split not in splits:
            raise UserError(f"task.{key}: the data has no split {split!r}{near_miss(split, splits, listed=True)}")
    testing = splits[held_out] if isinstance(held_out, str) else held_out
    shown, owned, held, validation = divided(splits[settings.train], testing, settings, rng)
    everything = [part for part in (shown, owned, held, validation) if part is not None]
    positive, told = positive_class(everything, None) if metric == F1 else (1, ())

    def scored(part: Examples) -> Callable[[Answers], float]:
        if metric == F1:
            return lambda answers: f1_of(positive, answers, part.labels)
        return lambda answers: METRICS[metric].score(answers, part.labels)

    def client_score(answers: Answers, indices: Indices) -> float | None:
        part = Examples({}, owned.labels_of(indices))
        return defined(metric, part.labels, lambda: scored(part)(answers))

    labels = label_count(TASK_TYPES[kind], kind, None, everything)
    return {
        "labels": labels,
        "public": shown,
        "clients": owned,
        "held_out": held,
        "score": scored(held),
        "client_score": client_score,
        "validation": validation,
        "validation_score": None if validation is None else scored(validation),
        "notes": (*notes_on_classes(everything, None), *told) if labels and kind != "text_regression" else (),
    }
