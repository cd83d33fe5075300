"""Predicts a round before it is trained. Devices are simulated, so work, seconds and joules follow from the jobs."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, inf, nan

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.seeding import generator
from raffm_ray.clients.client_updates import CLIENT_UPDATES, planned_examples
from raffm_ray.clients.local_training import choose
from raffm_ray.clients.messages import Job, Report, RoundContext, Update
from raffm_ray.data.examples import step_sizes, steps_of
from raffm_ray.devices.round_costs import DeviceCost, device_cost
from raffm_ray.server.blocks import blocks_of, least_clients
from raffm_ray.server.clock import LATE_POLICIES, LateUpdate, VirtualClock, Visit, close_round, sort_late_updates
from raffm_ray.server.device_type_plans import training_view
from raffm_ray.server.kept.client_memory import NO_MEMORY, ClientMemory, personal_bytes
from raffm_ray.server.kept.held_parameters import Held, common_bytes, missing_bytes, missing_word_bytes
from raffm_ray.server.state import Round, ServerState, Setup
from raffm_ray.server.workload import client_costs, reported_work
from raffm_ray.settings.experiment import ClockSettings
from raffm_ray.subnetworks.calibration import statistics_size
from raffm_ray.subnetworks.costs import with_prefixes
from raffm_ray.subnetworks.norm_correction import norm_statistics_size

STATISTIC_BYTES = 8
"""Statistics travel as float64: their sums must not depend on how clients are grouped."""


def _planned_passes(job: Job, sizes: Sequence[int], rng: np.random.Generator) -> dict[int, int]:
    """How many examples go through each plan, where steps have so many."""
    seen: dict[int, int] = {}
    for step, examples in enumerate(sizes):
        own, drawn = choose(job.prefix, len(job.prefixes), step, rng)
        for plan in ([job.plan] if own and job.plan is not None else []) + ([] if drawn is None else [job.prefixes[drawn]]):
            seen[plan] = seen.get(plan, 0) + examples
    return seen


def planned_work(setup: Setup, context: RoundContext, job: Job) -> Report:
    """What a client will report of a job: all but its loss and its real seconds, if what it sends is finite."""
    share, local = setup.examples[job.client], context.local
    seen: dict[int, int] = {}
    steps, sizes = 0, list[int]()
    if job.plan is not None:
        steps = steps_of(share, local.batch_size, local.epochs, local.steps)
        sizes = step_sizes(share, local.batch_size, steps)
        update = CLIENT_UPDATES[local.client_update]
        if not update.stacks:
            seen = {job.plan: planned_examples(update, sum(sizes))}
        elif job.prefixes:
            seen = _planned_passes(job, sizes, generator(context.seed, "prefixes", context.round, job.client))
        elif steps:
            seen = {job.plan: sum(sizes)}
    layout, values = setup.architecture.layout, 0
    if job.calibrate and context.statistic:
        values = statistics_size(layout, context.statistic) + (norm_statistics_size(layout) if context.measure_norms else 0)
    return Report(
        client=job.client,
        plan=job.plan,
        examples=share,
        steps=steps,
        stepped=sum(sizes),
        loss=float("nan"),
        seconds=0.0,
        forward_backward=tuple(sorted(seen.items())),
        calibrated=min(share, context.calibration_examples) if job.calibrate else 0,
        statistics_values=values,
    )


def sent_plan(context: RoundContext, job: Job) -> Plan:
    """What a client is sent: its plan, or the full model where it calibrates."""
    return Plan() if job.calibrate or job.plan is None else context.plans[job.plan]


def cost_of(
    setup: Setup, context: RoundContext, job: Job, report: Report, held: Plan | None = None, has_own: bool = False
) -> DeviceCost:
    """What a whole job takes of its client's simulated device, which holds the frozen parameters of a plan already, or none. `has_own`: whether it
    has personal parameters already, which are sent to it but once."""
    sent, there = sent_plan(context, job), held if setup.experiment.fleet.keeps_frozen else None
    trained = 0 if job.plan is None else client_costs(setup, context.plans[job.plan], job.client).bytes_up
    frozen = missing_bytes(setup.architecture, sent, there)
    asked = 0
    if (words := setup.words) is not None:
        unread, each = words.vocabulary - words.sent(job.client), missing_word_bytes(setup.architecture, sent, there)
        frozen -= each * unread
        asked = words.id_bytes(job.client) if each or words.trained else 0
    if held is not None:  # else all that is frozen is sent for the first time
        frozen += common_bytes(setup.architecture, sent, held, context.resent)
    device, work = setup.devices[setup.device_types[job.client]], reported_work(setup, context, report)
    down = client_costs(setup, sent, job.client).bytes_up + frozen
    up = trained + STATISTIC_BYTES * report.statistics_values + asked
    if held is not None:
        down += context.stack_bytes
        down -= common_bytes(setup.architecture, sent, held, context.held) * context.lasting
    if job.plan is not None:
        up -= personal_bytes(setup.architecture, context.plans[job.plan], context.held)
    if context.personal:
        variate = CLIENT_UPDATES[context.local.client_update].variate  # nobody has one of a personal parameter
        down -= (has_own + variate) * personal_bytes(setup.architecture, sent, context.personal)
        if job.plan is not None:
            up -= (1 + variate) * personal_bytes(setup.architecture, context.plans[job.plan], context.personal)
    return replace(device_cost(device, work, down, up), frozen_bytes_down=frozen)


def received(setup: Setup, work: Round) -> dict[int, Plan]:
    """By client, the plan whose frozen parameters its device holds after a round: those that ended with an update in time, or later."""
    if not (setup.architecture.frozen_shapes and setup.experiment.fleet.keeps_frozen):
        return {}
    return {one.job.client: sent_plan(work.context, one.job) for one in work.visits if one.outcome in ("used", "stale")}


def peak_memory_bytes(setup: Setup, context: RoundContext, job: Job) -> int:
    """Estimate of the most memory that a job needs at once: of its training with its prefixes, or of calibrating the full model."""
    needs = [client_costs(setup, Plan(), job.client).memory_bytes] if job.calibrate or job.plan is None else []
    if job.plan is not None:
        own, *smaller = (client_costs(setup, context.plans[plan], job.client) for plan in (job.plan, *job.prefixes))
        needs.append(with_prefixes(own, smaller, job.prefix, bool(context.distill)).memory_bytes)
    return max(needs)


def _costs_of(
    setup: Setup, context: RoundContext, jobs: Sequence[Job], reports: Sequence[Report], held: Held, memory: ClientMemory
) -> list[DeviceCost]:
    """`cost_of` for every job; those of equal devices that do equal work are computed once."""
    known: dict[tuple[object, ...], DeviceCost] = {}
    found, words = [], setup.words
    for job, report in zip(jobs, reports, strict=True):
        there, has_own = held.by(job.client), memory.last_round(job.client) >= 0
        key = (
            setup.device_types[job.client],
            job.plan,
            report.examples,
            report.forward_backward,
            report.calibrated,
            report.statistics_values,
            job.calibrate,
            there,
            has_own,
            words and words.sent(job.client),
        )
        if key not in known:
            known[key] = cost_of(setup, context, job, report, there, has_own)
        found.append(known[key])
    return found


def available_clients(setup: Setup, clock: VirtualClock) -> tuple[float, NDArray[np.int64]]:
    """When the next round begins, and which clients with data are awake and free then: at once if there is one, else as soon as one is.

    Clients whose updates are on their way are not free. Raises UserError when nobody will ever be available.
    """
    now = clock.seconds
    while True:
        busy = {one.visit.job.client: one.arrival_seconds for one in clock.late if one.arrival_seconds > now}
        free = setup.owners.copy()
        free[list(busy)] = False
        awake, changes = setup.availability(now)
        if (awake & free).any():
            return now, np.flatnonzero(awake & free)
        coming = min([*busy.values(), float(changes[free].min(initial=inf))])
        if coming == inf:
            model = setup.experiment.clock.availability
            raise UserError(f"clock.availability {model!r}: no client with data is ever available after {now:g} s")
        now = max(coming, float(np.nextafter(now, inf)))  # a change in the last bit must not stand still


def selection_size(setup: Setup) -> int:
    """How many clients are drawn for a round: more than are waited for, where the experiment says so."""
    return ceil(setup.experiment.clients.per_round * setup.experiment.clock.over_selection - 1e-9)


def drops_out(settings: ClockSettings, seed: int, round_number: int, client: int, seconds: float) -> float:
    """After how many of the seconds that its work takes a client drops out, uniform over them; infinity if it does not."""
    if not settings.dropout:
        return inf
    happens, when = generator(seed, "dropout", round_number, client).random(2)
    return float(when * seconds) if happens < settings.dropout else inf


def schedule_round(
    setup: Setup,
    context: RoundContext,
    jobs: Sequence[Job],
    start_seconds: float,
    held: Held,
    memory: ClientMemory = NO_MEMORY,
) -> Round:
    """The round of these jobs: who is back before it ends, and who has to train at all. Round 0 waits for everybody who calibrates. `held`:
    what devices have of the frozen parameters before it; `memory`: who has personal ones.

    A round in which nobody takes part lasts until somebody falls asleep or wakes, so that time does not stand still.
    """
    settings, experiment = setup.experiment.clock, setup.experiment
    reports = [planned_work(setup, context, job) for job in jobs]
    costs = _costs_of(setup, context, jobs, reports, held, memory)
    needs = np.array([cost.seconds for cost in costs])
    stops, wanted, deadline, idle = np.full(len(jobs), inf), len(jobs), inf, 0.0
    if context.round > 0:
        _, changes = setup.availability(start_seconds)
        clients = [job.client for job in jobs]
        dropping = [drops_out(settings, context.seed, context.round, *one) for one in zip(clients, needs.tolist(), strict=True)]
        stops = np.minimum(dropping, changes[clients] - start_seconds)
        wanted, deadline = experiment.clients.per_round, settings.deadline_seconds or inf
        idle = min(float(changes.min()) - start_seconds, deadline)
    end, arrived = close_round(needs, stops, wanted, deadline)
    end = idle if not jobs and idle < inf else end
    kept = LATE_POLICIES[settings.late](settings, 1) > 0
    visits = []
    for job, report, cost, stop, back in zip(jobs, reports, costs, stops.tolist(), arrived.tolist(), strict=True):
        lost = stop < cost.seconds and (kept or stop <= end)
        outcome = "used" if back else "dropped" if lost else "stale" if kept else "late"
        spent = cost if outcome in ("used", "stale") else cost.until(min(stop, end))
        visits.append(Visit(job=job, report=report, cost=spent, outcome=outcome))
    used = [visit for visit in visits if visit.outcome == "used"]
    stale = tuple((visit.job,) for visit in visits if visit.outcome == "stale")
    jobs_used, steps = [visit.job for visit in used], [visit.report.steps for visit in used]
    least = least_clients([visit.cost.flops for visit in used], setup.costs(Plan()).bytes_up)
    blocks = blocks_of(jobs_used, steps, experiment.pool.block_clients, context.stack, least)
    return Round(context, blocks + stale, tuple(visits), late=len(stale), start_seconds=start_seconds, seconds=end)


def advance_clock(
    setup: Setup, clock: VirtualClock, work: Round, updates: Sequence[Update], sums: Sequence[Tensor]
) -> tuple[VirtualClock, list[tuple[LateUpdate, float]]]:
    """The clock at a round's end, and the late updates that arrived in it, with the factors of their weights.

    `updates`, `sums`: of the round's own late blocks, in their order.
    """
    end, number = work.start_seconds + work.seconds, work.context.round
    arrived, waiting, expired = sort_late_updates(setup.experiment.clock, clock.late, number, end)
    visits = [visit for visit in work.visits if visit.outcome == "stale"]
    sent = tuple(
        LateUpdate(
            round=number,
            arrival_seconds=work.start_seconds + visit.cost.seconds,
            visit=visit,
            plan=work.context.plans[plan],
            weight=weight,
            summed=summed,
            copy=work.context.copy_of(plan),
            loss=next((report.loss for report in update.reports), nan),
        )
        for visit, update, summed in zip(visits, updates, sums, strict=True)
        for plan, weight in update.weights.items()
    )
    wasted = [visit.cost for visit in work.visits if visit.wasted] + [one.visit.cost for one in expired]
    moved = clock.wasted_bytes + sum(cost.bytes_down + cost.bytes_up for cost in wasted)
    joules = clock.wasted_joules + sum(cost.energy_joules for cost in wasted)
    return VirtualClock(seconds=end, late=waiting + sent, wasted_bytes=moved, wasted_joules=joules), arrived


def check_clock(setup: Setup, state: ServerState) -> None:
    """Raises UserError unless some client could be done with its smallest work, its own plan alone, before the deadline."""
    deadline, (view, _) = setup.experiment.clock.deadline_seconds, training_view(setup, state, 1)
    needs: dict[str, float] = {}
    for name in setup.budgets if deadline else ():
        clients = [client for client, one in enumerate(setup.device_types) if one == name and setup.examples[client]]
        least = min(clients, key=lambda client: setup.examples[client], default=None)
        plan = None if least is None else setup.strategy.train(view, setup.budgets[name], least)
        if least is not None and plan is not None:
            context, job = (
                RoundContext(seed=setup.experiment.seed, round=1, plans=(plan,), local=setup.experiment.local, learning_rate=0.0),
                Job(least, 0),
            )
            needs[name] = cost_of(setup, context, job, planned_work(setup, context, job)).seconds
    fastest = min(needs, key=lambda name: needs[name], default=None)
    if deadline and fastest is not None and needs[fastest] > deadline:
        raise UserError(
            f"clock.deadline_seconds {deadline:g}: nobody can be done by then: the fastest device type, {fastest}, needs "
            f"{needs[fastest]:.4g} s for its smallest work"
        )
