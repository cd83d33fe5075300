"""Which frozen parameters the clients' devices hold already: what a device has is not sent to it again.

A device keeps the frozen part of the plan that it trained last, so that it never stores more than a plan. It is sent what its next plan has
besides. A download that did not end in an update in time counts for nothing: the device holds what it held before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from raffm_ray.axes.indexing import Plan, dim_indices
from raffm_ray.axes.layout import is_kept
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.word_rows import vocabulary_table


@dataclass(frozen=True)
class Held:
    """`plans`: distinct ones; `of_client`: [clients], the position of the plan that a client's device holds the frozen parameters of, -1 for
    none; empty where nobody holds any."""

    plans: tuple[Plan, ...] = ()
    of_client: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))

    def by(self, client: int) -> Plan | None:
        """What a client's device holds; None before it was sent any."""
        position = int(self.of_client[client]) if len(self.of_client) else -1
        return None if position < 0 else self.plans[position]

    def after(self, received: Mapping[int, Plan], clients: int) -> "Held":
        """The same once some of so many clients hold the frozen parameters of these plans."""
        if not received:
            return self
        plans = list(dict.fromkeys([*self.plans, *received.values()]))
        number = {plan: position for position, plan in enumerate(plans)}
        of_client = self.of_client.copy() if len(self.of_client) else np.full(clients, -1, dtype=np.int32)
        of_client[list(received)] = [number[plan] for plan in received.values()]
        used = sorted(set(of_client.tolist()) - {-1})
        place = np.full(len(plans) + 1, -1, dtype=np.int32)  # the last stands for -1
        place[used] = np.arange(len(used))
        return Held(tuple(plans[position] for position in used), place[of_client])


@lru_cache(maxsize=4096)
def missing_bytes(architecture: Architecture, plan: Plan, held: Plan | None) -> int:
    """Bytes of the frozen parameters that a plan has and another has not; all of the plan's where that is None."""
    total = 0
    for name in architecture.frozen_shapes:
        total += _entries(architecture, name, plan, plan)
        total -= 0 if held is None else _entries(architecture, name, plan, held)
    return total * architecture.frozen_dtype.itemsize


@lru_cache(maxsize=4096)
def missing_word_bytes(architecture: Architecture, plan: Plan, held: Plan | None) -> int:
    """Of `missing_bytes`, those of one row of the table of words; 0 where it is trained, or there is none."""
    table = vocabulary_table(architecture.layout)
    if table is None or table not in architecture.frozen_shapes:
        return 0
    entries = _entries(architecture, table, plan, plan) - (0 if held is None else _entries(architecture, table, plan, held))
    return entries // architecture.shapes[table][0] * architecture.frozen_dtype.itemsize


@lru_cache(maxsize=4096)
def common_bytes(architecture: Architecture, plan: Plan, held: Plan, names: tuple[str, ...]) -> int:
    """Bytes of these parameters, in float32, that both of two plans have."""
    return 4 * sum(_entries(architecture, name, plan, held) for name in names)


def _entries(architecture: Architecture, name: str, plan: Plan, held: Plan) -> int:
    """How many entries of a parameter both plans have."""
    layout, shape = architecture.layout, architecture.shapes[name]
    spec = layout.parameters[name]
    if not (is_kept(spec.layer, plan) and is_kept(spec.layer, held)):
        return 0
    both = ([dim_indices(dim, layout.axes, one) for dim in spec.dims] for one in (plan, held))
    return prod(_common(*three) for three in zip(*both, shape, strict=True))


def _common(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None, size: int) -> int:
    """How many of a dimension's indices both have; None has all of them."""
    if one is None or other is None:
        rest = other if one is None else one
        return size if rest is None else len(rest)
    return len(np.intersect1d(one, other, assume_unique=True))
