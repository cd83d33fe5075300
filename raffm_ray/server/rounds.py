"""The server: state in, state out. Begin a round, finish a round; no processes, no files, no real time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import cos, pi

from torch import Tensor

from raffm_ray.axes.indexing import AxisError, Plan, check_plan
from raffm_ray.axes.nesting import within
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.messages import Job, RoundContext, Update
from raffm_ray.server.adapter_rules.chosen import adapter_context
from raffm_ray.server.adapter_rules.round_end import with_merged_adapters, without_held
from raffm_ray.server.aggregation import AGGREGATION_RULES, flat_coverage
from raffm_ray.server.agnostic_mixture import Mixture
from raffm_ray.server.blocks import stack_sizes
from raffm_ray.server.device_type_plans import copies, holds_full_model, training_view
from raffm_ray.server.kept.client_memory import variate_change
from raffm_ray.server.kept.held_words import word_weights
from raffm_ray.server.kept.holders import weight_of_holders
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS, share_of
from raffm_ray.server.plans.of_adapters import fewer_ranks
from raffm_ray.server.ranking import cuts_residual, wanted_statistic
from raffm_ray.server.round_schedule import advance_clock, available_clients, received, schedule_round, selection_size
from raffm_ray.server.selection.choosing import choose_clients, remembered
from raffm_ray.server.state import Round, ServerState, Setup
from raffm_ray.settings.experiment import Experiment
from raffm_ray.subnetworks.calibration import add_statistics
from raffm_ray.subnetworks.unit_coverage import add_reached


def learning_rate(experiment: Experiment, round_number: int) -> float:
    """Of the clients in a round, from 1."""
    local = experiment.local
    assert local.learning_rate is not None  # preparing chooses one
    assert local.warmup_rounds is not None
    done = (round_number - 1) / experiment.rounds
    rate = local.learning_rate * (0.5 * (1 + cos(pi * done)) if local.schedule == "cosine" else 1.0)
    return rate * min(1.0, round_number / (local.warmup_rounds + 1))


def begin_round(setup: Setup, state: ServerState) -> Round:
    """Draws the next round's clients and cuts their plans. Pure: the same state gives the same round."""
    experiment, strategy = setup.experiment, setup.strategy
    number = state.round + 1
    view, nested = training_view(setup, state, number)
    start_seconds, able = available_clients(setup, state.clock)
    chosen = choose_clients(setup, state, able, selection_size(setup), (view, nested))
    shared: dict[str, Plan | None] = {}
    trained: dict[int, Plan] = {}
    for client in chosen:
        name = setup.device_types[client]
        if strategy.per_client:
            plan = strategy.train(view, setup.budgets[name], client)
        else:
            if name not in shared:
                shared[name] = strategy.train(view, setup.budgets[name], client)
            plan = shared[name]
        if plan is not None:
            trained[client] = fewer_ranks(plan, setup.architecture.layout, state.memory.ranks_of(client))
    for plan in set(trained.values()):
        check_plan(plan, setup.architecture.layout.axes)
    sizes = {plan: setup.costs(plan).params for plan in (*trained.values(), *nested)}
    by_size = sorted(sizes, key=lambda plan: (sizes[plan], plan.key))
    number_of = {plan: position for position, plan in enumerate(by_size)}
    candidates = sorted({number_of[plan] for plan in nested})
    prefixes_of = {
        number_of[plan]: tuple(one for one in candidates if sizes[by_size[one]] < sizes[plan]) for plan in trained.values()
    }
    _check_nesting(setup, by_size, prefixes_of)
    statistic = wanted_statistic(setup, state)
    jobs = [
        Job(
            client=client,
            plan=number_of[plan],
            prefixes=prefixes_of[number_of[plan]],
            prefix=strategy.prefix,
            calibrate=statistic is not None
            and (len(plan) == 0 or (bool(nested) and holds_full_model(setup, setup.device_types[client]))),
            weight=_job_weight(setup, state, client),
        )
        for client, plan in trained.items()
    ]
    context = RoundContext(
        seed=experiment.seed,
        round=number,
        plans=tuple(by_size),
        local=experiment.local,
        learning_rate=learning_rate(experiment, number),
        statistic=statistic,
        calibration_examples=experiment.salience.examples,
        measure_norms=statistic is not None and cuts_residual(setup, state),
        norms=state.norms,
        distill=strategy.distill,
        temperature=experiment.strategy.temperature,
        stack=stack_sizes(setup, by_size),
        size_specific=setup.size_specific,
        copies=copies(setup, state, by_size, number),
        norm_bound=experiment.server.update_norm_bound,
        own=experiment.plugin_settings,
        personal=setup.personal,
        received_loss=setup.measures_received,
        fair_exponent=experiment.server.fair_exponent,
        own_words=setup.words is not None,
        **adapter_context(setup.architecture, strategy, experiment, state.base_change, state.stack_bytes, number),
    )
    return replace(schedule_round(setup, context, jobs, start_seconds, state.held, state.memory), chosen=tuple(chosen))


def _job_weight(setup: Setup, state: ServerState, client: int) -> float:
    weight = float(setup.client_weights[client])
    return weight if state.mixture is None else weight * state.mixture.factor(int(setup.device_type_numbers[client]))


def _next_mixture(setup: Setup, state: ServerState, updates: Sequence[Update]) -> Mixture | None:
    """After a round of which these updates came in time."""
    if state.mixture is None:
        return None
    heard = [
        (int(setup.device_type_numbers[one.client]), float(setup.client_weights[one.client]), one.received_loss)
        for update in updates
        for one in update.reports
        if one.received_loss is not None
    ]
    return state.mixture.after(heard, setup.experiment.server.agnostic_rate)


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


def finish_round(
    setup: Setup, state: ServerState, work: Round, summed: Tensor, updates: Sequence[Update], late: Sequence[Tensor] = ()
) -> ServerState:
    """Averages the blocks' sums, takes the server optimizer's step and keeps the statistics for the next ranking.

    `summed`: the flat sum of all blocks, added in block order, but for the round's late ones, whose own sums are `late`: they are added
    in the round in which they arrive, their statistics never (they are of an older model). A round in which nobody trained leaves the
    parameters as they are. Behind the model's own numbers a sum has those of the control variate, where there is one.
    """
    weights: dict[int, float] = {}
    pending = state.pending
    on_time = len(updates) - len(late)
    for update in updates[:on_time]:
        for plan, weight in update.weights.items():
            weights[plan] = weights.get(plan, 0.0) + weight
        if update.statistics:
            pending = add_statistics(pending, update.statistics)
    kept = [report.client for update in updates for report in update.reports if report.state_bytes is not None]
    ranks = {one.client: one.ranks for update in updates for one in update.reports if one.ranks is not None}
    clock, arrived = advance_clock(setup, state.clock, work, updates[on_time:], late)
    plans = [*work.context.plans, *(one.plan for one, _ in arrived)]
    used = [*(work.context.copies or [0] * len(work.context.plans)), *(one.copy for one, _ in arrived)]
    for number, (one, factor) in enumerate(arrived, len(work.context.plans)):
        weights[number] = factor * one.weight
        summed = summed.add(one.summed, alpha=factor)
    total = sum(weights.values())
    counted = [
        (one.plan, one.client, update.covers[one.client])
        for update in updates[:on_time]
        for one in update.reports
        if one.plan is not None and one.client in update.covers
    ]
    counted += [
        (number, one.visit.job.client, factor * one.weight)
        for number, (one, factor) in enumerate(arrived, len(work.context.plans))
    ]
    state = replace(state, aggregation_error=None)  # of this round, in which perhaps nobody trained
    parameters, moments, server, moved = state.parameters, state.moments, setup.experiment.server, None
    summed, beside = summed[: len(parameters)], summed[len(parameters) :]
    if total > 0:
        covered = flat_coverage(
            weights=weights,
            plans=plans,
            architecture=setup.architecture,
            size_specific=setup.size_specific,
            copies=used,
            length=len(summed),
            words=word_weights(setup.words, counted),
        )
        own = setup.experiment.plugin_settings
        averaged = AGGREGATION_RULES.chosen(setup.strategy.aggregation, own)(parameters, summed, covered, total)
        averaged, given = without_held(setup, work, parameters, averaged, covered)
        optimizer = SERVER_OPTIMIZERS.chosen(server.optimizer, own)
        if optimizer.shares or len(beside):
            holders = weight_of_holders(setup, state, work.context.round, covered)
            given = share_of(given, holders) if optimizer.shares else given
            moved = variate_change(beside, holders) if len(beside) else None
        parameters, moments = optimizer.step(parameters, averaged, given, moments, server)
        if setup.architecture.adapters is not None:
            state, parameters = with_merged_adapters(
                setup, state, work, updates[:on_time], (averaged, parameters, covered), total
            )
    return replace(
        state,
        round=work.context.round,
        parameters=parameters,
        pending=pending,
        moments=moments,
        clock=clock,
        reached=add_reached(state.reached, weights, plans, setup.architecture.layout),
        reached_weight=state.reached_weight + total,
        mixture=_next_mixture(setup, state, updates[:on_time]),
        records=remembered(setup, state, work, updates[:on_time], [one for one, _ in arrived]),
        held=state.held.after(received(setup, work), len(setup.device_types)),
        memory=state.memory.after(kept, work.context.round, len(setup.device_types), moved, ranks),
    )
