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
from raffm_ray.axes.layout import is_kept
from raffm_ray.basics.errors import look_up
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.backward_costs import Gradients, gradients
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
    and of those of what they read; `unfrozen`: the same if nothing were frozen."""

    axes: tuple[str, ...]
    in_layer: bool
    params: int
    adapters: int
    trained: int
    forward: int
    backward: int
    unfrozen: int


@lru_cache(maxsize=256)
def _gradients(architecture: Architecture, layers: Plan) -> Gradients:
    adapters = architecture.adapters
    return gradients(architecture.layout, layers, dropping=adapters is not None and adapters.dropout > 0)


@lru_cache(maxsize=256)
def _terms(architecture: Architecture, layers: Plan) -> tuple[_Term, ...]:
    sums: dict[tuple[tuple[str, ...], bool], list[int]] = {}
    inputs = _gradients(architecture, layers).inputs
    for name, spec in architecture.layout.parameters.items():
        if not is_kept(spec.layer, layers):
            continue
        positions = architecture.positions[spec.matmul] if spec.matmul else 0
        fixed = prod(size for size, dim in zip(architecture.shapes[name], spec.dims, strict=True) if not dim)
        trained, flops = fixed * (not spec.frozen), 2 * positions * fixed
        for axes in product(*(dim_products(dim) for dim in spec.dims)):
            total = sums.setdefault((tuple(sorted(chain(*axes))), spec.layer is not None), [0] * 6)
            taken = (not spec.frozen) + (name in inputs)
            for at, value in enumerate((fixed, fixed * bool(spec.adapts), trained, flops, taken * flops, (2 - spec.raw) * flops)):
                total[at] += value
    return tuple(_Term(*key, *total) for key, total in sums.items())


@lru_cache(maxsize=32)
def _layer_axes(architecture: Architecture) -> frozenset[str]:
    return frozenset(architecture.layout.layer_axes)


def _layers(architecture: Architecture, plan: Plan) -> Plan:
    """The part of a plan that says which layers stay."""
    return Plan({name: plan[name] for name in _layer_axes(architecture) if name in plan})


def costs_of(architecture: Architecture, plan: Plan, batch_size: int = 1, optimizer: str = "adamw") -> Costs:
    """The costs of a plan; `batch_size` and `optimizer` matter for memory only.

    FLOPs count multiplications and additions of matrix products as `torch.utils.flop_counter` does: 2 x positions x entries for a
    projection, 2 x queries x keys x size for each of the two attention products (a causal mask does not halve them). In the backward
    pass every product costs as much again for each of its two sides that takes a gradient: a parameter that is trained, and what has
    something trained before it (see backward_costs.py). With nothing frozen that is twice the forward pass, less the gradient of the raw input.

    Training memory is the weights + 4 bytes x (trained parameters x (1 gradient + the optimizer's state) + batch x activations); weights have 4
    bytes, frozen ones those of `architecture.frozen_dtype`.
    """
    return _costs(architecture, plan, batch_size, optimizer)


@lru_cache(maxsize=2048)  # a run asks for the costs of the same few plans thousands of times
def _costs(architecture: Architecture, plan: Plan, batch_size: int, optimizer: str) -> Costs:
    layout, positions, layers = architecture.layout, architecture.positions, _layers(architecture, plan)
    kept = {name: kept_size(name, layout.axes, plan) for name in layout.axes}
    params = layer_params = adapters = trained = forward = backward = unfrozen = 0
    for term in _terms(architecture, layers):
        size = prod(kept[name] for name in term.axes)
        params += term.params * size
        layer_params += term.params * size if term.in_layer else 0
        adapters += term.adapters * size
        trained += term.trained * size
        forward += term.forward * size
        backward += term.backward * size
        unfrozen += term.unfrozen * size
    for site in layout.attentions:
        if is_kept(site.layer, plan):
            heads, qk, vo = (kept_length(dim, layout.axes, plan) for dim in (site.heads, site.qk, site.vo))
            pairs, taken = (
                2 * positions[site.queries] * positions[site.keys] * heads,
                _gradients(architecture, layers).sites[site.module],
            )
            forward += pairs * (qk + vo)
            backward += pairs * (taken.query_key * qk + (taken.scores + taken.value) * vo)
            unfrozen += pairs * 2 * (qk + vo)
    state, activations = look_up(OPTIMIZERS, optimizer, "optimizer").floats, activation_floats(architecture, plan)
    tensors = sum(is_kept(spec.layer, plan) for spec in layout.parameters.values())
    weights = trained * FLOAT_BYTES + (params - trained) * architecture.frozen_dtype.itemsize
    example_traffic, step_traffic = traffic_bytes(weights, trained, state, activations)
    return Costs(
        params=params,
        layer_params=layer_params,
        adapter_params=adapters,
        bytes=weights,
        bytes_up=trained * FLOAT_BYTES,
        forward_flops=forward,
        training_flops=forward + backward,
        calibration_flops=forward + unfrozen,
        memory_bytes=weights + (trained * (1 + state) + batch_size * activations) * FLOAT_BYTES,
        example_traffic_bytes=example_traffic,
        step_traffic_bytes=step_traffic,
        tensors=tensors,
        inference_bytes=weights + live_floats(architecture, plan) * FLOAT_BYTES,
        activation_bytes=batch_size * activations * FLOAT_BYTES,
        output_bytes=batch_size * output_floats(architecture) * FLOAT_BYTES,
    )


def traffic_bytes(weights_bytes: int, trained: int, state: int, activations: int) -> tuple[int, int]:
    """Estimate of the bytes that a training step reads from and writes to main memory: for an example, and for a step.

    An example: 8 x the activations that are kept of it; what all operators of a training step read and write is 7 to 12 times as
    much, by family. A step: 2 x the weights' bytes + (7 + 2 x state) x those that are trained. Weights are read forward and backward (2), and
    gradients written (1); gradients are read for their norm, read and written to clip it (3); the optimizer reads gradients, reads and
    writes weights (3), and reads and writes its `state` floats a parameter. What a cache saves is left out.
    """
    return 8 * activations * FLOAT_BYTES, 2 * weights_bytes + (7 + 2 * state) * trained * FLOAT_BYTES


def activation_floats(architecture: Architecture, plan: Plan) -> int:
    """Estimate of the floats that autograd keeps for one example until the backward pass; `saved` is the family's (see `SavedActivations`).

    Per token and norm: `saved.residual` residual streams (its input, its output) and `saved.norm` single numbers; there is a norm
    before or after every attention and FFN, and one at the end of every stack. `saved.ffn` FFN widths. Query, key, value and context
    of every query head (padded to the larger of the two sizes when they differ, see models/attention.py; keys and values
    that heads share are repeated), a copy of the context and one log-sum-exp a head, `saved.scores` attention matrices, and
    `saved.qk` queries and unrepeated keys. The copy is only made where the sizes differ; it is always counted, so that more units never cost less. `saved.logits` copies of
    the output at every position. Dropout adds what models/saved_activations.py says.

    Where parameters are frozen, what only their gradients need is not kept, nor anything before the first trained one. An adapter keeps what
    its first projection makes, a number a rank; with dropout also what is left of what that reads, and the mask.
    """
    layout, saved, positions = architecture.layout, architecture.saved, architecture.positions
    needed = _gradients(architecture, _layers(architecture, plan))
    residual, total = kept_size("residual", layout.axes, plan), 0
    for name in layout.norms:
        count = positions[layout.norm_positions.get(name, "tokens")]
        streams = saved.residual - 1 - saved.gain * layout.parameters[f"{name}.weight"].frozen
        total += count * (streams * residual + saved.norm) * (name in needed.norms)
        total += count * residual * (name in needed.outputs)
    for site in layout.attentions:
        if not is_kept(site.layer, plan):
            continue
        heads, qk, vo = (kept_length(dim, layout.axes, plan) for dim in (site.heads, site.qk, site.vo))
        queries, keys, larger = positions[site.queries], positions[site.keys], max(qk, vo)
        found = needed.sites[site.module]
        if found.scores or found.value:
            total += heads * (queries * (2 * larger + 1) + keys * 2 * larger + saved.scores * queries * keys)
        total += heads * queries * min(qk, vo) * found.context_kept
        if saved.qk and found.query_key:
            groups = kept_length(site.groups or site.heads, layout.axes, plan)
            total += (saved.qk - saved.gain * (not found.gains)) * qk * (queries * heads + keys * groups)
        if site.ffn is not None:
            width = queries * kept_length(site.ffn, layout.axes, plan)
            total += (saved.ffn - 1) * width * found.ffn + width * found.ffn_kept
    for name in needed.ranks:
        spec = layout.parameters[name]
        total += positions[spec.matmul or ""] * kept_length(spec.dims[1], layout.axes, plan)
    for name, copies in needed.dropped.items():
        spec, width = layout.parameters[name], architecture.shapes[name][1]
        reads = kept_length(spec.dims[1], layout.axes, plan) if spec.dims[1] else width
        total += copies * positions[spec.matmul or ""] * reads
    return total + saved.logits * output_floats(architecture)


def output_floats(architecture: Architecture) -> int:
    """Numbers that a model answers one example with: those of matrices whose output no axis cuts."""
    return sum(
        architecture.positions[spec.matmul] * architecture.shapes[name][1 - spec.reads]
        for name, spec in architecture.layout.parameters.items()
        if spec.matmul and len(spec.dims) == 2 and not spec.dims[1 - spec.reads] and not spec.adapts
    )


def live_floats(architecture: Architecture, plan: Plan) -> int:
    """Estimate of the most activations that are in memory at once while one example is answered, without gradients.

    Where a layer is at work: the residual stream and its normed copy, and the larger of two: queries, keys and values (all padded to the
    larger size where sizes differ) with the context; or the FFN before and after its activation. Or the stream and the output at every
    position. Fused attention keeps no matrix of scores; a cache of keys and values is not counted.
    """
    layout, positions = architecture.layout, architecture.positions
    residual, most = kept_size("residual", layout.axes, plan), 0
    for site in layout.attentions:
        if not is_kept(site.layer, plan):
            continue
        heads, qk, vo = (kept_length(dim, layout.axes, plan) for dim in (site.heads, site.qk, site.vo))
        queries, keys = positions[site.queries], positions[site.keys]
        inside = heads * max(qk, vo) * (2 * queries + 2 * keys)
        ffn = 2 * queries * kept_length(site.ffn, layout.axes, plan) if site.ffn is not None else 0
        most = max(most, 2 * queries * residual + max(inside, ffn))
    for name, spec in layout.parameters.items():
        if spec.matmul and len(spec.dims) == 2 and not spec.dims[1 - spec.reads] and not spec.adapts:
            most = max(most, positions[spec.matmul] * (residual + architecture.shapes[name][1 - spec.reads]))
    return most


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
