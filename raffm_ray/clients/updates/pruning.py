"""A client update after which a client may keep fewer ranks of its adapters."""

from collections.abc import Mapping
from math import floor

import numpy as np
import torch
from torch import Tensor, nn

from raffm_ray.clients.local_training import Training
from raffm_ray.clients.updates.row import Batches, Memory, Named, Outcome
from raffm_ray.clients.updates.steps import mean_loss, steps, taken, trained_of
from raffm_ray.models.adapters.lora import DOWN, UP, factors

KEPT = 0.99
"""Gamma: the part of its ranks that a client keeps when it drops some, rounded down, and at least one."""
Pair = tuple[Tensor, Tensor]


def tails(named: Mapping[str, Tensor], kept: float = KEPT) -> list[Pair]:
    """Of every adapter the views of A [dropped, in] and B [out, dropped] that would go."""
    found = []
    for name in named:
        if name.endswith(f".{DOWN}.weight"):
            down, up = factors(name.removesuffix(f".{DOWN}.weight"))
            first = max(1, floor(kept * len(named[down])))
            found.append((named[down][first:], named[up][:, first:]))
    return found


def penalty(pairs: list[Pair]) -> float:
    """The sum over adapters of the Frobenius norm of A's part times that of B's."""
    return sum(float(down.norm() * up.norm()) for down, up in pairs)


def rank_pruning(
    module: nn.Module, batches: Batches, given: Named, training: Training, rng: np.random.Generator, memory: Memory | None
) -> Outcome:
    """The self-pruning of HetLoRA (Cho et al. 2024, arXiv 2401.06432, section 4): steps on F(y) + lambda sum |A_t| |B_t|, with A_t and B_t the last
    ranks of each adapter; where the sum is less after the training than before, the client drops them, for good. lambda is `local.proximal`.

    It deviates in that all adapters lose their last ranks together, where the sum over them shrank, and in that dropped ranks travel once more, as zeros:
    what a server that fills up with zeros would put in their place.
    """
    own = trained_of(module)

    def shrink(trained: Mapping[str, nn.Parameter]) -> None:
        values = {name: parameter.detach() for name, parameter in trained.items()}
        slopes = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
        for (down, up), (of_down, of_up) in zip(tails(values), tails(slopes), strict=True):
            read, made = down.norm(), up.norm()
            of_down.add_(torch.where(read > 0, training.local.proximal * made / read, 0.0) * down)
            of_up.add_(torch.where(made > 0, training.local.proximal * read / made, 0.0) * up)

    before = penalty(tails(given))
    losses = steps(module, batches, training, correct=shrink)
    sent = taken(own)
    pairs, ranks = tails(sent), None
    if penalty(pairs) < before:
        ranks = next(values.shape[1] for name, values in sent.items() if name.endswith(f".{UP}.weight")) - len(pairs[0][0])
        for down, up in pairs:
            down.zero_()
            up.zero_()
    return Outcome(mean_loss(losses), {name: values - given[name] for name, values in sent.items()}, ranks=ranks)
