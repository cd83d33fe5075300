"""A client's local training as a whole, by name: the table `CLIENT_UPDATES`, and what the row that the settings name makes of a module."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from raffm_ray.basics.registry import Table
from raffm_ray.clients.local_training import ClientData, Training
from raffm_ray.clients.updates.control_variates import CONTROL, DUAL, feddyn, scaffold
from raffm_ray.clients.updates.meta import per_fedavg
from raffm_ray.clients.updates.personal import INNER_STEPS, ditto, fedrep, pfedme
from raffm_ray.clients.updates.pruning import rank_pruning
from raffm_ray.clients.updates.row import OWN, Batches, ClientUpdate, Memory, Named, Outcome, PrefixAt
from raffm_ray.clients.updates.standard import standard
from raffm_ray.data.examples import Examples, step_sizes

CLIENT_UPDATES: Table[ClientUpdate] = Table(
    "client_update",
    {
        "standard": ClientUpdate(standard, prefixes=True, stacks=True),
        "scaffold": ClientUpdate(scaffold, keeps={CONTROL: "zeros"}, variate=True, copies=3),
        "feddyn": ClientUpdate(feddyn, keeps={DUAL: "zeros"}, copies=2, proximal="alpha of FedDyn"),
        "ditto": ClientUpdate(ditto, passes=2.0, keeps={OWN: "received"}, copies=2, proximal="lambda of Ditto"),
        "pfedme": ClientUpdate(pfedme, passes=INNER_STEPS, keeps={OWN: "received"}, copies=2, proximal="lambda of pFedMe"),
        "per_fedavg": ClientUpdate(per_fedavg, passes=2.0, copies=1),
        "rank_pruning": ClientUpdate(rank_pruning, proximal="lambda of HetLoRA", prunes=True),
        "fedrep": ClientUpdate(fedrep, passes=2.0, personal=True),
    },
    in_workers=True,
)


class Updated(NamedTuple):
    """What a client update made of a module. `seen`: how many examples went through the own plan (None) and each prefix; `sent`: what is
    sent where that is not the module's change; `memory`: what is kept and sent besides; `ranks`: as of `Outcome`."""

    loss: float
    seen: dict[int | None, int]
    sent: dict[str, Tensor] | None
    memory: Memory | None
    ranks: int | None


def updated(module: nn.Module, work: Batches, given: Named, memory: Memory | None = None) -> Updated:
    """What the update that the settings name makes of a module.

    Raises ValueError where what it returns is of another form.
    """
    training, name = work.training, work.training.local.client_update
    row = CLIENT_UPDATES.chosen(name, training.own)
    told = row.train(module, work, given, training, work.client.prefix_rng, memory if row.remembers else None)
    if not isinstance(told, tuple) or not 1 < len(told) <= len(Outcome._fields):
        raise ValueError(f"local.client_update {name!r}: expected (loss, what is sent, memory), got {type(told).__name__}")
    outcome = Outcome(*told)
    if not row.stacks:
        sizes = step_sizes(len(work.client.share), training.local.batch_size, len(work))
        work.seen = {None: planned_examples(row, sum(sizes))}
    sent = None if outcome.sent is None else _checked(outcome.sent, given, name, "sent")
    return Updated(float(outcome.loss), work.seen, sent, _checked_memory(row, outcome.memory, given, name), outcome.ranks)


def planned_examples(row: ClientUpdate, examples: int) -> int:
    """How many examples a client is charged for, of so many in its batches."""
    return round(row.passes * examples)


def _checked_memory(row: ClientUpdate, memory: Memory | None, given: Named, name: str) -> Memory | None:
    """What is to be remembered; its tensors may still be the module's own. Raises ValueError where it is not what the row declares."""
    if not row.remembers:
        if memory is not None:
            raise ValueError(f"local.client_update {name!r}: returned a memory, and declares none (keeps, variate)")
        return None
    if memory is None:
        raise ValueError(f"local.client_update {name!r}: returned no memory, and declares one (keeps, variate)")
    if set(memory.kept) != set(row.keeps) or bool(memory.variate) != row.variate:
        kinds = [*memory.kept, *(["variate"] if memory.variate else [])]
        declared = [*row.keeps, *(["variate"] if row.variate else [])]
        raise ValueError(
            f"local.client_update {name!r}: its memory has {', '.join(kinds) or 'nothing'}, declared: {', '.join(declared)}"
        )
    kept = {kind: _checked(values, given, name, f"kept as {kind}") for kind, values in memory.kept.items()}
    variate = _checked(memory.variate, given, name, "sent for the variate") if row.variate else {}
    return Memory(kept, {key: float(value) for key, value in memory.numbers.items()}, variate)


def _checked(found: Named, given: Named, name: str, what: str) -> dict[str, Tensor]:
    """Tensors in the order of what was given. Raises ValueError where they have other names or shapes."""
    if set(found) != set(given):
        wrong = sorted(set(found) ^ set(given))[0]
        raise ValueError(
            f"local.client_update {name!r}: {what}: {wrong!r} {'besides' if wrong in found else 'is missing of'} what was given"
        )
    for key, values in given.items():
        if found[key].shape != values.shape:
            raise ValueError(
                f"local.client_update {name!r}: {what}: {key!r} is {list(found[key].shape)}, expected {list(values.shape)}"
            )
    return {key: found[key].detach().to(values.dtype).to(values.device) for key, values in given.items()}


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
    done = updated(module, Batches(examples, training, client, device, prefix_at), given or {})
    return done.loss, done.seen
