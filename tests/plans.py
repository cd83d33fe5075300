"""Plans for tests: legal orders, legal cuts, and a mask that says what a cut removes."""

from collections.abc import Mapping

import numpy as np
import torch

from raffm_ray.axes.indexing import Indices, Plan, coverage, dim_axes
from raffm_ray.axes.layout import Layout, is_kept
from raffm_ray.subnetworks.extraction import kind_of


def legal_order(
    layout: Layout, rng: np.random.Generator, kinds: tuple[str, ...] = ("groups", "heads", "qk", "vo", "ffn", "residual")
) -> Plan:
    """Every index of every axis of these kinds, in a random order; nested axes in one order per parent."""
    kept: dict[str, Indices] = {}
    for name, axis in layout.axes.items():
        if kind_of(name) in kinds:
            rows = layout.axes[axis.parent].size if axis.parent else 0
            kept[name] = np.stack([rng.permutation(axis.size) for _ in range(rows)]) if rows else rng.permutation(axis.size)
    return Plan(kept)


def random_cut(layout: Layout, rng: np.random.Generator, kinds: tuple[str, ...], layers: bool = False) -> Plan:
    """Keeps a random part of every axis of these kinds (between one index and all), different for every axis.

    With `layers`, of every stack too, and of what is left only.
    """
    order = legal_order(layout, rng, kinds)
    kept = {name: np.asarray(full[..., : rng.integers(1, full.shape[-1] + 1)]) for name, full in order.items()}
    if layers:
        dropped: set[tuple[str, int]] = set()
        for axis in sorted(layout.layer_axes):
            can_go = sorted({spec.layer[1] for spec in layout.parameters.values() if spec.layer and spec.layer[0] == axis})
            size = layout.axes[axis].size
            fewest = int(len(can_go) == size)  # a stack whose first layer cannot go may lose all others
            staying = rng.permutation(can_go)[: rng.integers(fewest, len(can_go) + 1)]
            kept[axis] = np.array(sorted({*range(size)} - {*can_go} | {*staying}))
            dropped |= {(axis, index) for index in can_go if index not in staying}
        left = [spec for spec in layout.parameters.values() if spec.layer not in dropped]
        used = {name for spec in left for dim in spec.dims for name in dim_axes(dim)} | layout.layer_axes
        kept = {name: value for name, value in kept.items() if name in used}
    return Plan(kept)


def masks(layout: Layout, shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> dict[str, torch.Tensor]:
    """1 where the plan keeps an entry, 0 elsewhere, full size."""
    return {
        name: coverage(shapes[name], spec.dims, layout.axes, plan) if is_kept(spec.layer, plan) else torch.zeros(shapes[name])
        for name, spec in layout.parameters.items()
    }
