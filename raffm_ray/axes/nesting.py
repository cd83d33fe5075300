"""Nested plans: the layout of a subnetwork, and a smaller plan in its coordinates."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from raffm_ray.axes.indexing import AxisError, Indices, Plan, axis_named, dim_axes, kept_size
from raffm_ray.axes.layout import Layout, is_kept


def within(inner: Plan, outer: Plan, layout: Layout) -> Plan:
    """`inner`, a plan nested in `outer`, in the coordinates of the subnetwork that `outer` cuts.

    `take(take(x, outer), within(inner, outer)) == take(x, inner)`. Layers keep their numbers. Raises AxisError if not nested.
    """
    layer_axes = layout.layer_axes
    specs = [spec for spec in layout.parameters.values() if is_kept(spec.layer, inner)]
    used = {name for spec in specs for dim in spec.dims for name in dim_axes(dim)} | layer_axes
    result: dict[str, Indices] = {}
    for name in sorted({*inner, *outer} & used):
        axis = axis_named(name, layout.axes)
        whole = np.arange(axis.size)
        wanted, present = inner.get(name, whole), outer.get(name, whole)
        if name in layer_axes:
            if not set(wanted) <= set(present):
                raise AxisError(f"axis {name!r}: layers {sorted(set(wanted) - set(present))} are not in the outer plan")
            result[name] = wanted
            continue
        parent = outer.get(axis.parent) if axis.parent else None
        if wanted.ndim == 2 or present.ndim == 2 or (parent is not None):
            rows = np.arange(axis_named(axis.parent, layout.axes).size if axis.parent else 1) if parent is None else parent
            result[name] = np.stack([_positions(_row(wanted, row), _row(present, row), name) for row in rows])
        else:
            result[name] = _positions(wanted, present, name)
    return Plan(result)


def _row(kept: Indices, row: int) -> Indices:
    return np.asarray(kept[row] if kept.ndim == 2 else kept)


def _positions(wanted: Indices, present: Indices, name: str) -> Indices:
    by_value = np.argsort(present, kind="stable")
    found = np.searchsorted(present[by_value], wanted)
    if (found >= len(present)).any() or (present[by_value][np.minimum(found, len(present) - 1)] != wanted).any():
        raise AxisError(f"axis {name!r}: the inner plan keeps indices that the outer one does not")
    return by_value[found]


def bounding(plans: Sequence[Plan], layout: Layout) -> Plan:
    """A plan that these, at least one, are all nested in: it keeps what one of them keeps of every axis. An axis that one of them keeps whole is whole, and so is one
    of which the indices of its parent would keep unequally many."""
    kept: dict[str, Indices] = {}
    for name in sorted(set.intersection(*(set(plan) for plan in plans))):
        found, axis = [plan[name] for plan in plans], layout.axes[name]
        if any(one.ndim == 2 for one in found) and axis.parent:
            rows = [reduce(np.union1d, (_row(one, row) for one in found)) for row in range(layout.axes[axis.parent].size)]
            if len({len(row) for row in rows}) == 1:
                kept[name] = np.stack(rows)
        else:
            kept[name] = reduce(np.union1d, found)
    return Plan({name: indices for name, indices in kept.items() if indices.shape[-1] < layout.axes[name].size})


def cut_layout(layout: Layout, plan: Plan) -> Layout:
    """The layout of the subnetwork itself: the same names, the kept sizes. Layer axes keep their numbers and size."""
    layer_axes = layout.layer_axes
    axes = {
        name: axis if name in layer_axes else replace(axis, size=kept_size(name, layout.axes, plan))
        for name, axis in layout.axes.items()
    }
    present = {name: spec for name, spec in layout.parameters.items() if is_kept(spec.layer, plan)}
    attentions = tuple(site for site in layout.attentions if is_kept(site.layer, plan))
    return Layout(
        axes=axes,
        parameters=present,
        attentions=attentions,
        norms=tuple(name for name in layout.norms if f"{name}.weight" in present),
    )
