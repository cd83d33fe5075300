"""Client updates with control variates: what a client's data pulls towards is remembered, and taken out of its steps."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from raffm_ray.clients.local_training import Training, backward
from raffm_ray.clients.updates.row import Batches, Memory, Named, Outcome

CONTROL = "control"
"""The kind of kept tensors that are a client's own control variate."""


def steps(
    module: nn.Module, batches: Batches, training: Training, correct: Callable[[Mapping[str, Tensor]], None]
) -> tuple[float, int]:
    """Steps of the optimizer, whose gradients `correct` changes in place, given the trained parameters by name, before they are clipped; the
    mean loss, and how many steps."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizer, losses, local = training.optimizer(list(trained.values())), list[Tensor](), training.local
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = backward(module, batch, training.objective, local.precision)
        for parameter in trained.values():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        correct(trained)
        if local.clip is not None:
            nn.utils.clip_grad_norm_(trained.values(), local.clip)
        optimizer.step()
        losses.append(loss)
    return float(np.mean(torch.stack(losses).tolist())), len(losses)


def _add(trained: Mapping[str, Tensor], others: Iterable[Tensor]) -> None:
    for parameter, other in zip(trained.values(), others, strict=True):
        assert parameter.grad is not None
        parameter.grad.add_(other)


def scaffold(
    module: nn.Module, batches: Batches, given: Named, training: Training, rng: np.random.Generator, memory: Memory | None
) -> Outcome:
    """SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II): steps along gradient - c_i + c; then
    c_i <- c_i - c + (x - y) / (K rate), with x the parameters as received, y as trained, and K steps.

    An entry that a client does not hold has no gradient there, so its c_i says nothing of that client and is not kept. c of an entry is the
    mean over the clients that hold it (`variate_change`), as its parameter is. The formula takes steps of plain gradient descent: with
    `local.clip` or another optimizer than sgd, c_i is the mean of what moved the client, over K rate.
    """
    assert memory is not None
    control, server = memory.kept[CONTROL], memory.variate
    corrections = [server[name] - control[name] for name in given]
    loss, count = steps(module, batches, training, lambda trained: _add(trained, corrections))
    trained = dict(module.named_parameters())
    change, new = {}, {}
    for name, before in given.items():
        moved = (before - trained[name].detach()) / (count * training.learning_rate)
        change[name] = moved - server[name]
        new[name] = control[name] + change[name]
    return Outcome(loss, None, Memory({CONTROL: new}, variate=change))
