"""The server: state in, state out. Begin a round, finish a round; no processes, no files, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import cos, pi

from torch import Tensor

from raffm_ray.aggregate import RULES, flat_coverage
from raffm_ray.axes import AxisError, Plan, check_plan
from raffm_ray.calibration import add_statistics, backward_passes
from raffm_ray.errors import UserError
from raffm_ray.messages import Job, Package, Report, Update
from raffm_ray.nesting import within
from raffm_ray.ranking import cuts_residual, wanted_statistic
from raffm_ray.seeding import generator
from raffm_ray.settings import Experiment
from raffm_ray.state import (
    Round,
    ServerState,
    Setup,
    blocks_of,
    class_plans,
    view_of,
)


def _learning_rate(experiment: Experiment, round_number: int) -> float:
    local = experiment.local
    done = (round_number - 1) / experiment.rounds
    return local.learning_rate * (0.5 * (1 + cos(pi * done)) if local.schedule == "cosine" else 1.0)


def begin_round(setup: Setup, state: ServerState) -> Round:
    """Draws the next round's clients and cuts their plans. Pure: the same state gives the same round."""
    experiment, strategy = setup.experiment, setup.strategy
    number = state.round + 1
    view = view_of(setup, state, number)
    able = [client for client, count in enumerate(setup.examples) if count]
    rng = generator(experiment.seed, "clients", number)
    chosen = sorted(rng.choice(able, size=min(experiment.clients.per_round, len(able)), replace=False).tolist())
    shared: dict[str, Plan | None] = {}
    trained: dict[int, Plan] = {}
    for client in chosen:
        name = setup.classes[client]
        if strategy.per_client:
            plan = strategy.train(view, setup.budgets[name], client)
        else:
            if name not in shared:
                shared[name] = strategy.train(view, setup.budgets[name], client)
            plan = shared[name]
        if plan is not None:
            trained[client] = plan
    for plan in set(trained.values()):
        check_plan(plan, setup.architecture.layout.axes)
    nested = class_plans(setup, state, number) if strategy.prefix != "none" else {}
    by_size = sorted({*trained.values(), *nested.values()}, key=lambda plan: (setup.costs(plan).params, plan.key))
    number_of = {plan: position for position, plan in enumerate(by_size)}
    candidates = sorted({number_of[plan] for plan in nested.values()})
    prefixes_of = {own: tuple(one for one in candidates if one < own) for own in {number_of[plan] for plan in trained.values()}}
    _check_nesting(setup, by_size, prefixes_of)
    statistic = wanted_statistic(setup, state)
    jobs = [
        Job(client, number_of[plan], prefixes_of[number_of[plan]], strategy.prefix, statistic is not None and len(plan) == 0)
        for client, plan in trained.items()
    ]
    package = Package(
        experiment.seed, number, tuple(by_size), experiment.local, _learning_rate(experiment, number), statistic,
        experiment.salience.examples, statistic is not None and cuts_residual(setup, state), state.norms,
    )  # fmt: skip
    return Round(package, blocks_of(jobs, experiment.pool.block_clients))


def _check_nesting(setup: Setup, plans: Sequence[Plan], prefixes_of: Mapping[int, tuple[int, ...]]) -> None:
    for own, prefixes in prefixes_of.items():
        for prefix in prefixes:
            try:
                within(plans[prefix], plans[own], setup.architecture.layout)
            except AxisError as error:
                name = setup.experiment.strategy.name
                raise UserError(
                    f"strategy.prefix: the plans of strategy {name!r} are not nested in each other: {error}"
                ) from None


def finish_round(setup: Setup, state: ServerState, work: Round, summed: Tensor, updates: Sequence[Update]) -> ServerState:
    """Averages the blocks' sums into new parameters and keeps the statistics for the next ranking.

    `summed`: the flat sum of all blocks, added in block order. A round in which nobody trained leaves the parameters as they are.
    """
    weights: dict[int, float] = {}
    pending = state.pending
    for update in updates:
        for plan, weight in update.weights.items():
            weights[plan] = weights.get(plan, 0.0) + weight
        if update.statistics:
            pending = add_statistics(pending, update.statistics)
    total = sum(weights.values())
    parameters = state.parameters
    if total > 0:
        covered = flat_coverage(weights, work.package.plans, setup.architecture.layout, setup.architecture.shapes)
        parameters = RULES[setup.strategy.aggregation](parameters, summed, covered, total)
    return replace(state, round=work.package.round, parameters=parameters, pending=pending)


def training_flops(setup: Setup, work: Round, report: Report) -> float:
    """FLOPs that a client's work took on its device: every example through every plan it trained, and its calibration."""
    flops = sum(setup.costs(work.package.plans[plan]).training_flops * examples for plan, examples in report.forward_backward)
    # Statistics take a forward pass and some backward, those of norms another forward pass.
    full, architecture = setup.costs(Plan()), setup.architecture
    outputs = architecture.config.num_labels if architecture.head.endswith("classification") else None
    backward = backward_passes(work.package.statistic, outputs) * (full.training_flops - full.forward_flops)
    flops += report.calibrated * ((1 + work.package.measure_norms) * full.forward_flops + backward)
    return float(flops)
