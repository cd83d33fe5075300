"""Client updates that remember what a client's data pulls towards, and take it out of its steps: all then move to the optimum of the mean."""

import numpy as np
from torch import Tensor, nn

from raffm_ray.clients.local_training import Training
from raffm_ray.clients.updates.row import Batches, Memory, Named, Outcome
from raffm_ray.clients.updates.steps import add, mean_loss, steps, trained_of

CONTROL, DUAL = "control", "dual"
"""The kinds of kept tensors: a client's own control variate (SCAFFOLD), and the gradient at which it rests (FedDyn)."""


def shared(given: Named, training: Training) -> dict[str, Tensor]:
    """Of what was given, all but the client's personal parameters, which nobody else's gradients are to correct."""
    return {name: values for name, values in given.items() if name not in training.personal}


def scaffold(
    module: nn.Module, batches: Batches, given: Named, training: Training, rng: np.random.Generator, memory: Memory | None
) -> Outcome:
    """SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1, option II): steps along gradient - c_i + c; then
    c_i <- c_i - c + (x - y) / (K rate), with x the parameters as received, y as trained, and K steps.

    An entry that a client does not hold has no gradient there, so its c_i says nothing of that client and is not kept. c of an entry is the
    mean over the clients that hold it (`variate_change`), as its parameter is. The formula takes steps of plain gradient descent: with
    `local.clip` or another optimizer than sgd, c_i is the mean of what moved the client, over K rate. `local.proximal` pulls besides, as in
    FedProx. Personal parameters take plain steps.
    """
    assert memory is not None
    control, server = memory.kept[CONTROL], memory.variate
    corrections = {name: server[name] - control[name] for name in shared(given, training)}
    losses = steps(module, batches, training, given, lambda trained: add(trained, corrections))
    trained = trained_of(module)
    change = {name: values.new_zeros(values.shape) for name, values in given.items()}
    for name in corrections:
        moved = (given[name] - trained[name].detach()) / (len(losses) * training.learning_rate)
        change[name] = moved - server[name]
    new = {name: control[name] + change[name] for name in given}
    return Outcome(mean_loss(losses), None, Memory({CONTROL: new}, variate=change))


def feddyn(
    module: nn.Module, batches: Batches, given: Named, training: Training, rng: np.random.Generator, memory: Memory | None
) -> Outcome:
    """FedDyn (Acar et al. 2021, arXiv 2111.04263, algorithm 1): steps on F_i(y) - <l_i, y> + alpha/2 ||y - x||^2, with x the parameters as
    received and alpha `local.proximal`; then l_i <- l_i - alpha (y - x). The server's side is the server optimizer `feddyn`.

    Where y is the minimum, l_i is the gradient of F_i there. An entry that a client does not hold has no gradient: its l_i is not kept, and
    counts nowhere. Only the change of the parameters is sent. Personal parameters take plain steps.
    """
    assert memory is not None
    dual, towards = memory.kept[DUAL], shared(given, training)
    inside = {name: dual[name] for name in towards}
    losses = steps(module, batches, training, towards, lambda trained: add(trained, inside, -1.0))
    trained = trained_of(module)
    new = dict(dual)
    for name, before in towards.items():
        new[name] = dual[name] - training.local.proximal * (trained[name].detach() - before)
    return Outcome(mean_loss(losses), None, Memory({DUAL: new}))
