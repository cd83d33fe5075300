"""Labels of a data set: how many classes they are of, and what is odd about them."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from raffm_ray.basics.errors import UserError
from raffm_ray.data.examples import Examples, owner_of
from raffm_ray.data.sources import Rows
from raffm_ray.data.task_types import TaskType, whole


def classes_of(tables: Sequence[Rows], name: str) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """The names of a label column's classes, and the numbers that they are there, None where these are 0, 1, ... in that order.

    Names are those of its `ClassLabel` feature, its sorted texts, or its sorted whole numbers where they do not begin with 0; None where the
    labels are numbers from 0. Raises UserError for a row without a label.
    """
    import datasets

    feature = tables[0].table.features[name]
    kind = str(getattr(feature, "dtype", None))
    texts = kind in ("string", "large_string", "string_view")
    if not texts and not kind.startswith(("int", "uint", "float", "bool", "decimal")):
        return None, None
    values = set()
    for rows in tables:
        found = rows.table.unique(name)
        if any(owner_of(value) is None for value in found):
            raise _missing(rows, name)
        values.update(found)
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), None
    if texts:
        return tuple(sorted(values)), None
    numbers = [whole(value) for value in values]
    if None in numbers or 0 in numbers:
        return None, None
    called = tuple(sorted(number for number in numbers if number is not None))
    return tuple(map(str, called)), called


def _missing(rows: Rows, name: str) -> UserError:
    """What is said of the first row whose label is missing: an empty cell of a table of texts is no class of its own."""
    row = next(row for row, value in enumerate(rows.table[name]) if owner_of(value) is None)
    return rows.mistake("label", row, f"no value in {name!r}: leave out what has no label")


def positive_class(parts: Sequence[Examples], classes: Sequence[str] | None) -> tuple[int, tuple[str, ...]]:
    """The class that `f1` is of, which is the later one of the two that there are, and what is said of it where that is not plain.

    Raises UserError for labels of more classes.
    """
    found = _found(parts)
    if len(found) > 2:
        told = "use f1_macro, f1_micro, f1_weighted, accuracy or matthews"
        raise UserError(f"task.metric: f1 is of two classes, and the data has {len(found)}: {told}")
    positive = max(1, *found) if found else 1
    named = classes[positive] if classes and positive < len(classes) else str(positive)
    plain = found[-1:] == [1] and (not classes or not named.isdigit() or named == "1")
    return positive, () if plain or len(found) < 2 else (f"task.metric: f1 is that of class {named}",)


def _found(parts: Sequence[Examples]) -> list[int]:
    labels = [part.labels for part in parts if isinstance(part.labels, np.ndarray)]
    return np.unique(np.concatenate(labels)).astype(int).tolist() if labels else []


def label_count(kind: TaskType, name: str, classes: Sequence[str] | None, parts: Sequence[Examples]) -> int | None:
    """How many numbers the head answers with; None where it has no classes. Raises UserError for classes that are not numbered from 0."""
    if kind.head not in ("sequence_classification", "image_classification"):
        return None
    if name == "text_regression":
        return 1
    if classes:
        return len(classes)
    found = _found(parts)
    count = max(found, default=0) + 1
    if count > 1000 + 10 * len(found):
        raise UserError(f"task.columns.label: classes run up to {count - 1:,}, but only {len(found):,} occur: number them from 0")
    return count


def _form(name: str) -> str:
    return " ".join(name.split()).casefold()


def notes_on_classes(
    parts: Sequence[Examples], classes: Sequence[str] | None, numbers: Sequence[int] | None = None
) -> tuple[str, ...]:
    """What a user may not have meant: a single class, classes up to the largest number that no example has, and classes that are `numbers`
    which do not begin with 0."""
    found = _found(parts)
    if len(found) == 1:
        name = classes[found[0]] if classes else found[0]
        return (f"task: all examples are of one class ({name}): every model that answers it is right",)
    if numbers:
        told = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
        return (f"task: labels do not begin with 0: the model's {len(numbers)} classes are called {told}",)
    alike = [
        f"{first!r} and {second!r}"
        for first, second in pairwise(sorted(classes or (), key=_form))
        if _form(first) == _form(second)
    ]
    if alike:
        return (f"task: classes that differ only in spaces or capitals are classes of their own: {', '.join(alike[:3])}",)
    missing = sorted(set(range(max(found, default=0))) - set(found)) if not classes else []
    if missing:
        told = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        return (
            f"task: labels run from {found[0]} to {found[-1]}: the model gets {found[-1] + 1} classes, and no example is of {told}; number them from 0",
        )
    return ()
