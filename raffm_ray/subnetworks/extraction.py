"""Extraction: a budget becomes a plan.

`ranked_list` puts the units of every layer into one list by salience per parameter saved; a subnetwork is its longest prefix that
fits, so smaller plans are nested in larger ones; where the units of the residual stream stand in it is a matter of its pace.
`common_rate` cuts all axes by one rate, as width-scaling methods do. Both are answered by a bisection over the closed formulas of
costs.py, so a budget may be in any of their units.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from heapq import heapify, heappop, heappush
from itertools import chain, product
from math import ceil, floor, prod

import numpy as np
from numpy.typing import NDArray

from raffm_ray.axes.dim_sizes import dim_products
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import Layout
from raffm_ray.basics.errors import TooSmallError
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.calibration import rankable
from raffm_ray.subnetworks.costs import Costs, costs_of
from raffm_ray.subnetworks.salience import Orders, Scores

AXIS_KINDS = ("groups", "heads", "qk", "vo", "ffn", "residual", "rank")
"""The kinds of axes that some family has: key/value heads with their query heads, (query) heads, and so on."""
RESIDUAL = "residual"
"""The kind of the one axis that runs through all layers, the embeddings and the head."""


def kind_of(name: str) -> str:
    """`"3/ffn"` -> `"ffn"`: what sort of thing an axis is, whatever its layer."""
    return name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Cutting:
    """Which kinds of axes may be cut, in what steps, and how far.

    `steps`: indices cut together (a kind without a step is never cut). `floors`: the fraction of an axis that always stays, at
    least one step. `pace`: where the ranked list gives up the residual stream. With 0 it waits until all layers are at their floors. Else
    it has given up `pace` s of what is above its floor when layers have given up a share s of what is above their `reserves`: with 1 both
    arrive together. `reserves`: the fraction of a layer's axis that is then given up only when the residual stream is at its floor.
    """

    steps: Mapping[str, int]
    floors: Mapping[str, float]
    reserves: Mapping[str, float] = field(default_factory=dict)
    pace: float = 0.0

    def step(self, name: str, layout: Layout) -> int:
        """The step of an axis, at most its size."""
        return min(self.steps[kind_of(name)], layout.axes[name].size)

    def floor(self, name: str, layout: Layout) -> int:
        """How many indices of an axis always stay: whole steps, at least one."""
        return self._share(self.floors, name, layout)

    def reserve(self, name: str, layout: Layout) -> int:
        """How many indices of an axis stay until the residual stream is at its floor: whole steps, at least its own floor."""
        shares = self.reserves if self.pace else {}
        return max(self.floor(name, layout), self._share(shares, name, layout))

    def _share(self, shares: Mapping[str, float], name: str, layout: Layout) -> int:
        size, step = layout.axes[name].size, self.step(name, layout)
        return min(size, max(1, ceil(shares.get(kind_of(name), 0.0) * size / step)) * step)

    def axes(self, layout: Layout) -> list[str]:
        """The axes that may be cut."""
        return [name for name in rankable(layout) if kind_of(name) in self.steps]


Counts = Mapping[str, int]


def plan_of(counts: Counts, orders: Orders, layout: Layout) -> Plan:
    """Keeps the first `counts[axis]` indices of every order, in ascending index order; whole axes are left out."""
    kept = {
        name: np.sort(np.asarray(orders[name])[..., :count], axis=-1)
        for name, count in counts.items()
        if count < layout.axes[name].size
    }
    return Plan(kept)


def plan_of_rates(rates: Mapping[str, float], orders: Orders, layout: Layout, cutting: Cutting) -> Plan:
    """One rate per kind of axis, rounded down to whole steps and up to the floor: `{"ffn": 0.5, "qk": 0.75}`."""
    counts = {}
    for name in cutting.axes(layout):
        size, step = layout.axes[name].size, cutting.step(name, layout)
        wanted = rates.get(kind_of(name), 1.0) * size
        counts[name] = size if wanted >= size else max(cutting.floor(name, layout), int(wanted / step) * step)
    return plan_of(counts, orders, layout)


@lru_cache(maxsize=32)
def _shares(architecture: Architecture) -> dict[str, list[tuple[int, tuple[str, ...]]]]:
    """For every axis, the products that it is a factor of: what is fixed in them, and their other axes."""
    found: dict[str, dict[tuple[str, ...], int]] = {name: {} for name in architecture.layout.axes}
    for key, spec in architecture.layout.parameters.items():
        fixed = prod(size for size, dim in zip(architecture.shapes[key], spec.dims, strict=True) if not dim)
        for factors in product(*(dim_products(dim) for dim in spec.dims)):
            names = list(chain(*factors))
            for name in set(names):
                others = tuple(sorted(one for one in names if one != name))
                found[name][others] = found[name].get(others, 0) + fixed
    return {name: [(fixed, others) for others, fixed in products.items()] for name, products in found.items()}


def unit_cost(architecture: Architecture, name: str, counts: Counts) -> int:
    """Parameters that one index of an axis removes (in every index of its parent together) when all axes have these counts."""
    return sum(fixed * prod(counts[one] for one in others) for fixed, others in _shares(architecture)[name])


Unit = tuple[str, int]
"""(axis, count reached): what a step of the ranked list adds."""


def ranked_list(architecture: Architecture, scores: Scores, cutting: Cutting) -> list[Unit]:
    """Every unit above the floors, most salient first.

    It is made backwards: from the full model, the step is dropped that loses least salience per parameter that it saves *by then*: a
    head whose query and value sizes are cut saves less than a whole one. What is dropped last stands first. Inside an axis units
    follow its own order. Layers give up what is above their reserves, the residual stream beside them at the cutting's pace, and only
    then the reserves.
    """
    layout = architecture.layout
    names = cutting.axes(layout)
    counts = {name: axis.size for name, axis in layout.axes.items()}
    ordered = {name: -np.sort(-scores[name], axis=-1) for name in names}
    below: dict[str, NDArray[np.float64]] = {
        name: np.concatenate([[0.0], np.cumsum(values.sum(0) if values.ndim == 2 else values)])
        for name, values in ordered.items()
    }

    def next_count(name: str) -> int:
        floor, step = cutting.floor(name, layout), cutting.step(name, layout)
        # Steps are counted from the floor, so the last one of an axis may be shorter.
        return floor + (counts[name] - floor - 1) // step * step

    def entry(position: int) -> tuple[int, float, int]:
        name = names[position]
        start, stop = next_count(name), counts[name]
        lost = float(below[name][stop] - below[name][start])
        stage = 1 if kind_of(name) == RESIDUAL else 0 if start >= cutting.reserve(name, layout) else 2
        return stage, lost / (unit_cost(architecture, name, counts) * (stop - start)), -position

    waiting = [entry(position) for position, name in enumerate(names) if counts[name] > cutting.floor(name, layout)]
    heapify(waiting)
    dropped: list[list[Unit]] = [[], [], []]
    saved: list[int] = []
    while waiting:
        first = heappop(waiting)
        name = names[-first[2]]
        # What others lost since makes a unit cheaper, never dearer, so a stale entry can only stand too early.
        if (now := entry(-first[2])) != first:
            heappush(waiting, now)
            continue
        dropped[now[0]].append((name, counts[name]))
        if now[0] == 0:
            saved.append(unit_cost(architecture, name, counts) * (counts[name] - next_count(name)))
        counts[name] = next_count(name)
        if counts[name] > cutting.floor(name, layout):
            heappush(waiting, entry(-first[2]))
    above, residual, reserved = dropped
    return [*_beside(above, saved, residual, cutting.pace), *reserved][::-1]


def _beside(layers: list[Unit], saved: Sequence[int], residual: list[Unit], pace: float) -> list[Unit]:
    """Units of layers and of the residual stream in the order in which both are dropped. `saved`: parameters of each unit of a layer."""
    merged: list[Unit] = []
    given, total, done = 0, sum(saved), 0
    for unit, parameters in zip(layers, saved, strict=True):
        merged.append(unit)
        given += parameters
        due = floor(min(1.0, pace * given / total) * len(residual))
        merged += residual[done:due]
        done = max(done, due)
    return merged + residual[done:]


def longest(
    lengths: int,
    plan_at: Callable[[int], Plan],
    costs: Callable[[Plan], Costs],
    budget: Budget,
    smallest: str = "the smallest subnetwork",
) -> Plan:
    """Bisection for the longest of the plans 0..`lengths` that the budget allows; costs must not fall with length.

    Raises TooSmallError when not even plan 0, which the message calls `smallest`, is allowed.
    """
    if exceeded := budget.exceeded(costs(plan_at(0))):
        raise TooSmallError(exceeded, smallest)
    low, high = 0, lengths
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if budget.allows(costs(plan_at(middle))) else (low, middle - 1)
    return plan_at(low)


def longest_prefix(
    architecture: Architecture,
    units: list[Unit],
    orders: Orders,
    cutting: Cutting,
    budget: Budget,
    costs: Callable[[Plan], Costs] | None = None,
) -> Plan:
    """The longest prefix of the ranked list that the budget allows. `costs`: of a plan; by default with batches of one example.

    Raises TooSmallError when the budget is below the smallest subnetwork (every axis at its floor).
    """
    layout = architecture.layout
    floors = {name: cutting.floor(name, layout) for name in cutting.axes(layout)}

    def plan_at(length: int) -> Plan:
        return plan_of(floors | dict(units[:length]), orders, layout)

    return longest(len(units), plan_at, costs or partial(costs_of, architecture), budget)


RATE_GRID = 256


def common_rate(
    architecture: Architecture,
    orders: Orders,
    cutting: Cutting,
    budget: Budget,
    costs: Callable[[Plan], Costs] | None = None,
) -> Plan:
    """The largest rate, of a grid of 256, at which cutting every axis alike fits the budget. Raises TooSmallError if none does."""

    def plan_at(length: int) -> Plan:
        kinds = dict.fromkeys(cutting.steps, length / RATE_GRID)
        return plan_of_rates(kinds, orders, architecture.layout, cutting)

    return longest(RATE_GRID, plan_at, costs or partial(costs_of, architecture), budget)
