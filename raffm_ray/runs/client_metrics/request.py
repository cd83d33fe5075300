"""The calls that measure clients on their own held-out examples, and the table of their answers.

Examples of all clients that use one subnetwork go through it together, sorted by length, as those of one large client would: how many clients there are
costs next to nothing. Only the answers are put back by client.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raffm_ray.axes.indexing import Plan
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.evaluation.own_model import OwnModel
from raffm_ray.clients.messages import Call, RoundContext
from raffm_ray.data.examples import UNOWNED
from raffm_ray.data.tasks import Task
from raffm_ray.preparation.client_parts import ClientParts
from raffm_ray.server.state import Setup

Indices = NDArray[np.int64]
Answers = NDArray[np.float64]
MODELS = ("own", "full", "personal", "tuned")
"""Whose metric a row is: of the subnetwork of the client's device type; of the full model; of that subnetwork with the parameters that the client
keeps for itself; and of that after `evaluation.tune`. The latter two are measured where the experiment has them."""
NO_STATES: Mapping[int, ClientState] = {}
"""Of clients that keep nothing."""
SCHEMA = pa.schema(
    {
        "round": pa.int64(),
        "client": pa.int64(),
        "device_type": pa.string(),
        "group": pa.string(),
        "unseen": pa.bool_(),
        "model": pa.string(),
        "examples": pa.int64(),
        "metric": pa.float64(),
        "loss": pa.float64(),
    }
)
"""A row for every measured client and each of `MODELS` that it is measured with. `group`: the only one that all its examples are of, null where there is none; `unseen`:
whether it is kept from training; `metric`: null where it is not defined on these examples; `loss`: mean over targets."""


class _Pass(NamedTuple):
    """A plan's examples: `members`: places of its clients among the measured ones; `indices`: of their examples, client after client; `order`: in
    which they are evaluated; `edges`: [members + 1], where each client's begin."""

    members: Indices
    indices: Indices
    order: Indices
    edges: Indices


def client_calls(
    setup: Setup,
    context: RoundContext,
    plans: Mapping[str, Plan],
    task: Task,
    parts: ClientParts,
    states: Mapping[int, ClientState] = NO_STATES,
) -> tuple[list[Call], Callable[[Sequence[Any]], pa.Table]]:
    """Calls that measure all of `parts.measured`, and what makes a table of `SCHEMA` of their small results, in call order.

    `plans`: by device type; `context`: of an evaluation of the full model and all of them; `states`: by client, what it keeps.
    """
    device_types = [setup.device_types[client] for client in parts.measured]
    members: dict[Plan, set[int]] = {Plan(): set(range(len(device_types)))}
    for place, name in enumerate(device_types):
        members.setdefault(plans[name], set()).add(place)
    lengths, size = task.clients.lengths(), setup.experiment.evaluation.batch_size
    passes = {plan: _pass(sorted(places), parts, lengths) for plan, places in members.items()}
    steps = 1 + (task.writing.most if task.writing else 0)  # a token takes one
    calls, starts = list[Call](), [0]
    for plan, one in passes.items():
        flops = setup.costs(plan).forward_flops * steps
        for start in range(0, len(one.indices), size):
            batch = one.indices[one.order[start : start + size]]
            calls.append(Call("evaluate_clients", context, (context.plans.index(plan), batch), float(flops * len(batch))))
        starts.append(len(calls))
    single = _single_calls(setup, context, plans, task, parts, states)
    calls += [call for call, _ in single]

    def answer(results: Sequence[Any]) -> pa.Table:
        found = {}
        for (plan, one), (start, stop) in zip(passes.items(), pairwise(starts), strict=True):
            found[plan] = _by_client(one, results[start:stop], task)
        alone = {
            key: _score(task, result, parts.held_out[key[0]])
            for (_, key), result in zip(single, results[starts[-1] :], strict=True)
        }
        rows = []
        for place, client in enumerate(parts.measured.tolist()):
            about = {
                "round": context.round,
                "client": client,
                "device_type": device_types[place],
                "group": _group(task, parts.owned[client]),
                "unseen": bool(parts.unseen[client]),
                "examples": len(parts.held_out[client]),
            }
            measured = {"own": found[plans[device_types[place]]][place], "full": found[Plan()][place]}
            if setup.keeps_own:
                measured["personal"] = alone.get(
                    (client, "personal"), measured["own"]
                )  # who never trained has the server's parameters
            if (client, "tuned") in alone:
                measured["tuned"] = alone[client, "tuned"]
            rows += [{**about, "model": model, "metric": metric, "loss": loss} for model, (metric, loss) in measured.items()]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    return calls, answer


def _single_calls(
    setup: Setup,
    context: RoundContext,
    plans: Mapping[str, Plan],
    task: Task,
    parts: ClientParts,
    states: Mapping[int, ClientState],
) -> list[tuple[Call, tuple[int, str]]]:
    """Calls that measure clients one by one, whose models are their own, each with its client and one of `MODELS`."""
    experiment, found = setup.experiment, []
    size, tune = experiment.evaluation.batch_size, experiment.evaluation.tune.steps
    for client in parts.measured.tolist():
        plan, state, held_out = plans[setup.device_types[client]], states.get(client), parts.held_out[client]
        costs, number = setup.costs(plan), context.plans.index(plan)
        batches = np.split(held_out, range(size, len(held_out), size))
        flops = float(costs.forward_flops * len(held_out) * (1 + (task.writing.most if task.writing else 0)))
        if setup.keeps_own and state is not None:
            call = Call("evaluate_client", context, (OwnModel(number, client, state), batches), flops)
            found.append((call, (client, "personal")))
        if tune and len(parts.trained[client]):
            asked = OwnModel(number, client, state if setup.keeps_own else None, tune)
            training = float(costs.training_flops * tune * experiment.local.batch_size)
            found.append((Call("evaluate_client", context, (asked, batches), flops + training), (client, "tuned")))
    return found


def _score(task: Task, result: tuple[Answers, Answers], held_out: Indices) -> tuple[float | None, float]:
    """(metric, mean loss of a target) of one client."""
    assert task.client_score is not None
    answers, (loss, targets) = result[0], result[1].sum(axis=0).tolist()
    return task.client_score(answers, held_out), loss / max(targets, 1)


def _pass(places: Sequence[int], parts: ClientParts, lengths: Indices | None) -> _Pass:
    held_out = [parts.held_out[parts.measured[place]] for place in places]
    indices = np.concatenate(held_out)
    order = np.arange(len(indices)) if lengths is None else np.argsort(lengths[indices], kind="stable")
    return _Pass(np.array(places), indices, order, np.cumsum([0, *map(len, held_out)]))


def _by_client(one: _Pass, results: Sequence[Any], task: Task) -> dict[int, tuple[float | None, float]]:
    """Place of a client -> (metric, mean loss of a target)."""
    assert task.client_score is not None
    back = np.argsort(one.order)
    answers, losses = (np.concatenate(parts)[back] for parts in zip(*results, strict=True))
    summed = np.add.reduceat(losses, one.edges[:-1])
    found = {}
    for place, (start, stop), (loss, targets) in zip(one.members.tolist(), pairwise(one.edges), summed.tolist(), strict=True):
        metric = task.client_score(answers[start:stop], one.indices[start:stop])
        found[place] = metric, loss / max(targets, 1)
    return found


def _group(task: Task, owned: Indices) -> str | None:
    groups = task.clients.groups
    if groups is None:
        return None
    first = int(groups[owned[0]])
    return task.clients.group_names[first] if first != UNOWNED and bool((groups[owned] == first).all()) else None
