"""How many arrays as long as the flat parameters the server's step takes at once, counted by running it on short ones."""

from functools import lru_cache
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raffm_ray.server.aggregation import AGGREGATION_RULES, AggregationRule
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS, Moments, ServerOptimizer, share_of
from raffm_ray.settings.experiment import ServerSettings

ENTRIES = 4096
"""Of the arrays that a step is tried on: long enough that its single numbers do not count."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it: how many there are `now`, and the most that there were, `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's, untyped
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator, and counts the storages of its results that are none of its arguments'."""
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and (key := one.untyped_storage()._cdata) not in self._known | given:
                storage = one.untyped_storage()
                self._known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                finalize(storage, self._freed, key, storage.nbytes())
        return result

    def _freed(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count


def _peak(rule: AggregationRule, optimizer: ServerOptimizer, settings: ServerSettings) -> tuple[float, int]:
    old, summed, covered = torch.zeros(ENTRIES), torch.ones(ENTRIES), torch.ones(ENTRIES)
    moments: Moments = optimizer.step(old, summed, covered, {}, settings)[1]
    with LiveBytes() as live:
        averaged = rule(old, summed, covered, 1.0)
        weight = share_of(covered, covered.clone()) if optimizer.shares else covered
        optimizer.step(old, averaged, weight, moments, settings)
    return live.peak / old.nbytes, len(moments)


@lru_cache(maxsize=64)
def step_copies(aggregation: str, server: ServerSettings) -> tuple[float, int]:
    """(most arrays that a step makes at once, moments included; moments that the optimizer keeps), in lengths of the flat parameters.

    `aggregation`: a row of AGGREGATION_RULES, which is followed by the server optimizer's step, not the first one. What goes in is not counted:
    parameters, sum, coverage and moments.
    """
    return _peak(AGGREGATION_RULES[aggregation], SERVER_OPTIMIZERS[server.optimizer], server)
