"""The server: state in, state out. Begin a round, finish a round; no processes, no files, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import cos, pi

import numpy as np
import torch
from torch import Tensor

from raffm_ray.aggregate import RULES, flat_coverage
from raffm_ray.architectures import Architecture
from raffm_ray.axes import AxisError, Plan, check_plan
from raffm_ray.calibration import Statistics, add_statistics, backward_passes, rankable
from raffm_ray.costs import Budget, Costs, costs_of
from raffm_ray.errors import UserError, look_up
from raffm_ray.extraction import Cutting
from raffm_ray.messages import Job, Package, Report, Update, views
from raffm_ray.nesting import within
from raffm_ray.norms import norm_part
from raffm_ray.salience import METRICS, Scores
from raffm_ray.seeding import generator
from raffm_ray.settings import Experiment
from raffm_ray.strategies import STRATEGIES, Strategy, View


@dataclass(frozen=True)
class Setup:
    """What does not change during a run. `budgets`: by device class, weakest first; `classes`: the class of every client."""

    experiment: Experiment
    architecture: Architecture
    strategy: Strategy
    budgets: Mapping[str, Budget]
    classes: Sequence[str]
    examples: Sequence[int]

    @property
    def cutting(self) -> Cutting:
        """How plans may be cut."""
        return Cutting(self.experiment.extraction.steps, self.experiment.extraction.floors)

    def costs(self, plan: Plan) -> Costs:
        """What a plan costs with this experiment's local training."""
        return costs_of(self.architecture, plan, self.experiment.local.batch_size, self.experiment.local.optimizer)


@dataclass(frozen=True)
class ServerState:
    """All that the next round depends on. `pending`: statistics reported since the last ranking; `norms`: from before it."""

    round: int
    parameters: Tensor
    scores: Scores
    pending: Statistics | None = None
    norms: Statistics = field(default_factory=dict)
    ranked_at: int = 0


@dataclass(frozen=True)
class Round:
    """A round's work: what all share, and the jobs by block."""

    package: Package
    blocks: tuple[tuple[Job, ...], ...]

    @property
    def jobs(self) -> list[Job]:
        """All jobs in client order."""
        return [job for block in self.blocks for job in block]


def setup_strategy(experiment: Experiment) -> Strategy:
    """The experiment's strategy with the settings' overrides. Raises UserError for an unknown name."""
    settings = experiment.strategy
    strategy = look_up(STRATEGIES, settings.name, "strategy.name")
    if settings.prefix != "default":
        strategy = replace(strategy, prefix=settings.prefix)
    if settings.aggregation != "default":
        strategy = replace(strategy, aggregation=settings.aggregation)
    return strategy


def view_of(setup: Setup, state: ServerState, round_number: int) -> View:
    """What the strategy sees in a round."""
    experiment = setup.experiment
    return View(
        setup.architecture, state.scores, setup.cutting, experiment.extraction.kind, experiment.seed, round_number,
        experiment.local.batch_size, experiment.local.optimizer,
    )  # fmt: skip


def class_plans(setup: Setup, state: ServerState) -> dict[str, Plan]:
    """The subnetwork that every device class gets from the current parameters and ranking, for use rather than training.

    Raises UserError that names the class whose budget is too small.
    """
    view = view_of(setup, state, state.round)
    plans = {}
    for name, budget in setup.budgets.items():
        try:
            plan = setup.strategy.deploy(view, budget, -1)
        except UserError as error:
            raise UserError(f"device class {name}: {error}") from None
        assert plan is not None
        plans[name] = plan
    return plans


def _blocks(jobs: Sequence[Job], size: int | None) -> tuple[tuple[Job, ...], ...]:
    """Fixed runs of clients, whatever the workers: the same sums in the same order."""
    length = size or max(1, -(-len(jobs) // 64))
    return tuple(tuple(jobs[start : start + length]) for start in range(0, len(jobs), length))


def _learning_rate(experiment: Experiment, round_number: int) -> float:
    local = experiment.local
    done = (round_number - 1) / experiment.rounds
    return local.learning_rate * (0.5 * (1 + cos(pi * done)) if local.schedule == "cosine" else 1.0)


def _statistic(setup: Setup) -> str | None:
    settings = setup.experiment.salience
    calibrated = setup.strategy.salience and settings.source == "clients"
    return METRICS[settings.metric].statistic if calibrated else None


def cuts_residual(setup: Setup, state: ServerState) -> bool:
    """Whether some class's subnetwork narrows the residual stream, so that norms want correcting."""
    return any("residual" in plan for plan in class_plans(setup, state).values())


def holds_full_model(setup: Setup, name: str) -> bool:
    """Whether a device class can train the full model."""
    return setup.budgets[name].allows(setup.costs(Plan()))


def begin_calibration(setup: Setup, state: ServerState) -> Round | None:
    """Before round 1: clients that can hold the full model report statistics of it; None where no ranking needs them.

    Raises UserError when no client can.
    """
    statistic = _statistic(setup)
    if statistic is None:
        return None
    experiment = setup.experiment
    holding = {name for name in setup.budgets if holds_full_model(setup, name)}
    able = [client for client, name in enumerate(setup.classes) if setup.examples[client] and name in holding]
    if not able and not setup.strategy.budgeted:
        able = [client for client, count in enumerate(setup.examples) if count]
    if not able:
        raise UserError(
            f"salience.metric {experiment.salience.metric!r} is calibrated by clients that hold the full model, and no client with data "
            "has a device of this fleet that can: set salience.source to public, or a metric of the weights (l1, l2, random)"
        )
    rng = generator(experiment.seed, "calibration clients")
    chosen = sorted(rng.permutation(able)[: experiment.salience.clients].tolist())
    examples, cut = experiment.salience.examples, "residual" in experiment.extraction.steps
    package = Package(experiment.seed, 0, (Plan(),), experiment.local, 0.0, statistic, examples, cut)
    return Round(package, _blocks([Job(client, None, calibrate=True) for client in chosen], experiment.pool.block_clients))


def plain_scores(architecture: Architecture) -> Scores:
    """Scores that rank every axis in its own order: of strategies without salience, and before there is a ranking."""
    layout = architecture.layout
    parents = {name: layout.axes[name].parent for name in rankable(layout)}
    return {
        name: np.tile(-np.arange(layout.axes[name].size, dtype=float), (layout.axes[parent].size, 1) if parent else 1)
        for name, parent in parents.items()
    }


def rank_again(setup: Setup, state: ServerState, statistics: Statistics | None) -> ServerState:
    """The state with scores computed from the current parameters and these statistics."""
    metric = METRICS[setup.experiment.salience.metric]
    if not setup.strategy.salience:
        scores = plain_scores(setup.architecture)
    else:
        named = views(state.parameters, setup.architecture.shapes)
        rng = generator(setup.experiment.seed, "salience", state.round)
        scores = metric.score(setup.architecture.layout, named, statistics or {}, rng)
    return replace(state, scores=scores, pending=None, norms=norm_part(statistics) or state.norms, ranked_at=state.round)


def _next_ranking(setup: Setup, state: ServerState) -> int | None:
    """After which round the ranking is renewed next, if somebody has reported by then; None for never."""
    settings = setup.experiment.salience
    due = max(state.round, state.ranked_at + settings.every)
    return due if setup.strategy.salience and due <= settings.until * setup.experiment.rounds else None


def ranking_is_due(setup: Setup, state: ServerState) -> bool:
    """Whether the ranking is renewed before the next round; a calibrated one waits until somebody has reported."""
    return _next_ranking(setup, state) == state.round and (state.pending is not None or _statistic(setup) is None)


def _wanted_statistic(setup: Setup, state: ServerState) -> str | None:
    """What clients of the next round that hold the full model report: nothing for a ranking that never comes, nor beyond as many
    examples as the first calibration may use."""
    settings = setup.experiment.salience
    enough = state.pending is not None and float(state.pending["examples"]) >= settings.clients * settings.examples
    return None if enough or _next_ranking(setup, state) is None else _statistic(setup)


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
    nested = class_plans(setup, state) if strategy.prefix != "none" else {}
    by_size = sorted({*trained.values(), *nested.values()}, key=lambda plan: (setup.costs(plan).params, plan.key))
    number_of = {plan: position for position, plan in enumerate(by_size)}
    candidates = sorted({number_of[plan] for plan in nested.values()})
    prefixes_of = {own: tuple(one for one in candidates if one < own) for own in {number_of[plan] for plan in trained.values()}}
    _check_nesting(setup, by_size, prefixes_of)
    statistic = _wanted_statistic(setup, state)
    jobs = [
        Job(client, number_of[plan], prefixes_of[number_of[plan]], strategy.prefix, statistic is not None and len(plan) == 0)
        for client, plan in trained.items()
    ]
    package = Package(
        experiment.seed, number, tuple(by_size), experiment.local, _learning_rate(experiment, number), statistic,
        experiment.salience.examples, statistic is not None and cuts_residual(setup, state), state.norms,
    )  # fmt: skip
    return Round(package, _blocks(jobs, experiment.pool.block_clients))


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


def new_state(parameters: Tensor) -> ServerState:
    """The state before round 1."""
    return ServerState(0, parameters.to(torch.float32), {})
