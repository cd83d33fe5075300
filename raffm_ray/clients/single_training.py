"""The training of one client: its subnetwork is cut, trained by the update that the settings name, and what changed is taken out again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan, take_selected
from raffm_ray.clients.client_state import NO_STATE, ClientState, own_parameters, recall, state_of
from raffm_ray.clients.client_updates import CLIENT_UPDATES, updated
from raffm_ray.clients.local_training import ClientData, Prefix, Training, computing
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.clients.module_factory import ModuleFactory, Parameters
from raffm_ray.clients.training_result import TrainingResult, by_plan
from raffm_ray.clients.updates.row import OWN, Batches
from raffm_ray.data.examples import Examples
from raffm_ray.models.freezing import only_trained
from raffm_ray.models.word_rows import only_rows, word_rows, word_table, words_read

Remembered = tuple[ClientState | None, Tensor | None]
"""What a client keeps from the last round in which it trained, and the server's control variate, flat."""
NONE: Remembered = (None, None)


class Work(NamedTuple):
    """One client's training: its job, what all of its plan share, its data, and what is remembered."""

    job: Job
    training: Training
    client: ClientData
    state: ClientState | None = None
    variate: Tensor | None = None


def train_alone(
    factory: ModuleFactory, parameters: Parameters, context: RoundContext, examples: Examples, work: Work, number: int
) -> TrainingResult:
    """Trains plan `number` of the round for one client. `parameters`: the full model's by name, on the factory's device."""
    architecture, plan, words = factory.architecture, context.plans[number], None
    row, personal, decay = CLIENT_UPDATES[context.local.client_update], set(context.personal), context.local.weight_decay
    if row.stacks and not personal and (context.own_words or not decay):  # which shrinks also the words that no text uses
        words = words_read(architecture, examples, work.client.share)
    rows = word_rows(architecture, words, factory.device)
    module = factory.module(parameters, plan, context.norms, rows=rows).train()
    own = dict(module.named_parameters())
    trained = only_trained(own, architecture.layout)
    held = {name: trained.pop(name).requires_grad_(False) for name in context.held if name in trained}
    before = work.state or NO_STATE
    _take_own(factory, parameters, context, work, plan, trained)
    given = {name: parameter.detach().clone() for name, parameter in trained.items()}
    memory = None
    if row.remembers:
        memory = recall(before, plan, row.keeps, given, parameters, factory)
        memory = replace(memory, variate={} if work.variate is None else _cut(factory, work.variate, plan))
    made: dict[int, tuple[nn.Module, Prefix]] = {}

    def prefix_at(position: int) -> tuple[nn.Module, Prefix]:
        if position not in made:
            smaller = context.plans[work.job.prefixes[position]]
            made[position] = factory.inside(smaller, plan, own, context.norms, rows)
        return made[position]

    training = work.training.against_skew(architecture.class_shares)
    training = training.adjusted(work.client.logit_offsets(examples, training, factory.device))
    batches = Batches(examples, training, work.client, factory.device, prefix_at)
    loss, seen, sent, memory, ranks = updated(module, batches, given, memory)
    variate = _flat(list(memory.variate.values())) if memory and memory.variate else None
    state = None
    if row.keeps or personal:
        kept = dict(memory.kept) if memory else {}
        if personal:
            kept[OWN] = {name: own[name] for name in trained if name in personal}
        state = state_of(plan, kept, memory.numbers if memory else {})
    # What is kept and sent besides is copied by now: the module's own tensors become the change.
    changed = sent or {name: parameter.detach().sub_(given[name]) for name, parameter in trained.items()}
    words = words if context.own_words and word_table(architecture) in changed else None
    if rows is not None and words is None:
        changed[rows.table] = rows.in_table(changed[rows.table])
    elif rows is None and words is not None:
        changed |= only_rows(changed, architecture, words)
    for name in personal & set(changed):
        changed[name] = torch.zeros_like(changed[name])
    if held:
        changed = {
            name: changed[name] if name in changed else torch.zeros_like(held[name])
            for name in own
            if name in {**changed, **held}
        }
    change = _flat(list(changed.values()))
    return TrainingResult(loss, by_plan(seen, work.job), change, state=state, variate=variate, ranks=ranks, words=words)


def _take_own(
    factory: ModuleFactory,
    parameters: Parameters,
    context: RoundContext,
    work: Work,
    plan: Plan,
    trained: Mapping[str, Tensor],
) -> None:
    """Puts the parameters that stay with the client, as it has them, in place of those that it received."""
    mine = {name: values for name, values in trained.items() if name in context.personal}
    for name, values in own_parameters(work.state or NO_STATE, plan, mine, parameters, factory).items() if mine else ():
        trained[name].data.copy_(values)


BATCH = 32
"""Examples of a step in which nothing is trained."""


def received_loss(
    factory: ModuleFactory, parameters: Parameters, context: RoundContext, examples: Examples, work: Work, number: int
) -> float:
    """The mean loss of what a client received, with its own parameters where some are, on all its examples, as "mean" would divide it: before it trains,
    without dropout or changed images. As of `train_alone`."""
    plan, objective, sums = context.plans[number], work.training.objective, list[Tensor]()
    module = factory.module(parameters, plan, context.norms).eval()
    _take_own(
        factory, parameters, context, work, plan, only_trained(dict(module.named_parameters()), factory.architecture.layout)
    )
    share = work.client.share
    with torch.inference_mode(), computing(context.local.precision, factory.device):
        for rows in np.split(share, range(BATCH, len(share), BATCH)):
            batch = examples.batch(rows, factory.device)
            labels = batch.pop("labels")
            sums.append(objective.each(module(**batch), labels).double().sum(0))
    total = torch.stack(sums).sum(0)
    loss, divisor = float(total[0]), float(total[1])
    return loss / divisor if divisor else 0.0


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([values.flatten() for values in tensors])


def _cut(factory: ModuleFactory, variate: Tensor, plan: Plan) -> dict[str, Tensor]:
    """The server's control variate as a plan cuts it."""
    shapes, chosen = factory.architecture.trained_shapes, factory.selections(plan)
    return {name: take_selected(values, chosen[name]) for name, values in views(variate, shapes).items() if name in chosen}
