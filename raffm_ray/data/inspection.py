"""What is in a data set that nobody has described: its columns, and what each of them may be for."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raffm_ray.data.sources import Rows

MOST_ROWS = 50_000
"""Rows that are looked at."""
MOST_IMAGES = 200
MOST_CLASSES = 100
LEAST_WORDS = 3
"""Of the median text; shorter ones that repeat are names of classes or groups."""
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "rating", "stars", "score", "y")
"""Names of columns that are labels, whatever else is there."""
OWNERS = ("user", "client", "owner", "author", "group", "speaker", "writer", "patient", "device", "customer", "member", "worker")
"""Words in names of columns that say whose a row is."""
INDEX = re.compile(r"Unnamed: \d+|__index_level_\d+__|")
"""Names that pandas gives to the numbers of rows where it writes them."""
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
)
"""Columns of two texts that belong together."""


@dataclass(frozen=True)
class Column:
    """A column of a data set. `kind`: text, category (few values that repeat), number, image, index (rows' numbers that pandas left), or another type by its name; `counts`: of the
    values, the most frequent first, where they are few; `lengths`: words of each text; `size`: pixels of an image's shorter side."""

    name: str
    kind: str
    distinct: int
    missing: int
    counts: Mapping[Any, int]
    lengths: Sequence[int] = ()
    size: int = 0

    def says(self) -> str:
        """What is in it, in a few words."""
        if self.kind == "image":
            return f"{self.size} pixels at the shorter side (median)"
        if self.lengths:
            return f"{self.distinct:,} different, {np.median(self.lengths):.0f} words (median), at most {max(self.lengths)}"
        few = ", ".join(f"{value} {count:,}" for value, count in list(self.counts.items())[:4])
        more = ", ..." if len(self.counts) > 4 else ""
        return f"{self.distinct:,} different: {few}{more}" if self.counts else f"{self.distinct:,} different"


def columns_of(rows: Rows) -> list[Column]:
    """All columns, by the first `MOST_ROWS` rows."""
    import datasets

    table = rows.table.select(range(min(len(rows), MOST_ROWS)))
    return [
        _image(table, name) if isinstance(feature, datasets.Image) else _column(table, name, feature)
        for name, feature in table.features.items()
    ]


def _image(table: Any, name: str) -> Column:
    some = table.select(range(min(len(table), MOST_IMAGES)))[name]
    sizes = [min(image.size) for image in some if image is not None]
    return Column(name=name, kind="image", distinct=len(table), missing=0, counts={}, size=int(np.median(sizes)) if sizes else 0)


def _column(table: Any, name: str, feature: Any) -> Column:
    values = list(table[name])
    if INDEX.fullmatch(name):
        return Column(name=name, kind="index", distinct=len(values), missing=0, counts={})
    there = [value for value in values if value is not None and value != ""]
    if not all(isinstance(value, str | int | float) for value in there):
        return Column(name=name, kind=type(there[0]).__name__, distinct=0, missing=len(values) - len(there), counts={})
    counted = Counter(there)
    names = getattr(feature, "names", None)
    counts = {names[value] if names else value: count for value, count in counted.most_common()}
    repeats = len(counted) <= max(2, len(there) // 2)
    whole = all(isinstance(value, str | int) for value in there)
    texts = there and all(isinstance(value, str) for value in there) and not names
    lengths = [len(str(value).split()) for value in there] if texts else []
    if texts:
        sentences = np.median(lengths) >= LEAST_WORDS and name.lower() not in LABELS
        kind = "text" if sentences or not repeats else "category"
    else:
        kind = "category" if whole and repeats else "number"
    return Column(
        name=name,
        kind=kind,
        distinct=len(counted),
        missing=len(values) - len(there),
        counts=counts if repeats else {},
        lengths=lengths if kind == "text" else (),
    )


def roles_of(columns: Sequence[Column], labelled: bool = True) -> dict[str, str]:
    """Role -> the column that looks like it: image, text and text_pair, label, group, and those of question answering and sequence to
    sequence by their names. `labelled`: whether a column may be the label; one that is named as such is no group either way."""
    named = {column.name.lower(): column.name for column in columns}
    for known in (("question", "context", "answers"), ("source", "target")):
        if set(known) <= set(named):
            roles = {role: named[role] for role in known}
            group = _group(columns, roles) if "answers" not in roles else None  # its contexts are divided into several examples
            return roles | ({"group": group} if group else {})
    found: dict[str, str] = {}
    if images := [column for column in columns if column.kind == "image"]:
        found["image"] = images[0].name
    elif pair := next((pair for pair in PAIRS if set(pair) <= set(named)), None):
        found |= {"text": named[pair[0]], "text_pair": named[pair[1]]}
    elif texts := [column for column in columns if column.kind == "text"]:
        found["text"] = max(texts, key=lambda column: np.mean(column.lengths)).name
    if labelled and (label := _label(columns, found)):
        found["label"] = label
    if group := _group(columns, found):
        found["group"] = group
    return found


def _label(columns: Sequence[Column], found: Mapping[str, str]) -> str | None:
    """By its name, else the category of the fewest values, else the only number that is no whole one."""
    open_ones = [column for column in columns if column.name not in found.values()]
    classes = [column for column in open_ones if column.kind == "category" and 2 <= column.distinct <= MOST_CLASSES]
    by_name = [column for column in open_ones if column.name.lower() in LABELS and (column in classes or column.kind == "number")]
    unowned = [column for column in classes if not _is_owner(column.name)]
    if by_name or unowned:
        return (by_name or sorted(unowned, key=lambda column: column.distinct))[0].name
    numbers = [column for column in open_ones if column.kind == "number"]
    return numbers[0].name if len(numbers) == 1 else None


def _is_owner(name: str) -> bool:
    return any(word in name.lower() for word in OWNERS)


def _group(columns: Sequence[Column], found: Mapping[str, str]) -> str | None:
    """A category whose name says whose a row is, else one of texts with many values."""
    open_ones = [
        column
        for column in columns
        if column.name not in found.values()
        and column.name.lower() not in LABELS
        and column.kind == "category"
        and column.distinct > 1
    ]
    named = [column for column in open_ones if _is_owner(column.name)]
    many = [column for column in open_ones if column.distinct >= 4 and all(isinstance(value, str) for value in column.counts)]
    return max(named or many, key=lambda column: column.distinct).name if named or many else None


def task_of(roles: Mapping[str, str], columns: Sequence[Column]) -> str | None:
    """The kind of task that roles are of, None where they are of none."""
    kinds = {column.name: column.kind for column in columns}
    if "answers" in roles:
        return "question_answering"
    if "source" in roles:
        return "sequence_to_sequence"
    if "image" in roles:
        return "image_classification" if "label" in roles else None
    if "text" in roles and "label" in roles:
        return "text_regression" if kinds[roles["label"]] == "number" else "text_classification"
    return "language_modelling" if "text" in roles else None
