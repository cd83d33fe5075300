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
