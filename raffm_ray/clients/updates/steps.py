"""Steps of an optimizer on some of a module's parameters: what most client updates are made of."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from raffm_ray.clients.local_training import Training, backward, pull_back
from raffm_ray.clients.updates.row import Named
from raffm_ray.settings.experiment import LocalSettings

Correct = Callable[[Mapping[str, nn.Parameter]], None]
"""Changes gradients in place, given the parameters by name, before they are clipped."""


def mean_loss(losses: Sequence[Tensor]) -> float:
    """Over steps; read once, since a GPU is waited for."""
    return float(np.mean(torch.stack(list(losses)).tolist()))


def trained_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of a module, by name, in its order."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def put(parameters: Mapping[str, nn.Parameter], values: Named) -> None:
    """Gives parameters these values, in place."""
    for name, parameter in parameters.items():
        parameter.data.copy_(values[name])


def taken(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The values of parameters, copied."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def add(trained: Mapping[str, nn.Parameter], others: Named, scale: float = 1.0) -> None:
    """Adds `scale` x others to the gradients of the parameters that others name."""
    for name, other in others.items():
        gradient = trained[name].grad
        assert gradient is not None  # `finish` fills them
        gradient.add_(other, alpha=scale)


def finish(
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    local: LocalSettings,
    towards: Named | None = None,
    correct: Correct | None = None,
) -> None:
    """The end of a step, once its gradients are there: `local.proximal` pulls back to `towards`, `correct` changes the gradients, they are
    clipped, and the optimizer steps. `towards`: by name, of all of `trained` or some of them; None for no pull."""
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    if local.proximal and towards:
        pull_back([trained[name] for name in towards], towards.values(), local.proximal)
    if correct is not None:
        correct(trained)
    if local.clip is not None:
        nn.utils.clip_grad_norm_(trained.values(), local.clip)
    optimizer.step()


def steps(
    module: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    training: Training,
    towards: Named | None = None,
    correct: Correct | None = None,
    only: Sequence[str] | None = None,
) -> list[Tensor]:
    """A step of a new optimizer for every batch, each ended as `finish` says; the losses, which are not waited for. `only`: the names of those that move, None for all that are
    trained; the others get no gradient meanwhile."""
    everything = trained_of(module)
    trained = everything if only is None else {name: everything[name] for name in only}
    resting = [parameter for name, parameter in everything.items() if name not in trained]
    optimizer, losses = training.optimizer(list(trained.values())), list[Tensor]()
    try:
        for parameter in resting:
            parameter.requires_grad_(False)
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            losses.append(backward(module, batch, training.objective, training.local.precision)[0])
            finish(trained, optimizer, training.local, towards, correct)
    finally:
        for parameter in resting:
            parameter.requires_grad_(True)
    return losses
