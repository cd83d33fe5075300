"""How long the rounds of a run will take, forecast before round 1 from a few steps of its own clients, timed on its own workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from raffm_ray.server.early_stopping import is_evaluated
from raffm_ray.server.ranking import begin_calibration, random_state
from raffm_ray.server.round_schedule import planned_work
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import Round, ServerState, Setup
from raffm_ray.server.workload import training_flops

STEPS = 3
"""Steps of a client that are timed, beside one step of the same client: the difference is free of what a client takes whatever its steps."""
MOST_PLANS = 4
"""Plans that are timed: the smallest, the largest, and some between."""
ROUGH_PLANS = 2
"""Plans that are timed before there is a model."""
LOOKED_AT = 6
"""Rounds whose blocks are looked at: draws differ."""
EVALUATED = 32
"""Examples of an evaluation that are timed."""

Evaluation = Callable[[Prepared, ServerState], Sequence[Call]]
"""The calls of one evaluation of a state."""


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


def _training_rates(setup: Setup, state: ServerState, work: Round, pool: Pool, most_plans: int) -> dict[int, PlanRate]:
    """By parameters of a plan, of so many from the smallest to the largest. Every worker has a group of clients of each plan, whose updates nobody uses. What is done first
    takes longer, the making of modules above all, so the whole of it is done once before, uncounted: later steps may train other prefixes."""
    groups = _groups(work)
    chosen = [
        groups[plan][worker % len(groups[plan])]
        for plan in _timed_plans(list(groups), most_plans)
        for worker in range(max(1, pool.workers))
    ]
    seconds, flops = dict[int, list[list[float]]](), dict[int, list[list[float]]]()
    for turn, steps in enumerate((STEPS, 1, STEPS)):
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


def timed(
    prepared: Prepared, state: ServerState, works: Sequence[Round], evaluation: Sequence[Call], pool: Pool, most_plans: int
) -> Rates:
    """What the work of a round takes, from a small part of the first of these in which somebody trains. `evaluation`: the calls of one."""
    setup, workers, work = prepared.setup, max(1, pool.workers), next(filter(_is_busy, works))
    empty = [Call("block", work.context, ((),), 0.0)] * workers  # of no cost: nothing is learnt of how long calls take
    training = _training_rates(setup, state, work, pool, most_plans)
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


def _works(prepared: Prepared, state: ServerState) -> list[Round]:
    """LOOKED_AT rounds after `state`, spread over the run; none where nobody trains in any of them."""
    left = range(state.round, prepared.setup.experiment.rounds)
    numbers = sorted({left[round(at)] for at in np.linspace(0, len(left) - 1, LOOKED_AT)}) if left else []
    works = [begin_round(prepared.setup, replace(state, round=number)) for number in numbers]
    return works if any(_is_busy(work) for work in works) else []


def _is_busy(work: Round) -> bool:
    return any(job.plan is not None for job in work.jobs)


def _seconds(
    prepared: Prepared, state: ServerState, works: Sequence[Round], evaluation: Sequence[Call], rates: Rates, workers: int
) -> float:
    """Of all rounds after `state`, with their evaluations."""
    setup, experiment = prepared.setup, prepared.setup.experiment
    left = range(state.round, experiment.rounds)
    spans = [_makespan(_block_seconds(setup, work, rates), workers) for work in works]
    evaluations = sum(is_evaluated(experiment, number + 1) for number in left) + (state.round == 0)
    return len(left) * (fmean(spans) + rates.step) + evaluations * rates.evaluating * _evaluation_flops(prepared, evaluation)


def _way(setup: Setup, works: Sequence[Round]) -> tuple[str, float, str, int]:
    """What seconds of a FLOP depend on besides a plan's size: which smaller prefixes a step trains, and how many clients are trained at once."""
    most = max(len(group) for work in works for groups in _groups(work).values() for group in groups)
    return setup.strategy.prefix, setup.strategy.distill, setup.experiment.local.client_update, most


def rough_seconds(runs: Sequence[Prepared], evaluation: Evaluation, pool: Pool) -> float:
    """Real seconds of the rounds of some runs, one after the other, with their first rankings and evaluations, before there is a model: as
    `forecast_seconds`, with random parameters, and from fewer plans: the smallest and the largest, since most of a small model's step is the same
    whatever the size. Runs that train in the same way (`_way`) have the rates of the first of them. 0 where nobody trains."""
    total, rates = 0.0, dict[tuple[str, float, str, int], Rates]()
    for prepared in runs:
        state = random_state(prepared.setup, torch.Generator().manual_seed(0))
        if not (works := _works(prepared, state)):
            continue
        calls, ranking, way = evaluation(prepared, state), begin_calibration(prepared.setup, state), _way(prepared.setup, works)
        if way not in rates:
            rates[way] = timed(prepared, state, works, calls, pool, ROUGH_PLANS)
        total += _seconds(prepared, state, works, calls, rates[way], pool.workers)
        total += _makespan(_block_seconds(prepared.setup, ranking, rates[way]), pool.workers) if ranking else 0.0
    return total


def forecast_seconds(prepared: Prepared, state: ServerState, evaluation: Sequence[Call], pool: Pool) -> float:
    """Real seconds of all rounds after `state`, with their evaluations, from what `timed` finds. Nothing of it changes a result: calls
    are pure functions, and what these give is dropped.

        seconds = rounds x (mean makespan + step) + evaluations x evaluation

    The makespan of a round is list scheduling of its blocks (`dispatch.completion_times`) over the pool's workers, which are taken for equal;
    it is averaged over LOOKED_AT rounds, spread over the run, with the present ranking. A block is seconds of a FLOP x its FLOPs + seconds of a
    client x its clients + a sum. Rounds of a run that stops early, and records and checkpoints, are not looked at.
    """
    works = _works(prepared, state)
    rates = timed(prepared, state, works, evaluation, pool, MOST_PLANS) if works else None
    return _seconds(prepared, state, works, evaluation, rates, pool.workers) if rates else 0.0
