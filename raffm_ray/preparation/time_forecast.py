"""How long the rounds of a run will take, forecast before round 1 from a few steps of its own clients, timed on its own workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import fmean
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from raffm_ray.axes.indexing import Plan
from raffm_ray.clients.messages import Call, Job, RoundContext, Update
from raffm_ray.clients.stacked_training import stacking_groups
from raffm_ray.data.examples import Examples
from raffm_ray.pool.dispatch import completion_times
from raffm_ray.pool.worker_pool import Pool
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.early_stopping import is_evaluated
from raffm_ray.server.ranking import begin_calibration, plain_scores
from raffm_ray.server.residual_pace import with_ruled_pace
from raffm_ray.server.round_schedule import planned_work
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import Round, ServerState, Setup, starting_state
from raffm_ray.server.workload import training_flops

STEPS = 3
"""Steps of a client that are timed, beside one step of the same client: the difference is free of what a client takes whatever its steps."""
MOST_PLANS = 4
"""Plans that are timed: the smallest, the largest, and some between."""
LOOKED_AT = 6
"""Rounds whose blocks are looked at: draws differ."""
EVALUATED = 32
"""Examples of an evaluation that are timed."""


@dataclass(frozen=True)
class PlanRate:
    """Seconds of a worker for a plan, while all workers work: `flop`: of a FLOP of training; `client`: of a client, besides."""

    flop: float
    client: float


@dataclass(frozen=True)
class Rates:
    """`training`: by parameters of the plans that were timed; `summing`: seconds of a block's sum; `evaluating`: of a FLOP of answering with
    all workers together; `step`: of the driver, to average a round."""

    training: Mapping[int, PlanRate]
    summing: float
    evaluating: float
    step: float

    def of_plan(self, params: int) -> PlanRate:
        """Of the plan timed that is nearest in size."""
        return self.training[min(self.training, key=lambda timed: abs(timed - params))]


def _with_steps(setup: Setup, context: RoundContext, steps: int) -> tuple[Setup, RoundContext]:
    """The same with at most so many steps a client."""
    own = context.local.steps
    local = context.local.model_copy(update={"steps": steps if own is None else min(steps, own)})
    experiment = setup.experiment.model_copy(update={"local": local})
    return replace(setup, experiment=experiment), replace(context, local=local)


def _flops(setup: Setup, context: RoundContext, jobs: Sequence[Job]) -> float:
    return sum(training_flops(setup, context, planned_work(setup, context, job)) for job in jobs)


def _groups(work: Round) -> dict[int, list[tuple[Job, ...]]]:
    """By plan, groups of clients that are trained at once, who only train; the groups with most clients first."""
    found: dict[int, list[tuple[Job, ...]]] = {}
    for block in work.blocks:
        for plan, group in stacking_groups(block, work.context.stack):
            if plan is not None:
                found.setdefault(plan, []).append(tuple(replace(job, calibrate=False) for job in group))
    return {plan: sorted(groups, key=len, reverse=True) for plan, groups in sorted(found.items())}


def _timed_plans(plans: Sequence[int], most: int) -> list[int]:
    """Some plans of a round, which are in ascending size."""
    return [plans[at] for at in sorted({round(at) for at in np.linspace(0, len(plans) - 1, most)})]


def _training_rates(
    setup: Setup, state: ServerState, work: Round, pool: Pool, most_plans: int = MOST_PLANS
) -> dict[int, PlanRate]:
    """By parameters of a plan, of so many, the smallest first. Every worker has a group of clients of each plan, whose updates nobody uses; the first time is not counted."""
    groups = _groups(work)
    chosen = [
        groups[plan][worker % len(groups[plan])]
        for plan in _timed_plans(list(groups), most_plans)
        for worker in range(max(1, pool.workers))
    ]
    seconds, flops = dict[int, list[list[float]]](), dict[int, list[list[float]]]()
    for turn, steps in enumerate((1, 1, STEPS)):
        short, context = _with_steps(setup, work.context, steps)
        counts = [_flops(short, context, group) for group in chosen]
        calls = [Call("block", context, (group,), count) for group, count in zip(chosen, counts, strict=True)]
        for (update, _), group, count in zip(
            pool.run(state.sent_array, calls, lambda *_: None, state.frozen_array), chosen, counts, strict=True
        ):
            plan = group[0].plan
            assert plan is not None
            if turn:
                seconds.setdefault(plan, [[], []])[turn - 1].append(sum(report.seconds for report in update.reports))
                flops.setdefault(plan, [[], []])[turn - 1].append(count)
    rates = {}
    for plan, (one, several) in seconds.items():
        (few, many), clients = map(sum, flops[plan]), sum(len(group) for group in chosen if group[0].plan == plan)
        whole = sum(several) / many if many else 0.0
        grown = sum(several) - sum(one)
        each = grown / (many - few) if many > few and grown > 0 else whole
        client = max(0.0, sum(several) - each * many) / clients
        rates[setup.costs(work.context.plans[plan]).params] = PlanRate(flop=each, client=client)
    return rates


def _wall(pool: Pool, state: ServerState, calls: Sequence[Call]) -> float:
    """Real seconds of calls whose results nobody uses."""
    began = perf_counter()
    for _ in pool.run(state.sent_array, calls, lambda *_: None, state.frozen_array):
        pass
    return perf_counter() - began


def _padded(examples: Examples, chosen: NDArray[np.int64]) -> float:
    """Positions of a batch of these examples, filled up to the longest; one each where they are no texts."""
    lengths = examples.lengths()
    return float(len(chosen)) * (1 if lengths is None else int(lengths[chosen].max(initial=1)))


def _evaluation_flops(prepared: Prepared, calls: Sequence[Call]) -> float:
    """Of evaluation calls, with every batch as long as it is padded to rather than as the mean one."""
    setup, total, passes = prepared.setup, 0.0, 1 + (prepared.task.writing.most if prepared.task.writing else 0)
    for call in calls:
        number, *where = call.arguments
        if call.method == "evaluate_client":  # which may train before it measures
            asked, (batches,) = number, where
            padded, number = sum(_padded(prepared.task.clients, one) for one in batches), asked.plan
            total += setup.costs(call.context.plans[number]).training_flops * asked.tune_steps * call.context.local.batch_size
        elif call.method == "evaluate_clients":
            padded = _padded(prepared.task.clients, where[0])
        else:
            start, stop, validating = where
            examples = prepared.task.validation if validating else prepared.task.held_out
            assert examples is not None
            padded = _padded(examples, np.arange(start, stop))
        total += setup.costs(call.context.plans[number]).forward_flops * padded * passes
    return total


def _evaluating(prepared: Prepared, state: ServerState, calls: Sequence[Call], pool: Pool) -> float:
    """Seconds of a FLOP: of the first examples of some calls, twice, the first time uncounted."""
    few = [
        call._replace(arguments=(number, start, min(stop, start + EVALUATED), validating))
        for call in [call for call in calls if call.method == "evaluate"][: max(1, pool.workers)]
        for number, start, stop, validating in [call.arguments]
    ]
    few = [few[at % len(few)] for at in range(max(1, pool.workers))]
    _wall(pool, state, few)
    return _wall(pool, state, few) / _evaluation_flops(prepared, few)


def _step_seconds(setup: Setup, state: ServerState, work: Round) -> float:
    """Of averaging a round in which every block sent a sum of zeros."""
    updates = []
    for block in work.blocks[: len(work.blocks) - work.late]:
        weights: dict[int, float] = {}
        for job in block:
            if job.plan is not None:
                weights[job.plan] = weights.get(job.plan, 0.0) + job.weight
        updates.append(Update(weights, ()))
    began = perf_counter()
    finish_round(setup, state, replace(work, late=0, visits=()), torch.zeros(len(state.sent_array)), updates)
    return perf_counter() - began


def timed(prepared: Prepared, state: ServerState, work: Round, evaluation: Sequence[Call], pool: Pool) -> Rates:
    """What the work of a round takes, from a small part of it. `evaluation`: the calls of one evaluation."""
    setup, workers = prepared.setup, max(1, pool.workers)
    empty = [Call("block", work.context, ((),), 0.0)] * workers  # of no cost: nothing is learnt of how long calls take
    training = _training_rates(setup, state, work, pool)
    _wall(pool, state, empty)
    return Rates(
        training=training,
        summing=_wall(pool, state, empty) / workers,
        evaluating=_evaluating(prepared, state, evaluation, pool),
        step=_step_seconds(setup, state, work),
    )


def _block_seconds(setup: Setup, work: Round, rates: Rates) -> list[float]:
    """Of every block on one worker: training, calibrating, and its sum."""
    found, full = [], rates.of_plan(setup.costs(Plan()).params)
    for block in work.blocks:
        seconds = rates.summing
        for job in block:
            report = planned_work(setup, work.context, job)
            both = training_flops(setup, work.context, report)
            trains = training_flops(setup, work.context, replace(report, calibrated=0))
            if job.plan is not None:
                rate = rates.of_plan(setup.costs(work.context.plans[job.plan]).params)
                seconds += rate.client + rate.flop * trains
            seconds += full.flop * (both - trains)
        found.append(seconds)
    return found


def _makespan(blocks: Sequence[float], workers: int) -> float:
    ended, _ = completion_times(blocks, lambda call, _: blocks[call], [0] * workers, [0] * len(blocks))
    return max(ended, default=0.0)


DRAWN = 0.02
"""Standard deviation of the parameters that a model is drawn with which is only timed."""


def _drawn_state(setup: Setup) -> ServerState:
    """Before there are starting parameters: random ones, with a plain ranking."""
    architecture, drawn = setup.architecture, torch.Generator().manual_seed(0)
    count = sum(prod(shape) for shape in architecture.shapes.values())
    first = starting_state(setup, torch.randn(count, generator=drawn).mul_(DRAWN))
    return with_ruled_pace(setup, replace(first, scores=plain_scores(architecture)))


def rough_seconds(runs: Sequence[Prepared], pool: Pool) -> float:
    """Real seconds of the rounds of some runs, one after the other, with their first rankings and evaluations, before there is a model: all
    from what a few steps of the smallest plan take, with random parameters. As `forecast_seconds`, nothing of it changes a result. 0 where nobody trains."""
    total, timed_plans = 0.0, dict[int, PlanRate]()
    for prepared in runs:
        setup, experiment = prepared.setup, prepared.setup.experiment
        state = _drawn_state(setup)
        numbers = sorted({round(at) for at in np.linspace(0, experiment.rounds - 1, LOOKED_AT)})
        works = [begin_round(setup, replace(state, round=number)) for number in numbers]
        busy = [work for work in works if any(job.plan is not None for job in work.jobs)]
        if not busy:
            continue
        timed_plans = timed_plans or _training_rates(setup, state, busy[0], pool, most_plans=1)
        rates = Rates(timed_plans, summing=0.0, evaluating=0.0, step=0.0)
        ranking = begin_calibration(setup, state)
        spans = [_makespan(_block_seconds(setup, work, rates), pool.workers) for work in works]
        total += experiment.rounds * fmean(spans)
        total += _makespan(_block_seconds(setup, ranking, rates), pool.workers) if ranking else 0.0
        plans = {Plan(), *device_type_plans(setup, state).values()}
        evaluations = 1 + sum(is_evaluated(experiment, number + 1) for number in range(experiment.rounds))
        answers = sum(setup.costs(plan).forward_flops for plan in plans) * len(prepared.task.held_out)
        total += evaluations * rates.of_plan(0).flop * answers / max(1, pool.workers)
    return total


def forecast_seconds(prepared: Prepared, state: ServerState, evaluation: Sequence[Call], pool: Pool) -> float:
    """Real seconds of all rounds after `state`, with their evaluations, from what `timed` finds. Nothing of it changes a result: calls
    are pure functions, and what these give is dropped.

        seconds = rounds x (mean makespan + step) + evaluations x evaluation

    The makespan of a round is list scheduling of its blocks (`dispatch.completion_times`) over the pool's workers, which are taken for equal;
    it is averaged over LOOKED_AT rounds, spread over the run, with the present ranking. A block is seconds of a FLOP x its FLOPs + seconds of a
    client x its clients + a sum. Rounds of a run that stops early, and records and checkpoints, are not looked at.
    """
    setup, experiment = prepared.setup, prepared.setup.experiment
    left = range(state.round, experiment.rounds)
    if not left:
        return 0.0
    numbers = sorted({left[round(at)] for at in np.linspace(0, len(left) - 1, LOOKED_AT)})
    works = [begin_round(setup, replace(state, round=number)) for number in numbers]
    busy = [work for work in works if any(job.plan is not None for job in work.jobs)]
    if not busy:
        return 0.0
    rates = timed(prepared, state, busy[0], evaluation, pool)
    spans = [_makespan(_block_seconds(setup, work, rates), pool.workers) for work in works]
    evaluations = sum(is_evaluated(experiment, number + 1) for number in left) + (state.round == 0)
    return len(left) * (fmean(spans) + rates.step) + evaluations * rates.evaluating * _evaluation_flops(prepared, evaluation)
