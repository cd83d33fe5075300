"""Nested dataclasses as plain JSON and named arrays, and back by their annotations alone: no file ever says what code to run."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.axes.indexing import Plan

Arrays = dict[str, NDArray[Any]]
ARRAY = "array"
"""The key of a reference to an array, by its name."""


def pack(value: Any) -> tuple[Any, Arrays]:
    """A value of dataclasses, mappings by name, tuples, numbers, texts, plans, arrays and tensors on the CPU as JSON that has no NaN, and
    the arrays that it refers to, named by their places.

    What is in several places is the same object in them again after `unpack`. Raises TypeError for anything else.
    """
    arrays: Arrays = {}
    names: dict[int, str] = {}

    def plain(value: Any, place: str) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            if id(value) not in names:
                names[id(value)] = place
                arrays[place] = value.numpy() if isinstance(value, Tensor) else value
            return {ARRAY: names[id(value)]}
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not isfinite(value):
            return str(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if is_dataclass(value):
            return {one.name: plain(getattr(value, one.name), _inside(place, one.name)) for one in fields(value)}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: plain(inner, _inside(place, key)) for key, inner in value.items()}
        if isinstance(value, tuple | list):
            return [plain(inner, _inside(place, str(position))) for position, inner in enumerate(value)]
        raise TypeError(f"{place}: {type(value).__name__} is neither plain nor an array")

    return plain(value, ""), arrays


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def unpack(hint: Any, value: Any, arrays: Mapping[str, Tensor]) -> Any:
    """The value of an annotation that was packed so. Raises TypeError, KeyError or ValueError for what is not of it."""
    kind: Any = get_origin(hint) or hint
    if kind is UnionType:
        if value is None and NoneType in get_args(hint):
            return None
        (inner,) = (one for one in get_args(hint) if one is not NoneType)
        return unpack(inner, value, arrays)
    if kind in (Tensor, np.ndarray):
        found = arrays[value[ARRAY]]
        return found if kind is Tensor else found.numpy()
    if kind is Plan:
        return Plan({name: arrays[one[ARRAY]].numpy() for name, one in value.items()})
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        optional = {one.name for one in fields(kind) if one.default is not MISSING}  # a field that is newer than the checkpoint
        if not set(hints) - optional <= set(value) <= set(hints):
            raise ValueError(f"{kind.__name__} has other fields: {sorted(set(value) ^ set(hints))}")
        return kind(**{name: unpack(hints[name], inner, arrays) for name, inner in value.items()})
    if kind in (dict, Mapping):
        return {key: unpack(get_args(hint)[1], inner, arrays) for key, inner in value.items()}
    if kind is tuple:
        *inside, last = get_args(hint)
        hints_inside = [inside[0]] * len(value) if last is Ellipsis else [*inside, last]
        return tuple(unpack(one, inner, arrays) for one, inner in zip(hints_inside, value, strict=True))
    if kind is float and isinstance(value, str):
        return float(value)
    if not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value
