"""Rules that turn a round's weighted sums into new parameters. All arrays are flat, of the trained parameters in the model's order."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan, add_coverage, scatter_add_selected, selected_shape, selection
from raffm_ray.axes.layout import is_kept
from raffm_ray.basics.registry import Table
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.word_rows import word_table

AggregationRule = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(old parameters, sum of weight x change, weight that covers each entry, weight of all clients) -> new parameters."""


def mean_over_coverage(old: Tensor, summed: Tensor, covered: Tensor, total: float) -> Tensor:
    """The weighted mean over the clients that trained an entry; an entry that nobody trained keeps its value.

    With plans that keep everything this is FedAvg (McMahan et al. 2017, algorithm 1); the coverage-aware form is HeteroFL's
    (Diao et al. 2021, eq. 3), with examples as weights.
    """
    return old + torch.where(covered > 0, summed / covered.clamp(min=torch.finfo(covered.dtype).tiny), 0.0)


def mean_over_all(old: Tensor, summed: Tensor, covered: Tensor, total: float) -> Tensor:
    """Divides sums of parameters by the weight of all clients, as RaFFM's published code does.

    Entries that few clients cover shrink towards zero every round; it is here to be compared with.
    """
    return (covered * old + summed) / total


def mean_change_over_all(old: Tensor, summed: Tensor, covered: Tensor, total: float) -> Tensor:
    """The mean change over all clients, 0 for one that did not train an entry: a step of FedAvg along sparse gradients, as of sketches."""
    return old + summed / total


def damped_by_coverage(old: Tensor, summed: Tensor, covered: Tensor, total: float) -> Tensor:
    """The mean over coverage, as a step scaled by the root of the share of weight that covers an entry.

    The mean of few clients' changes is a noisier estimate than that of many: its standard error grows with the inverse root of their
    number. A step shorter by that root carries the same noise everywhere. With plans that keep everything it is FedAvg.
    """
    return old + (mean_over_coverage(old, summed, covered, total) - old) * (covered / total).sqrt()


_RULES = {
    "coverage": mean_over_coverage,
    "damped": damped_by_coverage,
    "all_clients": mean_over_all,
    "all_changes": mean_change_over_all,
}
AGGREGATION_RULES: Table[AggregationRule] = Table("aggregation", _RULES)


def flat_coverage(
    weights: Mapping[int, float],
    plans: Sequence[Plan],
    architecture: Architecture,
    size_specific: Sequence[str] = (),
    copies: Sequence[int] = (),
    length: int | None = None,
    words: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """How much weight trained each entry, flat: one pass for every distinct plan, whatever the number of clients.

    `size_specific`, `copies`: as in a `RoundContext`; `length`: of the flat array, where there are copies; `words`: by plan, the weight that read each
    word, [words], where clients have the rows of their own words alone: these are then covered by it.
    """
    layout, shapes, table = architecture.layout, architecture.trained_shapes, word_table(architecture)
    total = torch.zeros(length or sum(torch.Size(shape).numel() for shape in shapes.values()))
    for number, weight in sorted(weights.items()):
        named = views(total, shapes, size_specific, copies[number] if copies else 0)
        for name in shapes:
            spec = layout.parameters[name]
            if name == table and words is not None:
                chosen = selection(shapes[name], spec.dims, layout.axes, plans[number])
                each = words[number].to(total.dtype)[:, None]
                scatter_add_selected(named[name], each.expand(selected_shape(shapes[name], chosen)), chosen)
            elif is_kept(spec.layer, plans[number]):
                add_coverage(named[name], spec.dims, layout.axes, plans[number], weight)
    return total
