"""Local training of several clients of one plan at once, as one stacked module: the same results as one by one, up to rounding."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.clients.augmentation import Moves, moved, moves_of
from raffm_ray.clients.local_training import ClientData, Prefix, Training, choose, computing, fill_gradients, pull_back
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.clients.module_factory import ModuleFactory, Parameters
from raffm_ray.clients.training_result import TrainingResult, by_plan
from raffm_ray.data.examples import Examples, sent
from raffm_ray.models.freezing import only_trained
from raffm_ray.models.objectives import Objective
from raffm_ray.models.stacked_modules import StackedModule
from raffm_ray.models.word_rows import only_rows, word_table, words_read

Stack = dict[str, Tensor]
"""Parameters of several clients: by name, [clients, ...], leaves that gradients are gathered in."""


@dataclass(frozen=True)
class Part:
    """Some of a stack's clients with all or a smaller prefix of their plan: a module, and how its parameters are shared."""

    module: StackedModule
    prefix: Prefix


Parts = Callable[[int | None, Tensor], Part]
"""(position of a prefix or None for the own plan, rows of the stack) -> that part of it."""


def stacking_groups(jobs: Sequence[Job], largest: Sequence[int]) -> list[tuple[int | None, list[Job]]]:
    """Clients that are trained at once, each group with its plan: up to `largest[plan]` of those that train a plan, in their order."""
    found: list[tuple[int | None, list[Job]]] = []
    last: dict[int, list[Job]] = {}
    for job in jobs:
        if job.plan is not None and job.plan in last and len(last[job.plan]) < largest[job.plan]:
            last[job.plan].append(job)
            continue
        found.append((job.plan, [job]))
        if job.plan is not None and largest:
            last[job.plan] = found[-1][1]
    return found


def stack_of(values: Mapping[str, Tensor], clients: int, device: str) -> Stack:
    """That many copies of a plan's parameters, ready to be trained."""
    return {
        name: value.to(device).expand(clients, *value.shape).clone(memory_format=torch.contiguous_format).requires_grad_()
        for name, value in values.items()
    }


def _batch(examples: Examples, drawn: Sequence[NDArray[np.int64] | None], device: str) -> tuple[dict[str, Tensor], Tensor]:
    """The clients' batches as one, [clients * longest, ...], and which rows are real, [clients, longest].

    A shorter batch is filled up with its first example, an idle client's with anybody's: neither counts.
    """
    anybody = next(indices for indices in drawn if indices is not None)[:1]
    longest = max(len(indices) for indices in drawn if indices is not None)
    rows = np.empty((len(drawn), longest), dtype=np.int64)
    real = np.zeros((len(drawn), longest), dtype=bool)
    for row, indices in enumerate(drawn):
        rows[row] = anybody if indices is None else indices[0]
        if indices is not None:
            rows[row, : len(indices)], real[row, : len(indices)] = indices, True
    return examples.batch(rows.reshape(-1), device), sent(torch.from_numpy(real), device)


def _moves(training: Training, clients: Sequence[ClientData], counts: Sequence[int], longest: int) -> Moves | None:
    """[clients * longest, 3]: every client's own draws for its examples, nothing for what fills up its rows."""
    drawn = [
        moves_of(training.local, client.augmentation_rng, count) if count else None
        for client, count in zip(clients, counts, strict=True)
    ]
    if all(moves is None for moves in drawn):
        return None
    found = np.zeros((len(clients), longest, 3), dtype=np.int64)
    for row, moves in enumerate(drawn):
        if moves is not None:
            found[row, : len(moves)] = moves
    return found.reshape(-1, 3)


def passes_of(
    clients: Sequence[ClientData], drawn: Sequence[NDArray[np.int64] | None], prefix: str, prefixes: int, step: int
) -> dict[int | None, list[int]]:
    """Which rows go through the own plan (None) and through each prefix in a step, as `local_training.choose` says for each client."""
    passes: dict[int | None, list[int]] = {}
    for row, (client, indices) in enumerate(zip(clients, drawn, strict=True)):
        if indices is not None:
            whole, smaller = choose(prefix, prefixes, step, client.prefix_rng)
            for position in ([None] if whole else []) + ([] if smaller is None else [smaller]):
                passes.setdefault(position, []).append(row)
    return passes


def _whole(
    module: StackedModule, parameters: Stack, objective: Objective, batch: Mapping[str, Tensor], real: Tensor, precision: str
) -> Tensor:
    """Adds every client's gradient of its mean loss over its real rows; returns these losses, [clients]."""
    with computing(precision, str(real.device)):
        output = module(parameters, {name: values for name, values in batch.items() if name != "labels"})
        each = objective.each(output, batch["labels"]).view(*real.shape, 2)
    summed, counted = torch.where(real[..., None], each, 0.0).sum(1).unbind(1)
    losses = summed / torch.where(real.any(1), counted, 1.0)
    losses.sum().backward()
    return losses.detach()


def _some(part: Part, objective: Objective, batch: Mapping[str, Tensor], real: Tensor, at: Tensor, precision: str) -> Tensor:
    """`_whole` for these rows of a stack, through a part of it."""
    part.prefix.read()
    chosen = {name: values.view(*real.shape, *values.shape[1:])[at].flatten(0, 1) for name, values in batch.items()}
    losses = _whole(part.module, part.prefix.parameters, objective, chosen, real[at], precision)
    part.prefix.return_gradients()
    return losses


def _objective(training: Training, offsets: Tensor | None) -> Objective:
    """`offsets`: [clients, longest, classes], None for none."""
    return training.adjusted(None if offsets is None else offsets.flatten(0, 1)).objective


def _clip(parameters: Stack, largest: float) -> None:
    """Scales every client's gradient to at most that norm, as `torch.nn.utils.clip_grad_norm_` does for one."""
    gradients = [values.grad for values in parameters.values() if values.grad is not None]
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    scale = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def train_stack(
    module: StackedModule,
    stack: Stack,
    training: Training,
    examples: Examples,
    clients: Sequence[ClientData],
    part: Parts,
    offsets: Tensor | None = None,
) -> list[tuple[float, dict[int | None, int]]]:
    """Trains what takes a gradient of `stack` in place, every client on its own batches; returns what `local_training.train` returns, for every client.

    `offsets`: [clients, classes], what is added to their logits, None for nothing. Clients may differ in their numbers of steps and of examples: who is done is put aside, who has fewer examples is filled up.
    """
    local = training.local
    steps = [training.steps(len(one.share)) for one in clients]
    streams = [one.batches(examples, training, count) for one, count in zip(clients, steps, strict=True)]
    device = str(next(iter(stack.values())).device)
    trained = [values for values in stack.values() if values.requires_grad]
    optimizer = training.optimizer(trained, stacked=True)
    given = [values.detach().clone() for values in trained] if local.proximal else []
    losses: list[list[Tensor]] = [[] for _ in clients]
    seen: list[dict[int | None, int]] = [{} for _ in clients]
    done: list[tuple[Tensor, list[Tensor]]] = []
    used: list[Tensor] = []
    for step in range(max(steps)):
        drawn = [next(stream, None) for stream in streams]
        counts = [0 if indices is None else len(indices) for indices in drawn]
        batch, real = _batch(examples, drawn, device)
        batch = moved(batch, _moves(training, clients, counts, real.shape[1]), local.crop_padding)
        optimizer.zero_grad(set_to_none=True)
        added = None if offsets is None else offsets[:, None].expand(-1, real.shape[1], -1)
        passes = passes_of(clients, drawn, training.prefix, training.prefixes, step)
        for position, rows in sorted(passes.items(), key=lambda one: -1 if one[0] is None else one[0]):
            at = torch.tensor(rows, device=device)
            everybody = position is None and len(rows) == sum(indices is not None for indices in drawn)
            found = (
                _whole(module, stack, _objective(training, added), batch, real, local.precision)
                if everybody
                else _some(
                    part=part(position, at),
                    objective=_objective(training, None if added is None else added[at]),
                    batch=batch,
                    real=real,
                    at=at,
                    precision=local.precision,
                )
            )
            for row in rows:
                seen[row][position] = seen[row].get(position, 0) + counts[row]
                if position is None:
                    losses[row].append(found[row if everybody else rows.index(row)])
        fill_gradients(trained, used)
        if local.proximal:
            pull_back(trained, given, local.proximal)  # type: ignore[arg-type]  # leaves
        if local.clip is not None:
            _clip(stack, local.clip)
        optimizer.step()
        if ended := [row for row, count in enumerate(steps) if count == step + 1 < max(steps)]:
            at = torch.tensor(ended, device=device)
            done.append((at, [values.detach()[at] for values in trained]))
    with torch.no_grad():
        for at, rows_of in done:
            for values, kept in zip(trained, rows_of, strict=True):
                values[at] = kept
    return [(float(np.mean(torch.stack(found).tolist())), passed) for found, passed in zip(losses, seen, strict=True)]


def train_together(
    factory: ModuleFactory,
    parameters: Parameters,
    context: RoundContext,
    examples: Examples,
    jobs: Sequence[Job],
    number: int,
    training: Training,
    clients: Sequence[ClientData],
) -> list[TrainingResult]:
    """Trains plan `number` of the round for several clients as one stacked module; the generators of each are those that it has alone.
    `parameters`: the full model's by name; `training`, `clients`: what is the same for all, and the data of each, in the order of `jobs`."""
    began, plan, first = time.perf_counter(), context.plans[number], jobs[0]
    with factory.watch.during("cut"):
        given = factory.cut(parameters, plan, context.norms)
        stack = stack_of(given, len(jobs), factory.device)
        trained = only_trained(stack, factory.architecture.layout)

    def part(position: int | None, rows: Tensor) -> Part:
        smaller = plan if position is None else context.plans[first.prefixes[position]]
        return Part(factory.stacked(smaller), factory.prefix(smaller, plan, stack, context.norms, rows))

    training = training.against_skew(factory.architecture.class_shares)
    offsets = [added for client in clients if (added := client.logit_offsets(examples, training, factory.device)) is not None]
    with factory.watch.during("train"):
        outcomes = train_stack(
            module=factory.stacked(plan),
            stack=stack,
            training=training,
            examples=examples,
            clients=clients,
            part=part,
            offsets=torch.stack(offsets) if offsets else None,
        )
    changes = {name: values.detach() - given[name] for name, values in trained.items()}
    table, results = word_table(factory.architecture) if context.own_words else None, list[TrainingResult]()
    seconds = (time.perf_counter() - began) / len(jobs)
    for row, (job, (loss, seen), client) in enumerate(zip(jobs, outcomes, clients, strict=True)):
        changed = {name: values[row] for name, values in changes.items()}
        words = words_read(factory.architecture, examples, client.share) if table in changed else None
        if words is not None:
            changed |= only_rows(changed, factory.architecture, words)
        change = torch.cat([values.flatten() for values in changed.values()])
        results.append(TrainingResult(loss, by_plan(seen, job), change, seconds, words=words))
    return results
