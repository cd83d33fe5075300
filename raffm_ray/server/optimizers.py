"""Server optimizers: the step from a round's average to the new parameters. All arrays are flat, of the trained
parameters in the model's order.

The change from the old parameters to the averaged ones is taken for a negative gradient (Reddi et al. 2021, section 2). An entry that
nobody trained in a round keeps its value, and its moments wait for the next round that covers it: what was not measured is no change
of zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raffm_ray.basics.registry import Table
from raffm_ray.settings.experiment import ServerSettings

Moments = Mapping[str, Tensor]
"""What an optimizer remembers between rounds: flat arrays, by name; empty before its first step."""
Step = Callable[[Tensor, Tensor, Tensor, Moments, ServerSettings], tuple[Tensor, Moments]]
"""(old parameters, what the aggregation rule gives, weight that covers each entry, moments, settings) -> (new parameters, moments)."""


@dataclass(frozen=True)
class ServerOptimizer:
    """A row of the table.

    `shares`: whether `step` is given, in place of the weight that covers each entry, its part of the weight of all clients that hold the
    entry; `client_update`: the client update whose server's side it is, where it is one: neither works without the other.
    """

    step: Step
    shares: bool = False
    client_update: str = ""


def share_of(covered: Tensor, holders: Tensor) -> Tensor:
    """The weight that covers each entry, as a part of the weight of all clients that hold it; 0 where nobody covers it."""
    return torch.where(covered > 0, covered / torch.maximum(covered, holders), 0.0)


def _rate(settings: ServerSettings, otherwise: float) -> float:
    return otherwise if settings.learning_rate is None else settings.learning_rate


def _where_covered(covered: Tensor, old: Tensor, new: Tensor, before: Moments, after: Moments) -> tuple[Tensor, Moments]:
    there = covered > 0
    return torch.where(there, new, old), {name: torch.where(there, values, before[name]) for name, values in after.items()}


def sgd(old: Tensor, averaged: Tensor, covered: Tensor, moments: Moments, settings: ServerSettings) -> tuple[Tensor, Moments]:
    """old + rate x change: FedAvg (McMahan et al. 2017) at the default rate of 1, which takes what the rule gives to the bit.

    What happens to uncovered entries is up to the rule.
    """
    rate = _rate(settings, 1.0)
    return averaged if rate == 1 else old + rate * (averaged - old), moments


def momentum(
    old: Tensor, averaged: Tensor, covered: Tensor, moments: Moments, settings: ServerSettings
) -> tuple[Tensor, Moments]:
    """FedAvgM (Hsu et al. 2019): v <- beta1 v + change; w <- w + rate x v.

    Changes are not scaled by 1 - beta1, as in the paper: a steady change moves the model 1 / (1 - beta1) times as far.
    """
    before = moments or {"velocity": torch.zeros_like(old)}
    velocity = settings.beta1 * before["velocity"] + (averaged - old)
    return _where_covered(covered, old, old + _rate(settings, 1.0) * velocity, before, {"velocity": velocity})


def _adaptive(
    old: Tensor,
    averaged: Tensor,
    covered: Tensor,
    moments: Moments,
    settings: ServerSettings,
    second_moment: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Moments]:
    """Reddi et al. (2021), algorithm 2: m <- beta1 m + (1 - beta1) change; v <- `second_moment`(v, change^2);
    w <- w + rate x m / (sqrt(v) + tau). m starts at 0 and v at tau^2; there is no bias correction."""
    before = moments or {"mean": torch.zeros_like(old), "square": torch.full_like(old, settings.tau**2)}
    change = averaged - old
    mean = settings.beta1 * before["mean"] + (1 - settings.beta1) * change
    square = second_moment(before["square"], change.square())
    new = old + _rate(settings, 0.001) * mean / (square.sqrt() + settings.tau)
    return _where_covered(covered, old, new, before, {"mean": mean, "square": square})


def adam(old: Tensor, averaged: Tensor, covered: Tensor, moments: Moments, settings: ServerSettings) -> tuple[Tensor, Moments]:
    """FedAdam (Reddi et al. 2021, algorithm 2, no bias correction): v <- beta2 v + (1 - beta2) change^2.

    A step hardly depends on the size of a change, so little of a rule's damping is left.
    """
    beta2 = settings.beta2
    return _adaptive(
        old=old,
        averaged=averaged,
        covered=covered,
        moments=moments,
        settings=settings,
        second_moment=lambda v, squared: beta2 * v + (1 - beta2) * squared,
    )


def yogi(old: Tensor, averaged: Tensor, covered: Tensor, moments: Moments, settings: ServerSettings) -> tuple[Tensor, Moments]:
    """FedYogi (Reddi et al. 2021, algorithm 2, no bias correction): v <- v - (1 - beta2) change^2 sign(v - change^2)."""
    beta2 = settings.beta2
    return _adaptive(
        old=old,
        averaged=averaged,
        covered=covered,
        moments=moments,
        settings=settings,
        second_moment=lambda v, squared: v - (1 - beta2) * squared * (v - squared).sign(),
    )


def feddyn(old: Tensor, averaged: Tensor, covered: Tensor, moments: Moments, settings: ServerSettings) -> tuple[Tensor, Moments]:
    """FedDyn (Acar et al. 2021, arXiv 2111.04263, algorithm 1): h <- h - alpha |S|/N change; w <- w + rate x (change - h / alpha).

    `covered` are shares |S|/N, and h / alpha is remembered: alpha is the clients' alone. It is the mean of their dual variables over alpha,
    entry by entry over the clients that hold it, so that it is 0 where their gradients add up to 0.
    """
    before = moments or {"drift": torch.zeros_like(old)}
    change = averaged - old
    drift = before["drift"] - covered * change
    return _where_covered(covered, old, old + _rate(settings, 1.0) * (change - drift), before, {"drift": drift})


SERVER_OPTIMIZERS: Table[ServerOptimizer] = Table(
    "server_optimizer",
    {
        "sgd": ServerOptimizer(sgd),
        "momentum": ServerOptimizer(momentum),
        "adam": ServerOptimizer(adam),
        "yogi": ServerOptimizer(yogi),
        "feddyn": ServerOptimizer(feddyn, shares=True, client_update="feddyn"),
    },
)
