"""Optimizers of local training, and the memory that a device needs for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from raffm_ray.basics.registry import Table

ParameterGroups = list[dict[str, Any]]
Optimizer = Callable[[ParameterGroups, float], torch.optim.Optimizer]
"""(groups of parameters with their weight decay, learning rate) -> an optimizer of them."""


class Rates(NamedTuple):
    """Learning rates: of a new model, of a pretrained one 768 wide, of the head of a pretrained one alone."""

    new: float
    pretrained: float
    head: float


@dataclass(frozen=True)
class ClientOptimizer:
    """A row of `OPTIMIZERS`. `floats`: of state that it keeps per parameter (Kingma and Ba 2015: first and second moment); `rates`: what is
    taken where no learning rate is set, None where one must be.

    It works on every entry of a parameter alone: those of several clients may be stacked, with a first dimension that counts clients.
    """

    make: Optimizer
    floats: int = 2
    rates: Rates | None = None

    def __call__(self, groups: ParameterGroups, rate: float) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        return self.make(groups, rate)


def adamw(groups: ParameterGroups, rate: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def sgd(groups: ParameterGroups, rate: float) -> torch.optim.Optimizer:
    """Plain gradient descent."""
    return torch.optim.SGD(groups, lr=rate, momentum=0.0, fused=groups[0]["params"][0].is_cuda)


def momentum(groups: ParameterGroups, rate: float) -> torch.optim.Optimizer:
    """Gradient descent with a momentum of 0.9."""
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, fused=groups[0]["params"][0].is_cuda)


_OPTIMIZERS = {
    "adamw": ClientOptimizer(adamw, 2, Rates(new=1e-3, pretrained=5e-5, head=1e-3)),
    "sgd": ClientOptimizer(sgd, 0, Rates(new=1e-1, pretrained=1e-2, head=1e-1)),
    "momentum": ClientOptimizer(momentum, 1, Rates(new=1e-2, pretrained=1e-3, head=1e-2)),
}
OPTIMIZERS: Table[ClientOptimizer] = Table("client_optimizer", _OPTIMIZERS, in_workers=True)
"""For AdamW, 5e-5 is what BERT (Devlin et al. 2019, appendix A.3) and RaFFM (Yu et al. 2023) fine-tune with."""
