"""Measures subnetworks on held-out or validation examples, spread over the pool; also of sizes that nobody trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isnan
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pyarrow import Table

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.messages import Call, RoundContext
from raffm_ray.data.tasks import Task
from raffm_ray.pool.worker_pool import Pool
from raffm_ray.preparation.client_parts import ClientParts
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.runs.client_metrics.request import NO_STATES, client_calls
from raffm_ray.runs.summary import Evaluation
from raffm_ray.server.adapter_rules.chosen import model_context
from raffm_ray.server.device_type_plans import copies, device_type_plans, view_of
from raffm_ray.server.early_stopping import watched_metric
from raffm_ray.server.state import ServerState, Setup
from raffm_ray.subnetworks.budgets import Budget

T = TypeVar("T")


@dataclass(frozen=True)
class EvaluationRequest(Generic[T]):
    """What is to be measured of a state's parameters: calls for a pool, and the answer to their small results, in call order."""

    calls: Sequence[Call]
    answer: Callable[[Sequence[Any]], T]


def run_request(question: EvaluationRequest[T], state: ServerState, pool: Pool) -> T:
    """The answer, from a run of the pool for it alone."""
    results = pool.run(state.parameters.numpy(), question.calls, lambda *_: None, state.frozen_array)
    told = [small for small, _ in results]
    with pool.profile.during("evaluate"):
        return question.answer(told)


def _context(setup: Setup, state: ServerState, plans: Sequence[Plan]) -> RoundContext:
    """Of an evaluation of these plans."""
    return RoundContext(
        seed=setup.experiment.seed,
        round=state.round,
        plans=tuple(plans),
        local=setup.experiment.local,
        learning_rate=setup.experiment.local.learning_rate or 0.0,
        norms=state.norms,
        size_specific=setup.size_specific,
        copies=copies(setup, state, plans),
        **model_context(setup.architecture, setup.strategy, state.round),
    )


def request_metrics(
    setup: Setup, state: ServerState, plans: Sequence[Plan], task: Task, validating: bool = False
) -> EvaluationRequest[list[tuple[float, float]]]:
    """(metric, mean loss of a target) of every plan's subnetwork of the state's parameters, on the held-out or validation part."""
    size = setup.experiment.evaluation.batch_size
    examples, score = (task.validation, task.validation_score) if validating else (task.held_out, task.score)
    assert examples is not None
    assert score is not None
    count_examples = len(examples)
    slices = [(start, min(start + size, count_examples)) for start in range(0, count_examples, size)]
    context = _context(setup, state, plans)
    passes = 1 + (task.writing.most if task.writing else 0)  # a token takes one
    asked = [(number, *part) for number in range(len(plans)) for part in slices]
    calls = [
        Call(
            "evaluate",
            context,
            (number, start, stop, validating),
            float(setup.costs(plans[number]).forward_flops * (stop - start) * passes),
        )
        for number, start, stop in asked
    ]

    def answer(results: Sequence[Any]) -> list[tuple[float, float]]:
        answers: list[list[NDArray[np.float64]]] = [[] for _ in plans]
        loss, targets = [0.0] * len(plans), [0] * len(plans)
        for (number, *_), (given, summed, count) in zip(asked, results, strict=True):
            answers[number].append(given)
            loss[number] += summed
            targets[number] += count
        return [
            (score(np.concatenate(given)), total / max(count, 1))
            for given, total, count in zip(answers, loss, targets, strict=True)
        ]

    return EvaluationRequest(calls, answer)


def measure(
    setup: Setup, state: ServerState, plans: Sequence[Plan], pool: Pool, task: Task, validating: bool = False
) -> list[tuple[float, float]]:
    """The answer to `request_metrics`."""
    return run_request(request_metrics(setup, state, plans, task, validating), state, pool)


def request_evaluation(
    setup: Setup,
    state: ServerState,
    task: Task,
    clients: ClientParts | None = None,
    states: Mapping[int, ClientState] = NO_STATES,
) -> EvaluationRequest[Evaluation]:
    """The full model and every device type's subnetwork, on the held-out part and, where there is one, the validation part; with `clients` also on
    the own held-out examples of those that are measured. `states`: by client, what it keeps."""
    by_device_type = device_type_plans(setup, state)
    plans = list(dict.fromkeys([Plan(), *by_device_type.values()]))
    parts = [
        request_metrics(setup, state, plans, task, validating)
        for validating in (False, True)[: 1 + (task.validation is not None)]
    ]

    of_clients: list[EvaluationRequest[Table]] = []
    if clients is not None and len(clients.measured):
        of_clients = [
            EvaluationRequest(*client_calls(setup, _context(setup, state, plans), by_device_type, task, clients, states))
        ]

    def answer(results: Sequence[Any]) -> Evaluation:
        of_device_type, full, start = [], [], 0
        for part in parts:
            measured = part.answer(results[start : start + len(part.calls)])
            _check_finite(state.round, measured, plans, by_device_type)
            start += len(part.calls)
            full.append(measured[0])
            of_device_type.append({name: measured[plans.index(plan)][0] for name, plan in by_device_type.items()})
        found = Evaluation(*full[0], of_device_type[0], by_device_type)
        if of_clients:
            found = replace(found, clients=of_clients[0].answer(results[start:]))
        if len(parts) == 1:
            return found
        watched = watched_metric(setup.experiment.evaluation.watch, task.metric, full[1][0], list(of_device_type[1].values()))
        return replace(found, validation=watched, validation_metric=full[1][0], validation_device_type_metrics=of_device_type[1])

    return EvaluationRequest([call for part in [*parts, *of_clients] for call in part.calls], answer)


def calls_of(prepared: Prepared, state: ServerState) -> Sequence[Call]:
    """Of an evaluation in a run's rounds, for what is told of its time."""
    return request_evaluation(prepared.setup, state, prepared.task, prepared.parts).calls


def _check_finite(
    round_number: int, measured: Sequence[tuple[float, float]], plans: Sequence[Plan], by_device_type: Mapping[str, Plan]
) -> None:
    """Raises UserError where a model answers no numbers: a metric would take them for some answer, right or wrong."""
    for plan, (_, loss) in zip(plans, measured, strict=True):
        if isnan(loss):
            names = [f"the subnetwork of {name}" for name, own in by_device_type.items() if own == plan]
            raise UserError(
                f"round {round_number}: {(names or ['the full model'])[0]} answers numbers that are not finite: training has diverged; a lower "
                "local.learning_rate or server.learning_rate, local.clip or server.update_norm_bound may keep it from that"
            )


def evaluate(setup: Setup, state: ServerState, pool: Pool, task: Task) -> Evaluation:
    """The answer to `request_evaluation`."""
    with pool.profile.during("plan"):
        question = request_evaluation(setup, state, task)
    return run_request(question, state, pool)


def grid(smallest: int, full: int, sizes: int) -> list[int]:
    """`sizes` parameter counts between the smallest and the full one, evenly spaced, without the two ends."""
    return [round(smallest + (full - smallest) * step / (sizes + 1)) for step in range(1, sizes + 1)]


def area(points: Sequence[Mapping[str, Any]]) -> float:
    """The mean metric over sizes: the area under the curve by trapezoids over `params_fraction`, divided by the range it spans.

    `points`: at least one, in ascending `params_fraction`, with their `metric`. A constant curve has that constant.
    """
    spanned = points[-1]["params_fraction"] - points[0]["params_fraction"]
    if spanned <= 0:
        return float(sum(point["metric"] for point in points) / len(points))
    covered = sum((b["params_fraction"] - a["params_fraction"]) * (a["metric"] + b["metric"]) / 2 for a, b in pairwise(points))
    return float(covered / spanned)


def curve_of(setup: Setup, state: ServerState, pool: Pool, task: Task, final: Evaluation) -> dict[str, Any]:
    """The summary's `curve`, `curve_area`, `validation_curve_area` and `curve_skipped`; empty and None where `evaluation.sizes` is 0.

    `curve`: {params, params_fraction, metric, trained} by size, every subnetwork once; `trained`: whether it is a device type's or
    the full model, whose metrics are those of `final`. Between them the strategy is asked for a subnetwork of every size of a grid
    over parameters. `curve_skipped`: {params, reason} of the sizes that it has none for.
    """
    if not setup.experiment.evaluation.sizes:
        return {"curve": [], "curve_area": None, "validation_curve_area": None, "curve_skipped": []}
    known = {plan: final.device_type_metrics[name] for name, plan in final.device_type_plans.items()} | {Plan(): final.metric}
    full, view = setup.costs(Plan()).params, view_of(setup, state, state.round)
    smallest = min(setup.costs(plan).params for plan in known)
    found: dict[Plan, None] = {}
    skipped = []
    for params in grid(smallest, full, setup.experiment.evaluation.sizes):
        try:
            plan = setup.strategy.deploy(view, Budget(params=params), -1)
        except UserError as error:
            skipped.append({"params": params, "reason": str(error)})
            continue
        assert plan is not None
        found[plan] = None
    unseen = [plan for plan in found if plan not in known]

    def points_of(known: Mapping[Plan, float], validating: bool = False) -> list[dict[str, Any]]:
        measured = measure(setup, state, unseen, pool, task, validating)
        metrics = {**known, **{plan: metric for plan, (metric, _) in zip(unseen, measured, strict=True)}}
        points = []
        for plan, metric in metrics.items():
            params = setup.costs(plan).params
            points.append({"params": params, "params_fraction": params / full, "metric": metric, "trained": plan in known})
        return sorted(points, key=lambda point: point["params"])

    points, validated = points_of(known), None
    if final.validation_metric is not None:
        own = {plan: final.validation_device_type_metrics[name] for name, plan in final.device_type_plans.items()}
        validated = area(points_of(own | {Plan(): final.validation_metric}, validating=True))
    return {"curve": points, "curve_area": area(points), "validation_curve_area": validated, "curve_skipped": skipped}
