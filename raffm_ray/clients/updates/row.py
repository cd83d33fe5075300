"""What a client update is: the form of a row of `CLIENT_UPDATES`, what it is given and what it returns. No plans, no messages, no Ray."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from raffm_ray.clients.augmentation import moved, moves_of
from raffm_ray.clients.local_training import ClientData, Prefix, Training
from raffm_ray.data.examples import Examples

PrefixAt = Callable[[int], tuple[nn.Module, Prefix]]
"""Makes a smaller prefix of the client's plan, which is remembered."""
Named = Mapping[str, Tensor]
"""Tensors by the name of the trained parameter that they belong to, in its shape as the module has it."""
OWN = "parameters"
"""The kind of kept tensors that are parameters of the client's own: they stand in for the server's where the client is measured and deployed."""


@dataclass
class Batches:
    """A client's batches of one round, a mapping of tensors with `labels` for every step, drawn as they are asked for. Asked again, they are the
    same examples in another order.

    `device`: where they are put; `prefix_at`: makes the prefixes that are trained beside the own plan; `seen`: how many examples went
    through the own plan (None) and each prefix, as who trains them notes it.
    """

    examples: Examples
    training: Training
    client: ClientData
    device: str
    prefix_at: PrefixAt | None = None
    seen: dict[int | None, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.training.steps(len(self.client.share))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        local, client = self.training.local, self.client
        for indices in client.batches(self.examples, self.training, len(self)):
            moves = moves_of(local, client.augmentation_rng, len(indices))
            yield moved(self.examples.batch(indices, self.device), moves, local.crop_padding)

    def note(self, prefix: int | None, batch: Mapping[str, Tensor]) -> None:
        """Counts a batch's examples."""
        self.seen[prefix] = self.seen.get(prefix, 0) + len(batch["labels"])


@dataclass(frozen=True)
class Memory:
    """What a client update remembers.

    `kept`: by kind and name, tensors that the client keeps until the next round in which it trains; `numbers`: by name, the same;
    `variate`: by name, the server's control variate as it is received, and on return the change of it that is sent.
    """

    kept: Mapping[str, Named] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    variate: Named = field(default_factory=dict)


class Outcome(NamedTuple):
    """What a client update returns, also as a plain tuple of the first of them.

    `loss`: mean over the steps; `sent`: by name, what is added to the server's sum, None for how far each of `given` moved in the module;
    `memory`: what is kept and sent besides, None where the row remembers nothing; `ranks`: how many ranks of its adapters the client keeps from now on,
    None for as many as before.
    """

    loss: float
    sent: Named | None = None
    memory: Memory | None = None
    ranks: int | None = None


@dataclass(frozen=True)
class ClientUpdate:
    """A row of `CLIENT_UPDATES`.

    `train(module, batches, given, training, rng, memory)`: an `Outcome`. `module`: the client's subnetwork, ready to
    be trained in place; `given`: by name, its trained parameters as they were received, [as in the module]; `training`: the objective,
    the learning rate, the settings of `local`, `own` settings of plug-ins, and an `optimizer` of parameters; `rng`: the client's own;
    `memory`: what it kept of the last round in which it trained, and the server's control variate; None where the row remembers nothing.
    What is sent has the names and shapes of `given`.

    `passes`: how many times every example of a batch goes forward and backward, which the device is charged. `prefixes`: whether it trains
    prefixes as well. `stacks`: whether `stacked_training` does the same for several clients at once. `keeps`: by kind of kept tensors,
    what an entry begins at that the client has not held before: `zeros`, or the `received` parameter. `variate`: whether the server has a
    control variate for every trained entry, which is sent down, and its change up: that doubles what the parameters take on the wire.
    `copies`: how many further copies of its trained parameters a device has in memory while it trains.

    `prunes`: whether a client may keep fewer ranks afterwards. `proximal`: what `local.proximal` is to it, where it must be above 0; "" where it need not. `personal`: whether it needs
    parameters that stay with their clients (`strategy.personal`).
    """

    train: Callable[[nn.Module, Batches, Named, Training, np.random.Generator, Memory | None], tuple[Any, ...]]
    passes: float = 1.0
    prefixes: bool = False
    stacks: bool = False
    keeps: Mapping[str, str] = field(default_factory=dict)
    variate: bool = False
    copies: int = 0
    proximal: str = ""
    personal: bool = False
    prunes: bool = False

    @property
    def remembers(self) -> bool:
        """Whether it has a memory."""
        return bool(self.keeps) or self.variate
