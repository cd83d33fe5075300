"""The loop: the only imperative shell. Everything it calls is pure, a pool, a file or the screen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from raffm_ray.architectures import build
from raffm_ray.axes import Plan
from raffm_ray.calibration import Statistics, collect
from raffm_ray.curve import curve_of
from raffm_ray.display import Display
from raffm_ray.errors import UserError
from raffm_ray.evaluation import Question, answered, evaluate, evaluation_of
from raffm_ray.ledger import Evaluation, client_rows, round_row, summarize
from raffm_ray.messages import Call, Update, views
from raffm_ray.norms import norm_statistics
from raffm_ray.objectives import OBJECTIVES
from raffm_ray.own import saved_copies, with_copies
from raffm_ray.pool import Pool, open_pool
from raffm_ray.prepare import Prepared, check_baselines, prepare, with_strategy
from raffm_ray.ranking import begin_calibration, rank_again, ranking_is_due
from raffm_ray.record import Recorder, check_output, write_json
from raffm_ray.salience import METRICS
from raffm_ray.server import begin_round, finish_round
from raffm_ray.settings import Experiment
from raffm_ray.shares import by_device, write_shares
from raffm_ray.start import starting_parameters
from raffm_ray.state import Round, ServerState, Setup, copies, new_state
from raffm_ray.stopping import chosen, compared, is_over
from raffm_ray.training import one_thread


def run_round(
    setup: Setup, work: Round, state: ServerState, pool: Pool, display: Display, beside: Question[Evaluation] | None = None
) -> tuple[Tensor, list[Update], list[Tensor], Evaluation | None]:
    """Runs a round's blocks on the pool, and an evaluation of the same parameters beside them.

    Returns the flat sum, added in block order, the blocks' updates, the sums of its late blocks, which are not in it, and the
    evaluation.
    """
    flops = [
        sum(
            setup.examples[job.client] * setup.costs(Plan() if job.plan is None else work.package.plans[job.plan]).training_flops
            for job in block
        )
        for block in work.blocks
    ]
    calls: list[Call] = [("block", work.package, (block,)) for block in work.blocks]
    summed, done = torch.zeros_like(state.parameters), 0
    updates: list[Update] = []
    late: list[Tensor] = []
    told: list[Any] = []
    costs = [float(cost) for cost in flops]
    if beside is not None:
        calls, costs = [*calls, *beside.calls], [*costs, *beside.costs]

    def progress(index: int, _: Any) -> None:
        nonlocal done
        done += len(work.blocks[index]) if index < len(work.blocks) else 0
        number = work.package.round
        display.advance(number - 1 + done / len(work.jobs), f"round {number}/{display.rounds}  {done}/{len(work.jobs)} clients")

    for small, part in pool.run(state.parameters.numpy(), calls, costs, progress):
        if len(updates) == len(work.blocks):
            told.append(small)
            continue
        with pool.profile.during("add"):
            if len(updates) < len(work.blocks) - work.late:
                np.add(summed.numpy(), part, out=summed.numpy())
            else:
                late.append(torch.from_numpy(part.copy()))
        updates.append(small)
    with pool.profile.during("evaluate"):
        return summed, updates, late, None if beside is None else beside.answer(told)


@dataclass(frozen=True)
class Ended:
    """A round whose training is over, and what is asked of its model, if it is evaluated."""

    state: ServerState
    work: Round | None
    updates: Sequence[Update]
    ranked: bool
    question: Question[Evaluation] | None


def _first_ranking(
    prepared: Prepared, state: ServerState, pool: Pool, display: Display
) -> tuple[ServerState, Round | None, list[Update]]:
    setup = prepared.setup
    with pool.profile.during("plan"):
        work = begin_calibration(setup, state)
    statistics: Statistics | None = None
    updates: list[Update] = []
    statistic = METRICS[setup.experiment.salience.metric].statistic
    if work is not None:
        summed, updates, *_ = run_round(setup, work, state, pool, display)
        with pool.profile.during("add"):
            state = finish_round(setup, state, work, summed, updates)
        statistics = state.pending
        if not statistics:
            raise UserError(
                "calibration: no client reported finite statistics of the starting model; its weights or data hold NaN"
            )
    elif setup.strategy.salience and statistic is not None:
        with pool.profile.during("calibrate"):
            statistics = public_statistics(prepared, state, statistic)
    with pool.profile.during("plan"):
        return rank_again(setup, state, statistics), work, updates


def public_statistics(prepared: Prepared, state: ServerState, statistic: str) -> Statistics:
    """The full model's statistics on the public part, for `salience.source: public`."""
    architecture, public = prepared.setup.architecture, prepared.task.public
    model = build(
        architecture, {name: values.clone() for name, values in views(state.parameters, architecture.shapes).items()}, Plan()
    )
    asked = [public.batch(slice(start, start + 32)) for start in range(0, len(public), 32)]
    objective = OBJECTIVES[architecture.head]
    return {
        **collect(model, architecture.layout, asked, statistic, objective),
        **norm_statistics(model, architecture.layout, asked),
    }


def _next_round(
    prepared: Prepared, state: ServerState, pool: Pool, display: Display, beside: Question[Evaluation] | None
) -> tuple[Ended, Evaluation | None]:
    """The round after a state; and the answer to what is still asked of that state."""
    setup, experiment = prepared.setup, prepared.setup.experiment
    with pool.profile.during("plan"):
        if ranked := ranking_is_due(setup, state):
            public = METRICS[experiment.salience.metric].statistic if experiment.salience.source == "public" else None
            state = rank_again(setup, state, public_statistics(prepared, state, public) if public else state.pending)
        work = begin_round(setup, state)
    summed, updates, late, before = run_round(setup, work, state, pool, display, beside)
    with pool.profile.during("add"):
        state = finish_round(setup, state, work, summed, updates, late)
    question = None
    if state.round % experiment.evaluation.every == 0 or state.round == experiment.rounds:
        with pool.profile.during("plan"):
            question = evaluation_of(setup, state, prepared.task)
    return Ended(state, work, updates, ranked, question), before


def _complete(
    prepared: Prepared, ended: Ended, now: Evaluation | None, phases: Mapping[str, float], recorder: Recorder, console: Console,
    display: Display,
) -> ServerState:  # fmt: skip
    """The end of a round: it is recorded, with its evaluation if it has one. Returns its state with the best round so far."""
    setup, metric = prepared.setup, prepared.task.metric
    state = compared(setup, ended.state, metric, now.validation if now else None)
    rows = client_rows(setup, ended.work, ended.updates)
    refused = [row.client for row in rows if not row.accepted]
    if refused and state.round and not any(not row.accepted for row in recorder.clients):
        console.print(f"note: round {state.round}: what clients {refused} sent was not finite and was refused", highlight=False)
    recorder.add(round_row(setup, ended.work, rows, state.round, now, ended.ranked, phases), rows)
    if now is not None:
        display.evaluated(state.round, metric, now.metric, now.class_metrics)
    return state


def train(prepared: Prepared, start: Tensor, pool: Pool, recorder: Recorder, console: Console) -> dict[str, Any]:
    """All rounds of one strategy, recorded as they end; returns the summary.

    A round is evaluated beside the next one's training, unless that depends on it (`evaluation.patience`) or there is none.
    """
    setup, experiment = prepared.setup, prepared.setup.experiment
    write_shares(recorder.folder / "shares.parquet", prepared.tally, by_device(setup.classes, setup.budgets))
    evaluations: list[Evaluation] = []

    def complete(ended: Ended, now: Evaluation | None, phases: Mapping[str, float]) -> ServerState:
        evaluations.extend([now] if now else [])
        with pool.profile.during("record"):
            return _complete(prepared, ended, now, phases, recorder, console, display)

    with Display(console, experiment.strategy.name, experiment.rounds) as display:
        display.stage(
            f"{experiment.rounds} rounds of {experiment.clients.per_round} of {experiment.clients.count} clients",
            experiment.rounds,
        )
        pool.profile.taken()
        state, work, updates = _first_ranking(
            prepared, new_state(with_copies(start, setup.architecture, setup.owned, len(setup.budgets))), pool, display
        )
        with pool.profile.during("plan"):
            ended = Ended(state, work, updates, True, evaluation_of(setup, state, prepared.task))
        while True:
            beside = ended.question if experiment.evaluation.patience is None and not is_over(setup, ended.state) else None
            if beside is None:
                now = answered(ended.question, ended.state, pool) if ended.question else None
                state = complete(ended, now, pool.profile.taken())
                if is_over(setup, state):
                    break
                ended, _ = _next_round(prepared, state, pool, display, None)
            else:
                phases = pool.profile.taken()
                following, now = _next_round(prepared, ended.state, pool, display, beside)
                state = complete(ended, now, phases)
                ended = replace(following, state=replace(following.state, best=state.best))
    first, measured = evaluations[0], evaluations[-1]
    if state.round < experiment.rounds:
        console.print(f"{experiment.strategy.name}: stopped after round {state.round} (evaluation.patience)", highlight=False)
    if (best := chosen(setup, state)) is not state:
        console.print(f"{experiment.strategy.name}: round {best.round} is kept (evaluation.keep_best)", highlight=False)
        state, measured = best, evaluate(setup, best, pool, prepared.task)
    summary = summarize(setup, recorder.rounds, recorder.clients, first, measured, state, experiment.name, prepared.task.metric)
    summary |= curve_of(setup, state, pool, prepared.task, measured)
    words = prepared.foundation.words
    used = dict(zip(measured.class_plans, copies(setup, state, list(measured.class_plans.values())), strict=True))
    own = saved_copies(state.parameters, setup.architecture, setup.owned, used)
    recorder.finish(summary, state, setup.architecture, words.tokenizer if words else None, own)
    return summary


def simulate(experiment: Experiment, folder: Path, console: Console | None = None, pool: Pool | None = None) -> dict[str, Any]:
    """Runs an experiment and its baselines; writes `folder` and returns the content of its `summary.json`.

    Raises UserError before any training when something cannot work. A given pool is used and left open.
    """
    with one_thread():
        return _simulate(experiment, folder, console or Console(stderr=True, quiet=True), pool)


def _simulate(experiment: Experiment, folder: Path, console: Console, pool: Pool | None) -> dict[str, Any]:
    check_output(folder)
    check_baselines(experiment)
    prepared = prepare(experiment)
    beside = {name: with_strategy(prepared, name) for name in experiment.baselines}
    for name in sorted(set(experiment.fleet.budgets) - set(prepared.setup.budgets)):
        console.print(f"note: fleet.budgets.{name} is not used: no client of this fleet has that device", highlight=False)
    start = starting(prepared, console)
    used = pool or open_pool(prepared.runner(), experiment.pool, lambda line: console.print(line, highlight=False))
    try:
        recorder = Recorder(folder, experiment)
        summary = train(prepared, start, used, recorder, console)
        if beside:
            summary["baselines"] = {
                name: train(one, start, used, Recorder(folder / "baselines" / name, one.setup.experiment), console)
                for name, one in beside.items()
            }
            write_json(folder / "summary.json", summary)
    finally:
        if pool is None:
            used.close()
    return summary


def starting(prepared: Prepared, console: Console) -> Tensor:
    """The flat parameters before round 1, with a bar for the training that they may need. Raises UserError as `trained`."""
    experiment = prepared.setup.experiment
    with Display(console, experiment.name, experiment.rounds) as display:
        display.stage(f"pretraining on {len(prepared.task.public)} public examples (cached)", 100)
        return starting_parameters(
            prepared, lambda step, steps: display.advance(100 * step / steps), lambda line: console.print(line, highlight=False)
        )
