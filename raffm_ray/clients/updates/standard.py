"""The standard client update: steps of an optimizer, with smaller prefixes of the own plan."""

import numpy as np
import torch
from torch import Tensor, nn

from raffm_ray.clients.local_training import Distillation, Training, backward, choose, fill_gradients, pull_back
from raffm_ray.clients.updates.row import Batches, Memory, Named, Outcome


def standard(
    module: nn.Module,
    batches: Batches,
    given: Named,
    training: Training,
    rng: np.random.Generator,
    memory: Memory | None,
) -> Outcome:
    """Steps of the optimizer down the gradient of the loss, with smaller prefixes of the own plan as `choose` says.

    A prefix learns from the own plan's output of the same step as `backward` says. `local.proximal` pulls back to `given`, before the
    gradient is clipped. The loss is the own plan's.
    """
    objective, local = training.objective, training.local
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = training.optimizer(parameters)
    losses: list[Tensor] = []
    used: list[Tensor] = []
    prefix_at = batches.prefix_at
    prefixes = training.prefixes if prefix_at else 0
    for step, batch in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        whole, drawn = choose(training.prefix, prefixes, step, rng)
        teacher = None
        if whole:
            loss, output = backward(module, batch, objective, local.precision)
            teacher = Distillation(output, training.distill, training.temperature) if training.distill else None
            del output
            losses.append(loss)
            batches.note(None, batch)
        if drawn is not None and prefix_at is not None:
            inner, smaller = prefix_at(drawn)
            smaller.read()
            backward(inner, batch, objective, local.precision, teacher)
            smaller.return_gradients()
            batches.note(drawn, batch)
        fill_gradients(parameters, used)
        if local.proximal and given:
            pull_back(parameters, given.values(), local.proximal)
        if local.clip is not None:
            nn.utils.clip_grad_norm_(parameters, local.clip)
        optimizer.step()
    return Outcome(float(np.mean(torch.stack(losses).tolist())))  # read once: a GPU would be waited for at every step
