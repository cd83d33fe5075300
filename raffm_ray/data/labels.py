"""Labels of a data set: how many classes they are of, and what is odd about them."""

from collections.abc import Sequence

import numpy as np

from raffm_ray.basics.errors import UserError
from raffm_ray.data.examples import Examples
from raffm_ray.data.task_types import TaskType


def labels_beyond_two(*parts: Examples) -> bool:
    """Whether some class is not 0 or 1."""
    return any(isinstance(part.labels, np.ndarray) and bool((part.labels > 1).any()) for part in parts)


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


def notes_on_classes(parts: Sequence[Examples], classes: Sequence[str] | None) -> tuple[str, ...]:
    """What a user may not have meant: a single class, and classes up to the largest number that no example has."""
    found = _found(parts)
    if len(found) == 1:
        name = classes[found[0]] if classes else found[0]
        return (f"task: all examples are of one class ({name}): every model that answers it is right",)
    missing = sorted(set(range(max(found, default=0))) - set(found)) if not classes else []
    if missing:
        told = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        return (
            f"task: labels run from {found[0]} to {found[-1]}: the model gets {found[-1] + 1} classes, and no example is of {told}; number them from 0",
        )
    return ()
