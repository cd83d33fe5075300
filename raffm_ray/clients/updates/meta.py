"""Client updates after which a model is to be tuned by each client: not the model itself is to be good, but what a step makes of it."""

import numpy as np
import torch
from torch import Tensor, nn

from raffm_ray.clients.local_training import Training, backward
from raffm_ray.clients.updates.row import Batches, Memory, Named, Outcome
from raffm_ray.clients.updates.steps import finish, mean_loss, put, taken, trained_of


def per_fedavg(
    module: nn.Module, batches: Batches, given: Named, training: Training, rng: np.random.Generator, memory: Memory | None
) -> Outcome:
    """Per-FedAvg, first order (Fallah et al. 2020, arXiv 2002.07948, algorithm 1 and section 5, FO): a step of gradient descent on one batch gives w', and
    w steps along the gradient at w' of another batch. Both have the client's learning rate; the optimizer takes the second.

    Every step takes two batches, in two orders of the same examples. The loss is that at w', after tuning.
    """
    own, local, rate = trained_of(module), training.local, training.learning_rate
    optimizer, losses = training.optimizer(list(own.values())), list[Tensor]()
    for inner, outer in zip(batches, batches, strict=True):
        optimizer.zero_grad(set_to_none=True)
        backward(module, inner, training.objective, local.precision)
        before = taken(own)
        with torch.no_grad():
            for parameter in own.values():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=rate)
        optimizer.zero_grad(set_to_none=True)
        losses.append(backward(module, outer, training.objective, local.precision)[0])
        put(own, before)
        finish(own, optimizer, local, given)
    return Outcome(mean_loss(losses))
