"""Budgets: what a device allows a plan to cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import SupportsFloat

from raffm_ray.basics.errors import UserError, near_miss
from raffm_ray.subnetworks.costs import Costs


@dataclass(frozen=True)
class Budget:
    """What a device allows; a limit that is None does not bind. Units as in `Costs`."""

    params: float | None = None
    layer_params: float | None = None
    adapter_params: float | None = None
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
            "adapter_params": costs.adapter_params,
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

    def binding(self, costs: Costs) -> str | None:
        """The limit that these costs come nearest to; None where there is none."""
        limits = {name: limit for name, limit in vars(self).items() if limit is not None}
        return max(limits, key=lambda name: getattr(costs, name) / limits[name], default=None)

    def both(self, other: "Budget") -> "Budget":
        """The budget that allows what both allow."""
        limits = {
            name: [limit for limit in (getattr(self, name), getattr(other, name)) if limit is not None] for name in vars(self)
        }
        return Budget(**{name: min(both, default=None) for name, both in limits.items()})


HOLLOW = 0.5
"""A balance below which layers are hollow."""


def balance(budget: Budget, costs: Costs, full: Costs) -> float:
    """The share that a budget's subnetwork keeps of its layers' parameters, as a part of the share that it keeps of what binds it.

    1 where layers are all that costs anything; near 0 where what stands outside the layers takes up the budget. `costs`, `full`: of the
    subnetwork, and of the full model.
    """
    name = budget.binding(costs)
    if name is None or not full.layer_params:
        return 1.0
    return float(costs.layer_params / full.layer_params * getattr(full, name) / getattr(costs, name))


def hollow_in_words(budget: Budget, costs: Costs, full: Costs) -> str:
    """One line about a subnetwork with hollow layers, and what to limit instead."""
    name = budget.binding(costs)
    outside = costs.params - costs.layer_params
    return (
        f"{name} <= {getattr(budget, str(name)):,.0f} leaves {costs.layer_params / full.layer_params:.1%} of the layers' parameters and "
        f"{costs.macs / full.macs:.1%} of the multiply-accumulates: {outside:,} of {costs.params:,} parameters are outside the layers "
        "(embeddings, head); a limit of layer_params is of the layers alone"
    )


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
        "adapter_params": full.adapter_params,
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
        if not whole:
            raise UserError(f"budget {kind}: the model has none (adapters are set in model.adapters)")
        if 1 < value < 100:
            raise UserError(f"budget {kind}: {value} would be a count of {kind}; fractions of the full model are at most 1")
        limits[kind] = value * whole if value <= 1 else value
    return Budget(**limits)
