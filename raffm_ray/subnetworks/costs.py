"""What a plan costs: parameters, bytes, floating-point operations and training memory, in closed form.

Everything follows from the layout; no module is built. Parameters and FLOPs are exact (the tests count them on real modules with
`named_parameters` and `torch.utils.flop_counter`), training memory is an estimate (compared with what autograd saves).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, product
from math import prod
from typing import NamedTuple

from raffm_ray.axes.dim_sizes import dim_products, kept_length
from raffm_ray.axes.indexing import Plan, kept_size
from raffm_ray.axes.layout import block_of, is_kept
from raffm_ray.basics.errors import look_up
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.activations.by_block import (
    activation_floats,
    gradients_of,
    layers_of,
    live_floats,
    made_floats,
    output_floats,
    recomputed_blocks,
)
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Costs:
    """One example's and one model's costs. `layer_params`: of `params`, those inside layers, without embeddings and head; `adapter_params`: of adapters; `bytes`: of all
    parameters, which a client is given; `bytes_up`: of those that are trained, which it sends back; `training_flops`: forward and backward of one example, `calibration_flops`: with every gradient, frozen or not. `example_traffic_bytes`, `step_traffic_bytes`: read from and written to
    main memory for an example of a training step, and for a step whatever its batch (see `traffic_bytes`). `tensors`: parameter
    tensors, which the number of operators that a step starts is proportional to. `inference_bytes`: of answering one example (see `live_floats`).
    `activation_bytes`: the part of `memory_bytes` that a batch's backward pass frees; `output_bytes`: of a batch's outputs."""

    params: int
    layer_params: int
    adapter_params: int
    bytes: int
    bytes_up: int
    forward_flops: int
    training_flops: int
    calibration_flops: int
    memory_bytes: int
    example_traffic_bytes: int
    step_traffic_bytes: int
    tensors: int
    inference_bytes: int
    activation_bytes: int
    output_bytes: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a forward pass of one example: half of its FLOPs."""
        return self.forward_flops // 2


def with_memory(costs: Costs, copies: int, variate: bool) -> Costs:
    """The costs of a plan for a client that remembers: it has further `copies` of its trained parameters in memory while it trains, and with a
    control `variate` as many numbers travel again as are trained, down and up."""
    beside = costs.bytes_up * variate
    return replace(
        costs,
        bytes=costs.bytes + beside,
        bytes_up=costs.bytes_up + beside,
        memory_bytes=costs.memory_bytes + copies * costs.bytes_up,
    )


def with_words(whole: Costs, one: Costs, words: int, kept: int) -> Costs:
    """The costs of a plan for who has `kept` of the model's `words` in its table. `whole`, `one`: those of the plan with all of them, and with one.
    They are linear in words: only the table has them, and it is in no matrix product."""
    each = ((name, getattr(whole, name), getattr(one, name)) for name in vars(whole))
    return replace(whole, **{name: most - (most - least) // max(1, words - 1) * (words - kept) for name, most, least in each})


class _Term(NamedTuple):
    """All parameters whose size is one product of axes, together: factors of that product. `backward`: FLOPs of their own gradients
    and of those of what they read; `again`: of forward passes that are computed again; `unfrozen`: `backward` if nothing were frozen."""

    axes: tuple[str, ...]
    in_layer: bool
    params: int
    adapters: int
    trained: int
    forward: int
    backward: int
    again: int
    unfrozen: int


@lru_cache(maxsize=256)
def _terms(architecture: Architecture, layers: Plan) -> tuple[_Term, ...]:
    sums: dict[tuple[tuple[str, ...], bool], list[int]] = {}
    inputs, blocks = gradients_of(architecture, layers).inputs, recomputed_blocks(architecture, layers)
    for name, spec in architecture.layout.parameters.items():
        if not is_kept(spec.layer, layers):
            continue
        positions = architecture.positions[spec.matmul] if spec.matmul else 0
        fixed = prod(size for size, dim in zip(architecture.shapes[name], spec.dims, strict=True) if not dim)
        trained, flops = fixed * (not spec.frozen), 2 * positions * fixed
        for axes in product(*(dim_products(dim) for dim in spec.dims)):
            total = sums.setdefault((tuple(sorted(chain(*axes))), spec.layer is not None), [0] * 7)
            taken, again = (not spec.frozen) + (name in inputs), block_of(name, architecture.layout) in blocks
            added = (fixed, fixed * bool(spec.adapts), trained, flops, taken * flops, again * flops, (2 - spec.raw) * flops)
            for at, value in enumerate(added):
                total[at] += value
    return tuple(_Term(*key, *total) for key, total in sums.items())


def costs_of(architecture: Architecture, plan: Plan, batch_size: int = 1, optimizer: str = "adamw") -> Costs:
    """The costs of a plan; `batch_size` and `optimizer` matter for memory only.

    FLOPs count multiplications and additions of matrix products as `torch.utils.flop_counter` does: 2 x positions x entries for a
    projection, 2 x queries x keys x size for each of the two attention products (a causal mask does not halve them). In the backward
    pass every product costs as much again for each of its two sides that takes a gradient: a parameter that is trained, and what has
    something trained before it (see backward_costs.py). With nothing frozen that is twice the forward pass, less the gradient of the raw input.
    Blocks that are recomputed take their forward pass once more.

    Training memory is the weights + 4 bytes x (trained parameters x (1 gradient + the optimizer's state) + batch x activations); weights have 4
    bytes, frozen ones those of `architecture.frozen_dtype`.
    """
    return _costs(architecture, plan, batch_size, optimizer)


@lru_cache(maxsize=2048)  # a run asks for the costs of the same few plans thousands of times
def _costs(architecture: Architecture, plan: Plan, batch_size: int, optimizer: str) -> Costs:
    layout, positions, layers = architecture.layout, architecture.positions, layers_of(architecture, plan)
    kept = {name: kept_size(name, layout.axes, plan) for name in layout.axes}
    params = layer_params = adapters = trained = forward = backward = again = unfrozen = 0
    blocks = recomputed_blocks(architecture, layers)
    for term in _terms(architecture, layers):
        size = prod(kept[name] for name in term.axes)
        params += term.params * size
        layer_params += term.params * size if term.in_layer else 0
        adapters += term.adapters * size
        trained += term.trained * size
        forward += term.forward * size
        backward += term.backward * size
        again += term.again * size
        unfrozen += term.unfrozen * size
    for site in layout.attentions:
        if is_kept(site.layer, plan):
            heads, qk, vo = (kept_length(dim, layout.axes, plan) for dim in (site.heads, site.qk, site.vo))
            pairs, taken = (
                2 * positions[site.queries] * positions[site.keys] * heads,
                gradients_of(architecture, layers).sites[site.module],
            )
            forward += pairs * (qk + vo)
            again += pairs * (qk + vo) * (block_of(site.module, layout) in blocks)
            backward += pairs * (taken.query_key * qk + (taken.scores + taken.value) * vo)
            unfrozen += pairs * 2 * (qk + vo)
    state, activations = look_up(OPTIMIZERS, optimizer, "optimizer").floats, activation_floats(architecture, plan)
    tensors = sum(is_kept(spec.layer, plan) for spec in layout.parameters.values())
    weights = trained * FLOAT_BYTES + (params - trained) * architecture.frozen_dtype.itemsize
    example_traffic, step_traffic = traffic_bytes(weights, trained, state, made_floats(architecture, plan))
    return Costs(
        params=params,
        layer_params=layer_params,
        adapter_params=adapters,
        bytes=weights,
        bytes_up=trained * FLOAT_BYTES,
        forward_flops=forward,
        training_flops=forward + backward + again,
        calibration_flops=forward + unfrozen,
        memory_bytes=weights + (trained * (1 + state) + batch_size * activations) * FLOAT_BYTES,
        example_traffic_bytes=example_traffic + example_traffic * again // max(1, forward + backward),
        step_traffic_bytes=step_traffic,
        tensors=tensors,
        inference_bytes=weights + live_floats(architecture, plan) * FLOAT_BYTES,
        activation_bytes=batch_size * activations * FLOAT_BYTES,
        output_bytes=batch_size * output_floats(architecture) * FLOAT_BYTES,
    )


def traffic_bytes(weights_bytes: int, trained: int, state: int, activations: int) -> tuple[int, int]:
    """Estimate of the bytes that a training step reads from and writes to main memory: for an example, and for a step.

    An example: 8 x the activations that are kept of it, if no block is recomputed; what all operators of a training step read and write is 7 to 12 times as
    much, by family. A step: 2 x the weights' bytes + (7 + 2 x state) x those that are trained. Weights are read forward and backward (2), and
    gradients written (1); gradients are read for their norm, read and written to clip it (3); the optimizer reads gradients, reads and
    writes weights (3), and reads and writes its `state` floats a parameter. What a cache saves is left out.
    """
    return 8 * activations * FLOAT_BYTES, 2 * weights_bytes + (7 + 2 * state) * trained * FLOAT_BYTES


def with_prefixes(own: Costs, smaller: Sequence[Costs], prefix: str, distill: bool = False) -> Costs:
    """The costs of a plan for who trains it: the FLOPs of an example in the costliest step, and the peak of memory.

    `smaller`: of the plans that may be trained beside it; those that have as many parameters or more are no prefixes of it. `prefix`: a
    `strategy.prefix`. A step of "random" or "smallest" trains the own plan and one prefix after the other, a step of "one" either.

    A prefix's pass needs its weights and their gradients besides its activations, while the own plan's activations are freed already:
    memory is what stays (weights, gradients, optimizer) and the largest of the passes. A step of "one" has no gradients of the own plan before
    those of its prefix, which they replace. With `distill` the own plan's outputs stay too.
    """
    inside = [one for one in smaller if one.params < own.params]
    if prefix == "none" or not inside:
        return own
    drawn = [min(inside, key=lambda one: one.params)] if prefix == "smallest" else inside
    beside = 0 if prefix == "one" else max(one.training_flops for one in drawn)
    unused = own.bytes_up if prefix == "one" else 0
    passes = [one.bytes + max(0, one.bytes_up + one.activation_bytes - unused) + distill * own.output_bytes for one in drawn]
    return replace(
        own,
        training_flops=own.training_flops + beside,
        memory_bytes=own.memory_bytes - own.activation_bytes + max(own.activation_bytes, *passes),
    )
