"""Calibration: sums over examples, of activations and their gradients, that metrics of salience need.

A *statistic* is what a client adds up over its own examples and the server adds over clients; examples never travel. Where a
unit's activation is measured follows from the layout alone: at the input of every linear layer that reads the axis, or, when
none does (query and key sizes), at the output of those that write it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raffm_ray.axes.dim_sizes import dim_products
from raffm_ray.axes.indexing import Dim, dim_axes, dim_size
from raffm_ray.axes.layout import Layout, module_of
from raffm_ray.basics.errors import UserError
from raffm_ray.models.adapters.lora import rank_axis
from raffm_ray.models.hooks import mask_for
from raffm_ray.models.objectives import Objective

Statistics = Mapping[str, Tensor]
"""Sums over examples, float64, by key: an axis, or `axis@site` where several sites are measured; `examples` counts."""


def unit_sums(values: Tensor, dims: tuple[Dim, ...], name: str, layout: Layout, batched: bool = False) -> Tensor:
    """Sums a tensor over everything but an axis and the axis it is nested in.

    Result: [size] or [parent size, size]; with `batched`, the first dim of `values` is kept in front.
    """
    axis = layout.axes[name]
    wanted = [axis.parent, name] if axis.parent else [name]
    start = 1 if batched else 0
    for position, dim in enumerate(dims[start:], start):
        if name not in dim_axes(dim):
            continue
        if dim and not isinstance(dim[0], str):
            pieces = values.split([dim_size(part, layout.axes) for part in dim if not isinstance(part, str)], dim=position)
            parts = [part for part in dim if not isinstance(part, str) and name in dim_axes(part)]
            chosen = [
                piece for piece, part in zip(pieces, dim, strict=True) if not isinstance(part, str) and name in dim_axes(part)
            ]
            replaced = [tuple(part if at == position else other for at, other in enumerate(dims)) for part in parts]
            return torch.stack([unit_sums(p, d, name, layout, batched) for p, d in zip(chosen, replaced, strict=True)]).sum(0)
        inside = dim_axes(dim)
        sizes = [layout.axes[part].size for part in inside]
        values = values.unflatten(position, sizes)
        kept = {position + inside.index(part) for part in wanted if part in inside}
        others = [at for at in range(start, values.ndim) if at not in kept]
        return values.sum(others) if others else values
    raise UserError(f"axis {name!r} is in none of the dims {dims}")


def rankable(layout: Layout) -> list[str]:
    """The axes whose units can be ranked: all but the layers themselves, what is fixed, and the words that texts choose."""
    return [name for name, axis in layout.axes.items() if name not in layout.layer_axes and axis.ranked and not axis.fixed]


@dataclass(frozen=True)
class Site:
    """Where the units of an axis are measured: at the input or output of the module that multiplies by a parameter.

    `dim`: what its numbers are; of a fused projection's output, those from `start` on.
    """

    module: str
    side: str
    parameter: str
    dim: Dim
    start: int = 0

    @property
    def name(self) -> str:
        """A name of its own for every site."""
        return f"{self.module}+{self.start}" if self.start else self.module


def sites(layout: Layout, name: str) -> list[Site]:
    """Where the units of an axis are measured, in the model's order; every part of a fused projection is a site. Adapters measure their
    ranks only: elsewhere they read what their module reads, and add to what it makes."""
    readers, writers = [], []
    for key, spec in layout.parameters.items():
        own = spec.adapts is None or name == rank_axis(module_of(spec.adapts))
        if not spec.matmul or len(spec.dims) != 2 or not own:
            continue
        module, start = spec.module or key.removesuffix(".weight"), 0
        if name in dim_axes(spec.dims[spec.reads]):
            readers.append(Site(module=module, side="input", parameter=key, dim=spec.dims[spec.reads]))
        for part in dim_products(spec.dims[1 - spec.reads]):
            if name in part:
                writers.append(Site(module=module, side="output", parameter=key, dim=part, start=start))
            start += dim_size(part, layout.axes)
    return readers or writers


@dataclass(frozen=True)
class Statistic:
    """A row of `STATISTICS`. `of`: what is differentiated by the activations, None for their squares; `function`: of an example's sum."""

    of: Literal["loss", "outputs"] | None
    function: Callable[[Tensor], Tensor]


STATISTICS: dict[str, Statistic] = {
    "square": Statistic(None, lambda sums: sums),
    "taylor": Statistic("loss", torch.abs),
    "fisher": Statistic("loss", torch.square),
    "outputs": Statistic("outputs", torch.square),
}


class _Recorder:
    """Hooks on a model that catch activations h (and their gradients g) at the sites of every axis."""

    def __init__(self, model: nn.Module, layout: Layout, statistic: str) -> None:
        self.layout, self.gradient = layout, STATISTICS[statistic].of is not None
        self.batch: dict[str, Tensor] = {}
        self.inputs: Mapping[str, Tensor] = {}
        self.seen: dict[str, list[Tensor]] = {}
        self.handles = []
        for name in rankable(layout):
            measured = sites(layout, name)
            if self.gradient and measured and measured[0].side == "output":
                measured = measured[:1]  # q . dL/dq and k . dL/dk are the same number
            for site in measured:
                key = name if self.gradient else f"{name}@{site.name}"
                self.handles.append(self._hook(model.get_submodule(site.module), site, name, key))

    def _hook(self, module: nn.Module, site: Site, name: str, key: str) -> torch.utils.hooks.RemovableHandle:
        def catch(states: Tensor) -> None:
            stop = site.start + dim_size(site.dim, self.layout.axes)
            if self.gradient:
                # A hook that held its own tensor would keep it, and the whole graph, for ever.
                values = states.detach()
                states.register_hook(lambda grad: add(values * grad, stop))
            else:
                add(states.detach().square(), stop)

        def add(values: Tensor, stop: int) -> None:
            mask = mask_for(values, self.inputs, self.layout.parameters[site.parameter].matmul)
            values = values if mask is None else values * mask[..., None]
            self._add(key, values[..., site.start : stop], site.dim, name)

        def catch_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # One tensor read by several projections is one activation, of which each has the same norm.
            if not self.gradient:
                catch(inputs[0])
            elif not any(inputs[0] is other for other in self.seen.setdefault(name, [])):
                self.seen[name].append(inputs[0])
                catch(inputs[0])

        if site.side == "input":
            return module.register_forward_pre_hook(catch_input)
        return module.register_forward_hook(lambda _, __, output: catch(output))

    def _add(self, key: str, values: Tensor, dim: Dim, name: str) -> None:
        per_example = values.double().flatten(1, -2).sum(1) if values.ndim > 2 else values.double()
        sums = unit_sums(per_example, ((), dim), name, self.layout, batched=True)
        self.batch[key] = self.batch[key] + sums if key in self.batch else sums

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


EXACT_OUTPUTS, PROJECTIONS = 16, 4
"""Up to so many outputs of an example are differentiated one by one; more are projected on so many random directions."""


def backward_passes(statistic: str | None, outputs: int | None) -> int:
    """How often an example goes backward for a statistic; `outputs`: of its head, None where they follow from its length."""
    of = STATISTICS[statistic].of if statistic else None
    if of != "outputs":
        return int(of == "loss")
    return outputs if outputs is not None and outputs <= EXACT_OUTPUTS else PROJECTIONS


def _scalars(
    statistic: str, objective: Objective, output: Any, labels: Tensor, generator: torch.Generator
) -> list[Callable[[], Tensor]]:
    """What is differentiated, one number a batch: examples do not mix, so a batch's sum has every example's own gradient. Each is computed when
    it is asked for, in this order: random directions of a language model's outputs are as large as these."""
    if STATISTICS[statistic].of == "loss":
        return [lambda: objective.loss(output, labels, "sum")]
    outputs = objective.outputs(output, labels)
    if outputs.shape[1] <= EXACT_OUTPUTS:
        summed = outputs.sum(0)
        return [partial(summed.select, 0, position) for position in range(len(summed))]

    def projected() -> Tensor:
        signs = 2.0 * torch.randint(0, 2, outputs.shape, generator=generator, dtype=torch.int8) - 1.0
        return (outputs * signs.to(outputs.device)).sum()

    return [projected] * PROJECTIONS


def collect(
    model: nn.Module, layout: Layout, batches: Iterable[Mapping[str, Tensor]], statistic: str, objective: Objective
) -> dict[str, Tensor]:
    """A statistic's sums over examples; `model` is the full model, `batches` carry `labels`. L is an example's summed loss.

    - "square": sum of h^2 over examples and positions, at every site;
    - "taylor": sum over examples of |sum over positions h dL/dh| (Molchanov et al. 2017, eq. 8);
    - "fisher": the same, squared: the empirical Fisher information of a gate on the unit (Theis et al. 2018, eq. 9);
    - "outputs": sum over examples and outputs z of (sum over positions h dz/dh)^2: the Gauss-Newton information of the gate about what
      the model says, without labels (Schraudolph 2002, section 3, with the identity as the loss' Hessian). With many outputs it is
      estimated by random signs r: E[(r . Jacobian)^2] is that sum (Hutchinson 1990).

    Padded positions do not count.

    The gradient statistics need a float model whose examples do not mix (no batch norm). The model's own gradients are left empty.
    """
    recorder, generator = _Recorder(model, layout, statistic), torch.Generator().manual_seed(0)
    totals: dict[str, Tensor] = {}
    function, was_training = STATISTICS[statistic].function, model.training
    model.eval()
    try:
        for batch in batches:
            recorder.seen, recorder.batch, recorder.inputs = {}, {}, batch
            with torch.set_grad_enabled(recorder.gradient):
                output = model(**{key: value for key, value in batch.items() if key != "labels"})
            scalars = _scalars(statistic, objective, output, batch["labels"], generator) if recorder.gradient else []
            if not recorder.gradient:
                _accumulate(totals, recorder.batch, function)
            for position, scalar in enumerate(scalars):
                recorder.batch = {}
                scalar().backward(retain_graph=position + 1 < len(scalars))
                _accumulate(totals, recorder.batch, function)
            recorder.seen = {}
            examples = torch.tensor(float(len(batch["labels"])), dtype=torch.float64)
            totals["examples"] = totals["examples"] + examples if "examples" in totals else examples
    finally:
        recorder.close()
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return totals


def _accumulate(totals: dict[str, Tensor], batch: Mapping[str, Tensor], function: Callable[[Tensor], Tensor]) -> None:
    """Adds a batch's per-example sums to the totals."""
    for key, sums in batch.items():
        added = function(sums).sum(0).cpu()
        totals[key] = totals[key] + added if key in totals else added


def add_statistics(first: Statistics | None, second: Statistics) -> dict[str, Tensor]:
    """The sums of two sets of examples from the sums of each."""
    if not first:
        return dict(second)
    return {key: first[key] + value for key, value in second.items()}


def statistics_size(layout: Layout, statistic: str) -> int:
    """How many numbers `collect` returns: a client's whole report of a statistic."""
    count = 1
    for name in rankable(layout):
        axis, measured = layout.axes[name], sites(layout, name)
        apart = STATISTICS[statistic].of is None  # one sum for every site
        count += axis.size * (layout.axes[axis.parent].size if axis.parent else 1) * (len(measured) if apart else 1)
    return count
