"""A client's local training as a whole: one function and one row of `CLIENT_UPDATES`. No plans, no messages, no Ray."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raffm_ray.basics.registry import Table
from raffm_ray.clients.augmentation import moved, moves_of
from raffm_ray.clients.local_training import (
    ClientData,
    Distillation,
    Prefix,
    Training,
    backward,
    choose,
    fill_gradients,
    pull_back,
)
from raffm_ray.data.examples import Examples, step_sizes

PrefixAt = Callable[[int], tuple[nn.Module, Prefix]]
"""Makes a smaller prefix of the client's plan, which is remembered."""
State = Mapping[str, Any] | None
"""What a client keeps from round to round: nothing so far."""


@dataclass
class Batches:
    """A client's batches of one round, a mapping of tensors with `labels` for every step, drawn as they are asked for; each is seen once.

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
        for indices in client.batches(self.examples, local, len(self)):
            moves = moves_of(local, client.augmentation_rng, len(indices))
            yield moved(self.examples.batch(indices, self.device), moves, local.crop_padding)

    def note(self, prefix: int | None, batch: Mapping[str, Tensor]) -> None:
        """Counts a batch's examples."""
        self.seen[prefix] = self.seen.get(prefix, 0) + len(batch["labels"])


Sent = Mapping[str, Tensor]
"""By name of parameter, what is added to the server's sum: as a rule how far it moved."""


@dataclass(frozen=True)
class ClientUpdate:
    """A row of `CLIENT_UPDATES`.

    `train(module, batches, given, training, rng, state)`: the mean loss, and what is sent. `module`: the client's subnetwork, ready to
    be trained in place; `given`: by name, its trained parameters as they were received, [as in the module]; `training`: the objective,
    the learning rate, the settings of `local`, `own` settings of plug-ins, and an `optimizer` of parameters; `rng`: the client's own;
    `state`: None so far. What is sent has the names and shapes of `given`; None is sent for `given`'s change in the module.

    `passes`: how many times every example of a batch goes forward and backward, which the device is charged. `prefixes`: whether it trains
    prefixes as well. `stacks`: whether `stacked_training` does the same for several clients at once.
    """

    train: Callable[[nn.Module, Batches, Mapping[str, Tensor], Training, np.random.Generator, State], tuple[float, Sent | None]]
    passes: float = 1.0
    prefixes: bool = False
    stacks: bool = False


def standard(
    module: nn.Module,
    batches: Batches,
    given: Mapping[str, Tensor],
    training: Training,
    rng: np.random.Generator,
    state: State,
) -> tuple[float, Sent | None]:
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
    return float(np.mean(torch.stack(losses).tolist())), None  # read once: a GPU would be waited for at every step


CLIENT_UPDATES: Table[ClientUpdate] = Table(
    "client_update", {"standard": ClientUpdate(standard, prefixes=True, stacks=True)}, in_workers=True
)


def updated(
    module: nn.Module, work: Batches, given: Mapping[str, Tensor]
) -> tuple[float, dict[int | None, int], dict[str, Tensor] | None]:
    """What the update that the settings name makes of a module: the mean loss, how many examples went through the own plan (None) and each
    prefix, and what is sent where that is not the module's change.

    Raises ValueError where what it returns is of another form.
    """
    training, name = work.training, work.training.local.client_update
    row = CLIENT_UPDATES.chosen(name, training.own)
    told = row.train(module, work, given, training, work.client.prefix_rng, None)
    if not isinstance(told, tuple) or len(told) != 2:
        raise ValueError(f"local.client_update {name!r}: expected (loss, what is sent), got {type(told).__name__}")
    loss, sent = told
    if not row.stacks:
        sizes = step_sizes(len(work.client.share), training.local.batch_size, len(work))
        work.seen = {None: planned_examples(row, sum(sizes))}
    return float(loss), work.seen, None if sent is None else _checked(sent, given, name)


def planned_examples(row: ClientUpdate, examples: int) -> int:
    """How many examples a client is charged for, of so many in its batches."""
    return round(row.passes * examples)


def _checked(sent: Sent, given: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What is sent, in the order of what was given. Raises ValueError where it has other names or shapes."""
    if set(sent) != set(given):
        wrong = sorted(set(sent) ^ set(given))[0]
        raise ValueError(
            f"local.client_update {name!r}: sent {wrong!r} {'besides' if wrong in sent else 'is missing of'} what was given"
        )
    for key, values in given.items():
        if sent[key].shape != values.shape:
            raise ValueError(
                f"local.client_update {name!r}: {key!r} is sent as {list(sent[key].shape)}, expected {list(values.shape)}"
            )
    return {key: sent[key].detach().to(values.dtype).to(values.device) for key, values in given.items()}


def train(
    module: nn.Module,
    training: Training,
    examples: Examples,
    client: ClientData,
    prefix_at: PrefixAt | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> tuple[float, dict[int | None, int]]:
    """Trains a module in place as `training` says: the mean loss, and how many examples went through the own plan (None) and each prefix.

    `given`: the parameters that the module began with.
    """
    device = str(next(parameter for parameter in module.parameters() if parameter.requires_grad).device)
    loss, seen, _ = updated(module, Batches(examples, training, client, device, prefix_at), given or {})
    return loss, seen
