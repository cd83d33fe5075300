"""Salience: scores of units from weights and calibration sums, and their order.

A *score* says how much a unit of an axis matters: one number per index, shape [size], or [parent size, size] for a nested axis.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.axes.indexing import Indices, dim_axes
from raffm_ray.axes.layout import Layout
from raffm_ray.basics.registry import Table
from raffm_ray.subnetworks.calibration import Statistics, rankable, sites, unit_sums

Parameters = Mapping[str, Tensor]
Scores = Mapping[str, NDArray[np.float64]]
Orders = Mapping[str, Indices]


@dataclass(frozen=True)
class Metric:
    """A row of `METRICS`. `statistic`: which sums it needs, None for metrics of the weights alone."""

    score: Callable[[Layout, Parameters, Statistics, np.random.Generator], Scores]
    statistic: str | None = None


def _weight_sums(layout: Layout, parameters: Parameters, function: Callable[[Tensor], Tensor]) -> dict[str, NDArray[np.float64]]:
    scores: dict[str, NDArray[np.float64]] = {}
    for name in rankable(layout):
        parts = [
            unit_sums(function(parameters[key].detach().double()), spec.dims, name, layout)
            for key, spec in layout.parameters.items()
            if any(name in dim_axes(dim) for dim in spec.dims)
        ]
        scores[name] = torch.stack([part.cpu() for part in parts]).sum(0).numpy()
    return scores


def l1(layout: Layout, parameters: Parameters, statistics: Statistics, rng: np.random.Generator) -> Scores:
    """Sum of |w| over all parameters of a unit: RaFFM's own salience (arXiv 2310.00247, section 3.2)."""
    return _weight_sums(layout, parameters, torch.abs)


def l2(layout: Layout, parameters: Parameters, statistics: Statistics, rng: np.random.Generator) -> Scores:
    """Euclidean norm of all weights of a unit."""
    return {name: np.sqrt(score) for name, score in _weight_sums(layout, parameters, torch.square).items()}


def l2_product(layout: Layout, parameters: Parameters, statistics: Statistics, rng: np.random.Generator) -> Scores:
    """Product over its parameters of the Euclidean norm of a unit's weights: of an adapter's rank, the norm of what it adds, |b a'| = |b| |a|."""
    scores: dict[str, NDArray[np.float64]] = {}
    for name in rankable(layout):
        norms = [
            unit_sums(parameters[key].detach().double().square(), spec.dims, name, layout).sqrt().cpu()
            for key, spec in layout.parameters.items()
            if any(name in dim_axes(dim) for dim in spec.dims)
        ]
        scores[name] = torch.stack(norms).prod(0).numpy()
    return scores


def random(layout: Layout, parameters: Parameters, statistics: Statistics, rng: np.random.Generator) -> Scores:
    """Uniform noise: what any metric has to beat."""
    shapes = {
        name: (layout.axes[axis.parent].size, axis.size) if (axis := layout.axes[name]).parent else (axis.size,)
        for name in rankable(layout)
    }
    return {name: rng.random(shape) for name, shape in shapes.items()}


def activation(layout: Layout, parameters: Parameters, statistics: Statistics, rng: np.random.Generator) -> Scores:
    """|W| times the norm of its input, summed over the weights that read a unit, each with its own input (Wanda: Sun et al. 2024, eq. 1).

    Where no linear layer reads the axis, the product of the norms of its writers' outputs (query and key): how much the unit can
    contribute to a score.
    """
    scores: dict[str, NDArray[np.float64]] = {}
    for name in rankable(layout):
        measured = sites(layout, name)
        norms = [statistics[f"{name}@{site.name}"].sqrt() for site in measured]
        if measured[0].side == "output":
            scores[name] = torch.stack(norms).prod(0).numpy()
            continue
        total = torch.zeros_like(norms[0])
        for site, norm in zip(measured, norms, strict=True):
            reading = ((), site.dim) if layout.parameters[site.parameter].reads == 1 else (site.dim, ())
            total += norm * unit_sums(parameters[site.parameter].detach().double().abs().cpu(), reading, name, layout)
        scores[name] = total.numpy()
    return scores


def _mean(layout: Layout, parameters: Parameters, statistics: Statistics, rng: np.random.Generator) -> Scores:
    return {name: (statistics[name] / statistics["examples"]).numpy() for name in rankable(layout)}


_METRICS = {
    "l1": Metric(l1),
    "l2": Metric(l2),
    "l2_product": Metric(l2_product),
    "random": Metric(random),
    "activation": Metric(activation, statistic="square"),
    "taylor": Metric(_mean, statistic="taylor"),
    "fisher": Metric(_mean, statistic="fisher"),
    "outputs": Metric(_mean, statistic="outputs"),
}
METRICS: Table[Metric] = Table("salience", _METRICS)


def identity_orders(layout: Layout) -> Orders:
    """Every axis in its own order: the plain prefix."""
    return {name: np.arange(layout.axes[name].size) for name in rankable(layout)}


def rank(scores: Scores) -> Orders:
    """Indices from most to least salient, ties by index; nested axes rank inside every index of their parent."""
    return {name: np.argsort(-score, axis=-1, kind="stable") for name, score in scores.items()}
