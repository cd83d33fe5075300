"""Client updates that give each client parameters of its own, beside those that are averaged."""

import numpy as np
from torch import Tensor, nn

from raffm_ray.clients.local_training import Training, backward
from raffm_ray.clients.updates.row import OWN, Batches, Memory, Named, Outcome
from raffm_ray.clients.updates.steps import finish, mean_loss, put, steps, taken, trained_of

INNER_STEPS = 5
"""Of `pfedme` on every batch: K in the paper's experiments (section 5.2)."""


def ditto(
    module: nn.Module, batches: Batches, given: Named, training: Training, rng: np.random.Generator, memory: Memory | None
) -> Outcome:
    """Ditto (Li et al. 2021, arXiv 2012.04221, algorithm 1): steps on F_i(w) from the parameters as received, w^t, whose change is sent; then as
    many steps on F_i(v) + lambda/2 ||v - w^t||^2 from the client's own v, which it keeps. lambda is `local.proximal`.

    v begins at w^t. Each of the two sees all batches of the round, in an order of its own. The loss is that of w.
    """
    assert memory is not None
    own = trained_of(module)
    averaged = steps(module, batches, training)
    sent = {name: values.sub_(given[name]) for name, values in taken(own).items()}
    put(own, memory.kept[OWN])
    steps(module, batches, training, given)
    return Outcome(mean_loss(averaged), sent, Memory({OWN: taken(own)}))


def pfedme(
    module: nn.Module, batches: Batches, given: Named, training: Training, rng: np.random.Generator, memory: Memory | None
) -> Outcome:
    """pFedMe (T. Dinh et al. 2020, arXiv 2006.08848, algorithm 1): for every batch, `INNER_STEPS` steps of the client's own theta on
    F_i(theta) + lambda/2 ||theta - w||^2, then w <- w - rate lambda (w - theta). lambda is `local.proximal`.

    The change of w is sent; theta is kept, and begins each round where it ended, or at w. The server's beta is `server.learning_rate`.
    """
    assert memory is not None
    own, local = trained_of(module), training.local
    put(own, memory.kept[OWN])
    averaged = {name: values.clone() for name, values in given.items()}
    optimizer, losses = training.optimizer(list(own.values())), list[Tensor]()
    for batch in batches:
        for inner in range(INNER_STEPS):
            optimizer.zero_grad(set_to_none=True)
            loss = backward(module, batch, training.objective, local.precision)[0]
            losses += [loss] if inner == 0 else []
            finish(own, optimizer, local, averaged)
        for name, values in averaged.items():
            values.lerp_(own[name].detach(), training.learning_rate * local.proximal)
    sent = {name: values.sub_(given[name]) for name, values in averaged.items()}
    return Outcome(mean_loss(losses), sent, Memory({OWN: taken(own)}))


def fedrep(
    module: nn.Module, batches: Batches, given: Named, training: Training, rng: np.random.Generator, memory: Memory | None
) -> Outcome:
    """FedRep (Collins et al. 2021, arXiv 2102.07078, algorithm 1): steps on the personal parameters (`strategy.personal`), the others fixed;
    then as many on the others, the personal ones fixed.

    Each of the two sees all batches of the round, in an order of its own; both are charged as whole passes, although a backward pass for
    some parameters alone computes less. `local.proximal` pulls the others back to what was received.
    """
    personal = [name for name in given if name in training.personal]
    others = {name: values for name, values in given.items() if name not in training.personal}
    heads = steps(module, batches, training, only=personal) if personal else []
    body = steps(module, batches, training, others, only=list(others)) if others else []
    return Outcome(mean_loss(heads + body))
