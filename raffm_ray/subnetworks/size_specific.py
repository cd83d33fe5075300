"""Size-specific parameters: every size has its own copy, such as switchable norms (Yu et al. 2019, section 3).

The flat parameters are the model's, which stay one plain checkpoint, and behind them copies of the size-specific parameters, whole ones, for the
sizes that clients train: copy k for the k-th smallest of them. The largest uses the model's own, 0. A subnetwork uses the copy of the
largest such size that it is not smaller than, or else the smallest's, so sizes that nobody trains have one too. Smaller prefixes that a
client trains share the client's own copy: a device holds one.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.layout import Layout
from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.models.architecture import Architecture


def norms(layout: Layout) -> set[str]:
    """The modules that are norms over the residual stream."""
    return set(layout.norms)


def classifier(layout: Layout) -> set[str]:
    """The linear layers whose output no axis governs: the task's head, with BERT's pooler. An output layer that is an embedding is none."""
    layers = {name.rpartition(".")[0]: spec for name, spec in layout.parameters.items() if spec.matmul}
    return {layer for layer, spec in layers.items() if not spec.dims[1 - spec.reads] and spec.module in (None, layer)}


SIZE_SPECIFIC: dict[str, Callable[[Layout], set[str]]] = {"classifier": classifier, "norms": norms}
"""A kind of `strategy.own` -> the modules whose parameters it names."""


def size_specific_names(layout: Layout, kinds: Sequence[str]) -> tuple[str, ...]:
    """The size-specific parameters, in the model's order: frozen ones are the same in every size. Raises UserError for an unknown kind, or one
    that the model has nothing of, or nothing that is trained."""
    found: set[str] = set()
    for kind in kinds:
        modules = look_up(SIZE_SPECIFIC, kind, "strategy.own")(layout)
        if not modules:
            raise UserError(f"strategy.own: this model has no {kind} whose parameters are nothing else's too")
        own = {name for name, spec in layout.parameters.items() if name.rpartition(".")[0] in modules and not spec.frozen}
        if not own:
            raise UserError(
                f"strategy.own: {kind}: model.freeze names all of their parameters, or model.adapters freezes them: no size can have trained them for itself"
            )
        found |= own
    return tuple(name for name in layout.parameters if name in found)


def copies_of(trained_params: Sequence[int], plan_params: Sequence[int]) -> tuple[int, ...]:
    """Which copy subnetworks of these sizes use; 0 is the model's own. `trained_params`: the sizes that clients train, at least one.

    Of equal sizes it is the copy of the last, so that where all are equal, everybody uses the model's own.
    """
    sizes = sorted(trained_params)
    return tuple(bisect_right(sizes, max(params, sizes[0])) % len(sizes) for params in plan_params)


def with_copies(flat: Tensor, architecture: Architecture, size_specific: Sequence[str], sizes: int) -> Tensor:
    """The flat trained parameters with `sizes` - 1 equal copies of the size-specific ones behind them."""
    named = views(flat, architecture.trained_shapes)
    copy = [named[name].reshape(-1) for name in size_specific]
    return torch.cat([flat, *copy * (sizes - 1)]) if copy and sizes > 1 else flat


def saved_copies(
    flat: Tensor, architecture: Architecture, size_specific: Sequence[str], used: Mapping[str, int]
) -> dict[str, Tensor]:
    """By "device type/parameter", what device types have of their own. `used`: by device type, its copy; one that uses the model's own has nothing."""
    return {
        f"{device}/{name}": views(flat, architecture.trained_shapes, size_specific, copy)[name].clone()
        for device, copy in used.items()
        if copy
        for name in size_specific
    }
