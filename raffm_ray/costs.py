"""What a plan costs: parameters, bytes, floating-point operations and training memory, in closed form.

Everything follows from the layout; no module is built. Parameters and FLOPs are exact (the tests count them on real modules with
`named_parameters` and `torch.utils.flop_counter`), training memory is an estimate (compared with what autograd saves).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product
from math import prod
from typing import NamedTuple

from raffm_ray.architectures import Architecture
from raffm_ray.axes import Dim, Layer, Plan, is_kept, kept_size
from raffm_ray.errors import UserError, look_up

FLOAT_BYTES = 4
OPTIMIZER_FLOATS = {"adamw": 2, "sgd": 0, "momentum": 1}
"""Floats of state that an optimizer keeps per parameter (Kingma and Ba 2015: first and second moment)."""


@dataclass(frozen=True)
class Costs:
    """One example's and one model's costs. `layer_params`: of `params`, those inside layers, without embeddings and head;
    `training_flops`: forward and backward of one example."""

    params: int
    layer_params: int
    bytes: int
    forward_flops: int
    training_flops: int
    memory_bytes: int


@dataclass(frozen=True)
class Budget:
    """What a device allows; a limit that is None does not bind. Units as in `Costs`."""

    params: float | None = None
    layer_params: float | None = None
    bytes: float | None = None
    training_flops: float | None = None
    memory_bytes: float | None = None

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
        }
        return [
            f"{name} {value:,} > {limit:,.0f}"
            for name, value in named.items()
            if (limit := getattr(self, name)) is not None and value > limit
        ]


class _Term(NamedTuple):
    """All parameters whose size is one product of axes, together: factors of that product."""

    axes: tuple[str, ...]
    layer: Layer | None
    params: int
    flops: int
    first_flops: int


@lru_cache(maxsize=32)
def _terms(architecture: Architecture) -> tuple[_Term, ...]:
    sums: dict[tuple[tuple[str, ...], Layer | None], list[int]] = {}
    for name, spec in architecture.layout.parameters.items():
        positions = architecture.positions[spec.matmul] if spec.matmul else 0
        fixed = prod(size for size, dim in zip(architecture.shapes[name], spec.dims, strict=True) if not dim)
        for axes in product(*(_products(dim) for dim in spec.dims)):
            total = sums.setdefault((tuple(sorted(chain(*axes))), spec.layer), [0, 0, 0])
            total[0] += fixed
            total[1] += 2 * positions * fixed
            total[2] += 2 * positions * fixed if spec.raw else 0
    return tuple(_Term(axes, layer, *total) for (axes, layer), total in sums.items())


def _products(dim: Dim) -> list[tuple[str, ...]]:
    """A dim as a sum of products of axes: one product, or one for each part of a fused dim."""
    if dim and not isinstance(dim[0], str):
        return [axes for part in dim if not isinstance(part, str) for axes in _products(part)]
    return [tuple(name for name in dim if isinstance(name, str))]


def costs_of(architecture: Architecture, plan: Plan, batch_size: int = 1, optimizer: str = "adamw") -> Costs:
    """The costs of a plan; `batch_size` and `optimizer` matter for memory only.

    FLOPs count multiplications and additions of matrix products as `torch.utils.flop_counter` does: 2 x positions x entries for a
    projection, 2 x positions^2 x size for each of the two attention products; the backward pass costs twice the forward, less the
    gradient of the raw input, which nobody needs.
    """
    layout, tokens = architecture.layout, architecture.positions["tokens"]
    kept = {name: kept_size(name, layout.axes, plan) for name in layout.axes}
    params = layer_params = forward = first = 0
    for term in _terms(architecture):
        if is_kept(term.layer, plan):
            size = prod(kept[name] for name in term.axes)
            params += term.params * size
            layer_params += term.params * size if term.layer else 0
            forward += term.flops * size
            first += term.first_flops * size
    for site in layout.attentions:
        if is_kept(site.layer, plan):
            forward += 2 * tokens * tokens * kept[site.heads] * (kept[site.qk] + kept[site.vo])
    floats = params * (2 + look_up(OPTIMIZER_FLOATS, optimizer, "optimizer")) + batch_size * activation_floats(architecture, plan)
    return Costs(params, layer_params, params * FLOAT_BYTES, forward, 3 * forward - first, floats * FLOAT_BYTES)


def activation_floats(architecture: Architecture, plan: Plan) -> int:
    """Estimate of the floats that autograd keeps for one example until the backward pass.

    Per token and layer: `architecture.saved["residual"]` residual streams (inputs and outputs of norms), mean and inverse
    deviation of two norms, `saved["ffn"]` FFN widths, query, key, value and context of every head (padded to the larger of the
    two sizes when they differ, see architectures/attention.py), a copy of the context and one log-sum-exp a head; at the end one
    norm. The copy is only made where the sizes differ; it is always counted, so that more units never cost less. Dropout, if the
    configuration has any, keeps masks that are not counted.
    """
    layout, saved, tokens = architecture.layout, architecture.saved, architecture.positions["tokens"]
    residual = kept_size("residual", layout.axes, plan)
    per_token = 2 * residual + 2
    for site in layout.attentions:
        if not is_kept(site.layer, plan):
            continue
        heads, qk, vo = (kept_size(axis, layout.axes, plan) for axis in (site.heads, site.qk, site.vo))
        ffn = kept_size(site.ffn, layout.axes, plan)
        per_token += saved["residual"] * residual + 4 + heads * (4 * max(qk, vo) + min(qk, vo) + 1) + saved["ffn"] * ffn
    return tokens * per_token


def budget_from(settings: Mapping[str, float], full: Costs) -> Budget:
    """A budget from settings such as `{"params": 0.5}`: numbers up to 1 are fractions of the full model's cost.

    Raises UserError for an unknown kind or a number that is not positive.
    """
    limits: dict[str, float] = {}
    known = {
        "params": full.params,
        "layer_params": full.layer_params,
        "bytes": full.bytes,
        "training_flops": full.training_flops,
        "memory_bytes": full.memory_bytes,
    }
    for kind, value in settings.items():
        whole = look_up(known, kind, "budget kind")
        if not value > 0:
            raise UserError(f"budget {kind} must be positive, got {value}")
        if 1 < value < 100:
            raise UserError(f"budget {kind}: {value} would be a count of {kind}; fractions of the full model are at most 1")
        limits[kind] = value * whole if value <= 1 else value
    return Budget(**limits)
