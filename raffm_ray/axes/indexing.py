"""Names for a model's dimensions, and the only two functions that touch indices.

A parameter's dimensions are described by named *axes*; a subnetwork is a *plan*: a set of kept indices per axis. `take`
cuts a subnetwork's tensor out of the full one, `scatter_add` adds it back. They know no architecture.

A *dim* describes one position of a tensor's shape:

- `()`: governed by no axis, always whole;
- `("3/heads", "3/qk")`: the product of axes, outer first, so the index is `head * size(3/qk) + qk`;
- `(("3/heads", "3/qk"), ("3/heads", "3/vo"))`: products one after the other, as in a fused projection.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Dim = tuple["str | Dim", ...]
Dims = tuple[Dim, ...]
Indices = NDArray[np.int64]


class AxisError(ValueError):
    """An index, an axis or a shape that does not fit; says which axis, what it got and what was expected."""


@dataclass(frozen=True)
class Axis:
    """A named, countable thing in the model; a `fixed` one is always whole and in order; one that is not `ranked` has no units that a budget buys.

    `parent` names the axis it is nested in (`3/qk` in `3/heads`): its kept indices may then differ for every index of the
    parent, which must stand outside it in the same dim.
    """

    name: str
    size: int
    parent: str | None = None
    fixed: bool = False
    ranked: bool = True


Axes = Mapping[str, Axis]


class Plan(Mapping[str, Indices]):
    """The indices kept per axis; an absent axis is kept whole. Immutable, comparable and hashable by content.

    A value has shape [k], or [parent size, k] for a nested axis: one row of kept indices for every index of its parent.
    """

    def __init__(self, kept: Mapping[str, ArrayLike] | None = None) -> None:
        arrays = {}
        for name, value in sorted((kept or {}).items()):
            array = np.array(value, dtype=np.int64)
            array.setflags(write=False)
            if array.ndim not in (1, 2) or array.shape[-1] == 0:
                raise AxisError(f"axis {name!r}: expected kept indices of shape [k] or [parent, k] with k > 0, got {array.shape}")
            arrays[name] = array
        self._kept = MappingProxyType(arrays)
        digest = sha256()
        for name, array in arrays.items():
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.tobytes())
        self.key = digest.hexdigest()[:16]

    def __getitem__(self, name: str) -> Indices:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.key == other.key

    def __repr__(self) -> str:
        return f"Plan({', '.join(f'{name}: {array.shape[-1]}' for name, array in self._kept.items())})"

    def __reduce__(self) -> tuple[type["Plan"], tuple[dict[str, Indices]]]:
        return Plan, (dict(self._kept),)


def _is_fused(dim: Dim) -> bool:
    return bool(dim) and not isinstance(dim[0], str)


def dim_axes(dim: Dim) -> list[str]:
    """The names of the axes of a dim, outer first, parts of a fused one after the other."""
    return [name for part in dim for name in ([part] if isinstance(part, str) else dim_axes(part))]


def dim_size(dim: Dim, axes: Axes) -> int:
    """The full length of a dim."""
    if _is_fused(dim):
        return sum(dim_size(part, axes) for part in dim if not isinstance(part, str))
    return prod(axis_named(name, axes).size for name in dim_axes(dim))


def axis_named(name: str, axes: Axes) -> Axis:
    """The axis of that name. Raises AxisError with the known names."""
    if name not in axes:
        raise AxisError(f"axis {name!r} is not one of this model's: {', '.join(axes)}")
    return axes[name]


def check_plan(plan: Plan, axes: Axes) -> None:
    """Raises AxisError unless every kept index of the plan exists, once, and rows are only given to nested axes."""
    for name, kept in plan.items():
        axis = axis_named(name, axes)
        if axis.fixed:
            raise AxisError(f"axis {name!r} is fixed: expected it in no plan, got {kept.shape}")
        if kept.ndim == 2:
            if axis.parent is None:
                raise AxisError(f"axis {name!r}: expected kept indices of shape [k] (it is nested in none), got {kept.shape}")
            rows = axis_named(axis.parent, axes).size
            if kept.shape[0] != rows:
                raise AxisError(f"axis {name!r}: expected one row for each of {rows} {axis.parent!r}, got {kept.shape[0]}")
        if kept.min() < 0 or kept.max() >= axis.size:
            raise AxisError(f"axis {name!r}: expected indices in 0..{axis.size - 1}, got {kept.min()}..{kept.max()}")
        ordered = np.sort(kept, axis=-1)
        if (ordered[..., 1:] == ordered[..., :-1]).any():
            raise AxisError(f"axis {name!r}: expected every index once, got repeated ones")


def kept_size(name: str, axes: Axes, plan: Plan) -> int:
    """How many indices of an axis the plan keeps (per index of its parent, if nested)."""
    return int(plan[name].shape[-1]) if name in plan else axis_named(name, axes).size


def dim_indices(dim: Dim, axes: Axes, plan: Plan) -> Indices | None:
    """The flat indices of a dim that the plan keeps, in the plan's order; None when nothing is cut or moved."""
    if not any(name in plan for name in dim_axes(dim)):
        return None
    if _is_fused(dim):
        offset, parts = 0, []
        for part in dim:
            assert not isinstance(part, str)
            size = dim_size(part, axes)
            kept = dim_indices(part, axes, plan)
            parts.append(offset + (np.arange(size) if kept is None else kept))
            offset += size
        return np.concatenate(parts)
    flat = np.zeros(1, dtype=np.int64)
    at: dict[str, Indices] = {}
    for name in dim_axes(dim):
        axis = axis_named(name, axes)
        kept = plan.get(name)
        kept = np.arange(axis.size) if kept is None else kept
        if kept.ndim == 2:
            if axis.parent not in at:
                raise AxisError(f"axis {name!r}: expected its parent {axis.parent!r} outside it in dim {dim}")
            rows = kept[at[axis.parent]]
        else:
            rows = np.broadcast_to(kept, (len(flat), len(kept)))
        count = rows.shape[1]
        flat = (flat[:, None] * axis.size + rows).reshape(-1)
        at = {outer: np.repeat(index, count) for outer, index in at.items()}
        at[name] = rows.reshape(-1)
    return flat


Selection = tuple[Tensor | None, ...]
"""For every position of a shape, the kept indices, or None where all are kept in order."""
Selections = Mapping[str, Selection]


def selection(shape: Iterable[int], dims: Dims, axes: Axes, plan: Plan) -> Selection:
    """What `take` reads and `scatter_add` writes. Raises AxisError when the shape is not that of the dims."""
    shape = tuple(shape)
    if len(shape) != len(dims):
        raise AxisError(f"expected a tensor of {len(dims)} dims ({dims}), got shape {shape}")
    result: list[Tensor | None] = []
    for size, dim in zip(shape, dims, strict=True):
        if dim and dim_size(dim, axes) != size:
            raise AxisError(f"dim {dim}: expected length {dim_size(dim, axes)}, got {size} in shape {shape}")
        kept = dim_indices(dim, axes, plan)
        result.append(None if kept is None else torch.from_numpy(kept))
    return tuple(result)


def selected_shape(shape: Iterable[int], selected: Selection) -> tuple[int, ...]:
    """The shape of what `take` reads of a tensor of that shape."""
    return tuple(size if index is None else len(index) for size, index in zip(shape, selected, strict=True))


def take(parameter: Tensor, dims: Dims, axes: Axes, plan: Plan) -> Tensor:
    """Cuts the plan's part out of a tensor. Differentiable; shares memory with the input when nothing is cut.

    Raises AxisError when the shape is not that of the dims, or an axis is not known.
    """
    return take_selected(parameter, selection(parameter.shape, dims, axes, plan))


def take_selected(parameter: Tensor, selected: Selection) -> Tensor:
    """`take` for a selection computed before."""
    for position, index in enumerate(selected):
        if index is not None:
            parameter = parameter.index_select(position, index.to(parameter.device))
    return parameter


def scatter_add(total: Tensor, part: Tensor, dims: Dims, axes: Axes, plan: Plan, weight: float = 1.0) -> Tensor:
    """Adds `weight * part` to `total` where `take` would have read it, in place; returns `total`. The adjoint of `take`.

    Raises AxisError when `total` is not of the dims' shape or `part` not of the plan's.
    """
    selected = selection(total.shape, dims, axes, plan)
    expected = selected_shape(total.shape, selected)
    if tuple(part.shape) != expected:
        raise AxisError(f"dims {dims}: expected a part of shape {expected} for {plan}, got {tuple(part.shape)}")
    return scatter_add_selected(total, part, selected, weight)


def scatter_add_selected(total: Tensor, part: Tensor, selected: Selection, weight: float = 1.0) -> Tensor:
    """`scatter_add` for a selection computed before."""
    scaled = part.to(total.dtype) * weight if weight != 1.0 else part.to(total.dtype)
    _add_at(total, scaled, [(position, index.to(total.device)) for position, index in enumerate(selected) if index is not None])
    return total


def _add_at(total: Tensor, part: Tensor, where: list[tuple[int, Tensor]]) -> None:
    if not where:
        total.add_(part)
    elif len(where) == 1:
        total.index_add_(where[0][0], where[0][1], part)
    else:
        (position, index), *rest = where
        rows = total.index_select(position, index)
        _add_at(rows, part, rest)
        total.index_copy_(position, index, rows)


def coverage(shape: Iterable[int], dims: Dims, axes: Axes, plan: Plan, weight: float = 1.0) -> Tensor:
    """A float32 tensor of that shape: `weight` where the plan keeps an entry, 0 elsewhere."""
    return add_coverage(torch.zeros(tuple(shape)), dims, axes, plan, weight)


def add_coverage(total: Tensor, dims: Dims, axes: Axes, plan: Plan, weight: float = 1.0) -> Tensor:
    """Adds `weight` where the plan keeps an entry, in place; returns `total`."""
    selected = selection(total.shape, dims, axes, plan)
    return scatter_add_selected(total, torch.tensor(weight).expand(selected_shape(total.shape, selected)), selected)
