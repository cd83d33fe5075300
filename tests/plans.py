"""Plans for tests: legal orders, legal cuts, and a mask that says what a cut removes."""

from collections.abc import Mapping

import numpy as np
import torch

from raffm_ray.axes import Indices, Layout, Plan, coverage, is_kept
from raffm_ray.extraction import kind_of


def legal_order(
    layout: Layout, rng: np.random.Generator, kinds: tuple[str, ...] = ("heads", "qk", "vo", "ffn", "residual")
) -> Plan:
    """Every index of every axis of these kinds, in a random order; nested axes in one order per parent."""
    kept: dict[str, Indices] = {}
    for name, axis in layout.axes.items():
        if kind_of(name) in kinds:
            rows = layout.axes[axis.parent].size if axis.parent else 0
            kept[name] = np.stack([rng.permutation(axis.size) for _ in range(rows)]) if rows else rng.permutation(axis.size)
    return Plan(kept)


def random_cut(layout: Layout, rng: np.random.Generator, kinds: tuple[str, ...], layers: bool = False) -> Plan:
    """Keeps a random part of every axis of these kinds (between one index and all), different for every axis."""
    order = legal_order(layout, rng, kinds)
    kept = {name: np.asarray(full[..., : rng.integers(1, full.shape[-1] + 1)]) for name, full in order.items()}
    if layers:
        size = layout.axes["layers"].size
        kept["layers"] = np.sort(rng.permutation(size)[: rng.integers(1, size + 1)])
        kept = {name: value for name, value in kept.items() if "/" not in name or int(name.split("/")[0]) in kept["layers"]}
    return Plan(kept)


def masks(layout: Layout, shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> dict[str, torch.Tensor]:
    """1 where the plan keeps an entry, 0 elsewhere, full size."""
    return {
        name: coverage(shapes[name], spec.dims, layout.axes, plan) if is_kept(spec.layer, plan) else torch.zeros(shapes[name])
        for name, spec in layout.parameters.items()
    }
