"""What a plan costs: parameters, bytes, floating-point operations and training memory, in closed form.

Everything follows from the layout; no module is built. Parameters and FLOPs are exact (the tests count them on real modules with
`named_parameters` and `torch.utils.flop_counter`), training memory is an estimate (compared with what autograd saves).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product
from math import inf, prod
from typing import NamedTuple, SupportsFloat

from raffm_ray.axes.dim_sizes import dim_products, kept_length
from raffm_ray.axes.indexing import Plan, kept_size
from raffm_ray.axes.layout import is_kept
from raffm_ray.basics.errors import UserError, look_up, near_miss
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.backward_costs import Gradients, gradients

FLOAT_BYTES = 4
OPTIMIZER_FLOATS = {"adamw": 2, "sgd": 0, "momentum": 1}
"""Floats of state that an optimizer keeps per parameter (Kingma and Ba 2015: first and second moment)."""


@dataclass(frozen=True)
class Costs:
    """One example's and one model's costs. `layer_params`: of `params`, those inside layers, without embeddings and head; `bytes`: of all
    parameters, which a client is given; `bytes_up`: of those that are trained, which it sends back; `training_flops`: forward and backward of one example, `calibration_flops`: with every gradient, frozen or not. `example_traffic_bytes`, `step_traffic_bytes`: read from and written to
    main memory for an example of a training step, and for a step whatever its batch (see `traffic_bytes`). `tensors`: parameter
    tensors, which the number of operators that a step starts is proportional to. `inference_bytes`: of answering one example (see `live_floats`)."""

    params: int
    layer_params: int
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

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a forward pass of one example: half of its FLOPs."""
        return self.forward_flops // 2


@dataclass(frozen=True)
class Budget:
    """What a device allows; a limit that is None does not bind. Units as in `Costs`."""

    params: float | None = None
    layer_params: float | None = None
    bytes: float | None = None
    training_flops: float | None = None
    memory_bytes: float | None = None
    macs: float | None = None
    inference_bytes: float | None = None

    def allows(self, costs: Costs) -> bool:
        """Whether no limit is exceeded."""
        return not self.exceeded(costs)

    def exceeded(self, costs: Costs) -> list[str]:
        """The limits that these costs break, in words."""
        named = {
            "params": costs.params,
            "layer_params": costs.layer_params,
            "bytes": costs.bytes,
            "training_flops": costs.training_flops,
            "memory_bytes": costs.memory_bytes,
            "macs": costs.macs,
            "inference_bytes": costs.inference_bytes,
        }
        return [
            f"{name} {value:,} > {limit:,.0f}"
            for name, value in named.items()
            if (limit := getattr(self, name)) is not None and value > limit
        ]

    def both(self, other: "Budget") -> "Budget":
        """The budget that allows what both allow."""
        limits = {
            name: [limit for limit in (getattr(self, name), getattr(other, name)) if limit is not None] for name in vars(self)
        }
        return Budget(**{name: min(both, default=None) for name, both in limits.items()})


class _Term(NamedTuple):
    """All parameters whose size is one product of axes, together: factors of that product. `backward`: FLOPs of their own gradients
    and of those of what they read; `unfrozen`: the same if nothing were frozen."""

    axes: tuple[str, ...]
    in_layer: bool
    params: int
    trained: int
    forward: int
    backward: int
    unfrozen: int


@lru_cache(maxsize=256)
def _gradients(architecture: Architecture, layers: Plan) -> Gradients:
    return gradients(architecture.layout, layers)


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
            total = sums.setdefault((tuple(sorted(chain(*axes))), spec.layer is not None), [0] * 5)
            taken = (not spec.frozen) + (name in inputs)
            for at, value in enumerate((fixed, trained, flops, taken * flops, (2 - spec.raw) * flops)):
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

    Training memory is 4 bytes x (parameters + trained parameters x (1 gradient + the optimizer's state) + batch x activations).
    """
    layout, positions, layers = architecture.layout, architecture.positions, _layers(architecture, plan)
    kept = {name: kept_size(name, layout.axes, plan) for name in layout.axes}
    params = layer_params = trained = forward = backward = unfrozen = 0
    for term in _terms(architecture, layers):
        size = prod(kept[name] for name in term.axes)
        params += term.params * size
        layer_params += term.params * size if term.in_layer else 0
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
    state, activations = look_up(OPTIMIZER_FLOATS, optimizer, "optimizer"), activation_floats(architecture, plan)
    tensors = sum(is_kept(spec.layer, plan) for spec in layout.parameters.values())
    return Costs(
        params,
        layer_params,
        params * FLOAT_BYTES,
        trained * FLOAT_BYTES,
        forward,
        forward + backward,
        forward + unfrozen,
        (params + trained * (1 + state) + batch_size * activations) * FLOAT_BYTES,
        *traffic_bytes(params, trained, state, activations),
        tensors,
        (params + live_floats(architecture, plan)) * FLOAT_BYTES,
    )


def traffic_bytes(params: int, trained: int, state: int, activations: int) -> tuple[int, int]:
    """Estimate of the bytes that a training step reads from and writes to main memory: for an example, and for a step.

    An example: 8 x the activations that are kept of it; what all operators of a training step read and write is 7 to 12 times as
    much, by family. A step: 2 x parameters + (7 + 2 x state) x those that are trained. Weights are read forward and backward (2), and
    gradients written (1); gradients are read for their norm, read and written to clip it (3); the optimizer reads gradients, reads and
    writes weights (3), and reads and writes its `state` floats a parameter. What a cache saves is left out.
    """
    return 8 * activations * FLOAT_BYTES, (2 * params + (7 + 2 * state) * trained) * FLOAT_BYTES


def activation_floats(architecture: Architecture, plan: Plan) -> int:
    """Estimate of the floats that autograd keeps for one example until the backward pass; `saved` is the family's (see `SavedActivations`).

    Per token and norm: `saved.residual` residual streams (its input, its output) and `saved.norm` single numbers; there is a norm
    before or after every attention and FFN, and one at the end of every stack. `saved.ffn` FFN widths. Query, key, value and context
    of every query head (padded to the larger of the two sizes when they differ, see models/attention.py; keys and values
    that heads share are repeated), a copy of the context and one log-sum-exp a head, `saved.scores` attention matrices, and
    `saved.qk` queries and unrepeated keys. The copy is only made where the sizes differ; it is always counted, so that more units never cost less. `saved.logits` copies of
    the output at every position. Dropout adds what models/saved_activations.py says.

    Where parameters are frozen, what only their gradients need is not kept, nor anything before the first trained one.
    """
    layout, saved, positions = architecture.layout, architecture.saved, architecture.positions
    needed = _gradients(architecture, _layers(architecture, plan))
    residual, total = kept_size("residual", layout.axes, plan), 0
    for name in layout.norms:
        count = positions[layout.norm_positions.get(name, "tokens")]
        total += count * ((saved.residual - 1) * residual + saved.norm) * (name in needed.norms)
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
            total += saved.qk * qk * (queries * heads + keys * groups)
        if site.ffn is not None:
            width = queries * kept_length(site.ffn, layout.axes, plan)
            total += (saved.ffn - 1) * width * found.ffn + width * found.ffn_kept
    for name, spec in layout.parameters.items():
        if spec.matmul and len(spec.dims) == 2 and not spec.dims[1 - spec.reads]:
            total += saved.logits * positions[spec.matmul] * architecture.shapes[name][1 - spec.reads]
    return total


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
        if spec.matmul and len(spec.dims) == 2 and not spec.dims[1 - spec.reads]:
            most = max(most, positions[spec.matmul] * (residual + architecture.shapes[name][1 - spec.reads]))
    return most


def positive(kind: str, value: object) -> float:
    """A budget's number. Raises UserError for anything else."""
    if isinstance(value, bool | str) or not isinstance(value, SupportsFloat) or not 0 < float(value) < inf:
        raise UserError(f"budget {kind} must be a positive number, got {value!r}")
    return float(value)


def budget_from(settings: Mapping[str, float], full: Costs, others: Sequence[str] = ()) -> Budget:
    """A budget from settings such as `{"params": 0.5}`: numbers up to 1 are fractions of the full model's cost.

    `others`: kinds that whoever asks knows beside these. Raises UserError for an unknown kind or a number that is not positive.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"budgets: expected a mapping such as {{'params': 0.5}}, got {settings!r}")
    limits: dict[str, float] = {}
    known = {
        "params": full.params,
        "layer_params": full.layer_params,
        "bytes": full.bytes,
        "training_flops": full.training_flops,
        "memory_bytes": full.memory_bytes,
        "macs": full.macs,
        "inference_bytes": full.inference_bytes,
    }
    for kind, value in settings.items():
        if kind not in known:
            raise UserError(f"budget kind {kind!r} is not known{near_miss(str(kind), [*known, *others])}")
        whole, value = known[kind], positive(kind, value)
        if 1 < value < 100:
            raise UserError(f"budget {kind}: {value} would be a count of {kind}; fractions of the full model are at most 1")
        limits[kind] = value * whole if value <= 1 else value
    return Budget(**limits)
