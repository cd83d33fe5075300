"""What clients keep from round to round, as the server knows it: which parameters are theirs, when each of them last trained, and the control
variate that all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.axes.indexing import Plan, selected_shape, selection
from raffm_ray.axes.layout import Layout, is_kept
from raffm_ray.basics.errors import UserError, near_miss
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.size_specific import SIZE_SPECIFIC


@dataclass(frozen=True)
class ClientMemory:
    """`trained_at`: [clients], the round in which each last trained and kept something, -1 for never; empty where nobody keeps anything.
    `variate`: flat, the server's control variate of every trained parameter; empty where there is none. `ranks`: [clients], how many ranks of its
    adapters each keeps at most, 0 for as many as its budget holds; empty where that is all."""

    trained_at: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    variate: Tensor = field(default_factory=lambda: torch.empty(0))

    ranks: tuple[int, ...] = ()

    def ranks_of(self, client: int) -> int | None:
        """How many ranks a client keeps at most; None for as many as its budget holds."""
        return self.ranks[client] or None if self.ranks else None

    def last_round(self, client: int) -> int:
        """In which a client kept something; -1 for none."""
        return int(self.trained_at[client]) if len(self.trained_at) else -1

    def after(
        self, kept: Sequence[int], round_number: int, clients: int, change: Tensor | None, ranks: Mapping[int, int] | None = None
    ) -> "ClientMemory":
        """The same after a round in which some of so many clients kept something or so many `ranks`, and the variate changed."""
        trained_at = self.trained_at
        if kept:
            trained_at = trained_at.copy() if len(trained_at) else np.full(clients, -1, dtype=np.int32)
            trained_at[list(kept)] = round_number
        fewer = self.ranks
        if ranks:
            fewer = tuple(ranks.get(client, before) for client, before in enumerate(fewer or [0] * clients))
        variate = self.variate if change is None else self.variate + change
        return replace(self, trained_at=trained_at, variate=variate, ranks=fewer)


NO_MEMORY = ClientMemory()
"""Of clients that keep nothing."""


def variate_change(summed: Tensor, holders: Tensor) -> Tensor:
    """How far a round moves the server's control variate: SCAFFOLD's c <- c + |S|/N mean of the clients' changes (Karimireddy et al. 2020,
    algorithm 1, line 17), where S and N count the clients that hold an entry.

    So the variate of an entry is the weighted mean of the own ones of all clients that hold it, whoever took part: were each round's mean
    scaled by the part of all clients that took part, it would drift away from that where few hold an entry. An entry that nobody of the
    round holds stays. `summed`: flat, the sum of weight x change; `holders`: the weight of all clients that hold each entry.
    """
    return torch.where(holders > 0, summed / holders.clamp(min=torch.finfo(holders.dtype).tiny), 0.0)


def personal_names(layout: Layout, patterns: Sequence[str]) -> tuple[str, ...]:
    """The trained parameters that the patterns name, in the model's order: `classifier`, `norms`, or patterns of names as of `fnmatch`.

    Raises UserError for a pattern that names nothing that is trained, and where nothing is left to be averaged.
    """
    trained = [name for name, spec in layout.parameters.items() if not spec.frozen]
    found: set[str] = set()
    for pattern in patterns:
        if pattern in SIZE_SPECIFIC:
            modules = SIZE_SPECIFIC[pattern](layout)
            named = {name for name in trained if name.rpartition(".")[0] in modules}
        else:
            named = {name for name in trained if fnmatchcase(name, pattern)}
        if not named:
            leading = {name.rsplit(".", cut)[0] for name in trained for cut in range(name.count(".") + 1)}
            known = near_miss(pattern.strip("*."), [*SIZE_SPECIFIC, *leading])
            raise UserError(f"strategy.personal: {pattern!r} names no parameter that is trained{known}")
        found |= named
    if found and len(found) == len(trained):
        raise UserError(
            f"strategy.personal: {', '.join(patterns)}: all {len(trained)} trained parameters stay with the clients, and nothing is averaged"
        )
    return tuple(name for name in trained if name in found)


@lru_cache(maxsize=4096)
def personal_bytes(architecture: Architecture, plan: Plan, names: tuple[str, ...]) -> int:
    """Bytes of these parameters in a plan."""
    return 4 * sum(map(prod, _shapes(architecture, plan, names).values()))


def _shapes(architecture: Architecture, plan: Plan, names: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    layout, found = architecture.layout, {}
    for name in names:
        spec, shape = layout.parameters[name], architecture.shapes[name]
        if is_kept(spec.layer, plan):
            found[name] = selected_shape(shape, selection(shape, spec.dims, layout.axes, plan))
    return found


def state_bytes(architecture: Architecture, plan: Plan, kinds: int, names: tuple[str, ...]) -> int:
    """Bytes of the tensors that a client of a plan keeps: `kinds` of all its trained parameters, and those of these `names`."""
    whole = personal_bytes(architecture, plan, tuple(architecture.trained_shapes)) if kinds else 0
    return kinds * whole + personal_bytes(architecture, plan, names)
