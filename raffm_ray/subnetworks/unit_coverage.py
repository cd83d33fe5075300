"""Which heads, neurons and residual units each device type keeps, and how often each was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raffm_ray.axes.indexing import Axes, Plan, dim_axes
from raffm_ray.axes.layout import Layout, is_kept
from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.files import read_whole, write_atomically

Reached = Mapping[str, NDArray[np.float64]]
"""By axis, of every unit the weight of the updates whose own plan kept it, [size]."""


def countable(axes: Axes) -> list[str]:
    """The axes whose units are counted: those that can be cut and are not nested in another, whose units differ by their parent's."""
    return [name for name, axis in axes.items() if axis.ranked and not axis.fixed and axis.parent is None and axis.size > 1]


def kept_units(layout: Layout, plan: Plan) -> dict[str, NDArray[np.bool_]]:
    """By countable axis, whether a plan keeps each unit, [size]; none of a layer that it drops."""
    found = {}
    left = [spec for spec in layout.parameters.values() if is_kept(spec.layer, plan)]
    used = {name for spec in left for dim in spec.dims for name in dim_axes(dim)} | layout.layer_axes
    for name in countable(layout.axes):
        kept = np.zeros(layout.axes[name].size, dtype=bool)
        if name in used:
            kept[plan[name] if name in plan else slice(None)] = True
        found[name] = kept
    return found


def add_reached(reached: Reached, weights: Mapping[int, float], plans: Sequence[Plan], layout: Layout) -> Reached:
    """`reached` with a round's updates: `weights` by position in `plans`. Pure."""
    added = {name: np.zeros(layout.axes[name].size) + reached.get(name, 0.0) for name in countable(layout.axes)}
    for number, weight in weights.items():
        for name, kept in kept_units(layout, plans[number]).items():
            added[name] += weight * kept
    return added


@dataclass(frozen=True)
class Units:
    """The units of one axis. `reached`: the part of all training that reached each, [size]; `kept`: by device type, weakest first,
    whether it keeps it, [size]."""

    axis: str
    reached: NDArray[np.float64]
    kept: Mapping[str, NDArray[np.bool_]]


def units_of(layout: Layout, reached: Reached, weight: float, plans: Mapping[str, Plan]) -> list[Units]:
    """Every countable axis. `weight`: of all updates together; `plans`: by device type."""
    kept = {device: kept_units(layout, plan) for device, plan in plans.items()}
    return [
        Units(
            name,
            reached.get(name, np.zeros(layout.axes[name].size)) / (weight or 1.0),
            {device: units[name] for device, units in kept.items()},
        )
        for name in countable(layout.axes)
    ]


def write_units(path: Path, units: Sequence[Units]) -> None:
    """One row a unit: axis, unit, reached, and a column `kept_<device>` for every device type. Raises UserError where it cannot be written."""
    columns: dict[str, list[object]] = {"axis": [], "unit": [], "reached": []}
    for one in units:
        size = len(one.reached)
        columns["axis"] += [one.axis] * size
        columns["unit"] += range(size)
        columns["reached"] += one.reached.tolist()
        for device, kept in one.kept.items():
            columns.setdefault(f"kept_{device}", []).extend(kept.tolist())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, write_page_checksum=True)
    try:
        write_atomically(path, bytes(sink.getvalue().to_pybytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def read_units(path: Path) -> list[Units]:
    """What `write_units` wrote. Raises UserError for anything else."""
    try:
        table = pq.ParquetFile(BytesIO(read_whole(path)), page_checksum_verification=True).read().to_pydict()
        axes = np.array(table.pop("axis"), dtype=str)
        table.pop("unit")
        reached = np.array(table.pop("reached"), dtype=np.float64)
        kept = {name.removeprefix("kept_"): np.array(values, dtype=bool) for name, values in table.items()}
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged or not a record of units: {in_short(error)}") from None
    return [
        Units(axis, reached[axes == axis], {name: values[axes == axis] for name, values in kept.items()})
        for axis in dict.fromkeys(axes.tolist())
    ]
