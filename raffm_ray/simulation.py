"""The loop: the only imperative shell. Everything it calls is pure, a pool, a file or the screen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from raffm_ray import checkpoint
from raffm_ray.axes import Plan
from raffm_ray.calibration import Statistics
from raffm_ray.curve import curve_of
from raffm_ray.display import Display
from raffm_ray.errors import BadUpdateError, ClientError, UserError
from raffm_ray.evaluation import evaluate
from raffm_ray.files import locked
from raffm_ray.ledger import Evaluation, client_rows, recorded_evaluation, round_row, summarize
from raffm_ray.messages import Call, Update
from raffm_ray.own import saved_copies, with_copies
from raffm_ray.pool import Pool, open_pool
from raffm_ray.prepare import Prepared, check_baselines, prepare, with_strategy
from raffm_ray.public import public_statistics
from raffm_ray.ranking import begin_calibration, rank_again, ranking_is_due
from raffm_ray.record import SUMMARY, Recorder, check_origin, check_output, parameters_sha256, read_summary, write_json
from raffm_ray.resuming import experiment_in, opened, origin_of
from raffm_ray.salience import METRICS
from raffm_ray.server import begin_round, finish_round
from raffm_ray.settings import Experiment
from raffm_ray.shares import by_device, write_shares
from raffm_ray.start import starting_parameters
from raffm_ray.state import Round, ServerState, Setup, class_plans, copies, new_state
from raffm_ray.stopping import chosen, compared, is_over
from raffm_ray.training import one_thread


def run_round(
    setup: Setup, work: Round, state: ServerState, pool: Pool, display: Display
) -> tuple[Tensor, list[Update], list[Tensor]]:
    """Runs a round's blocks on the pool; returns the flat sum, added in block order, the blocks' updates, and the sums of its late
    blocks, which are not in it."""
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

    def progress(index: int, _: Any) -> None:
        nonlocal done
        done += len(work.blocks[index])
        number = work.package.round
        display.advance(number - 1 + done / len(work.jobs), f"round {number}/{display.rounds}  {done}/{len(work.jobs)} clients")

    for update, part in pool.run(state.parameters.numpy(), calls, [float(cost) for cost in flops], progress):
        with pool.profile.during("add"), np.errstate(over="ignore", invalid="ignore"):  # it is looked for below
            _check_sum(part, state.parameters, work, len(updates))
            if len(updates) < len(calls) - work.late:
                np.add(summed.numpy(), part, out=summed.numpy())
            else:
                late.append(torch.from_numpy(part.copy()))
        updates.append(update)
    if not bool(summed.isfinite().all()):  # every client's part is, as was checked where it was trained
        raise BadUpdateError(f"round {work.package.round}: the sum of its updates is beyond the range of float32")
    return summed, updates, late


def _check_sum(part: Any, parameters: Tensor, work: Round, block: int) -> None:
    """Raises ClientError for a block's sum that is none of the flat parameters': own code of a client may return anything."""
    kind, shape = getattr(part, "dtype", type(part)), getattr(part, "shape", ())
    if kind != np.float32 or shape != tuple(parameters.shape):
        clients = ", ".join(str(job.client) for job in work.blocks[block])
        raise ClientError(
            f"round {work.package.round}, block of clients {clients}: its sum is {kind} {shape}, not float32 {tuple(parameters.shape)}"
        )


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
        summed, updates, _ = run_round(setup, work, state, pool, display)
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


def _complete(
    prepared: Prepared, work: Round | None, updates: Sequence[Update], state: ServerState, now: Evaluation | None, ranked: bool,
    pool: Pool, recorder: Recorder, console: Console,
) -> None:  # fmt: skip
    """The end of a round: its rows, then a checkpoint of `state`, which is the server's after it. `now`: its evaluation, if it has one.

    Raises BadUpdateError, with nothing recorded of the round, where a bad update is to stop the run.
    """
    setup, number = prepared.setup, state.round
    rows = client_rows(setup, work, updates)
    refused = [row for row in rows if row.refused]
    told = f"round {number}: refused: {', '.join(f'client {row.client} ({row.refused})' for row in refused)}"
    if refused and setup.experiment.server.bad_updates == "stop":
        raise BadUpdateError(f"{told} (server.bad_updates: stop)")
    if refused and not any(row.refused for row in recorder.clients):
        console.print(f"note: {told}; later ones are only counted", highlight=False)
    with pool.profile.during("checkpoint"):
        row = round_row(setup, work, rows, number, now, ranked, pool.profile.taken())
        recorder.complete(row, rows, state)


def train(prepared: Prepared, start: Tensor, pool: Pool, recorder: Recorder, console: Console) -> dict[str, Any]:
    """All rounds of one strategy that are not recorded yet, recorded as they end; returns the summary."""
    setup, experiment = prepared.setup, prepared.setup.experiment
    recorder.made_from({**origin_of(prepared), "model": parameters_sha256(start, setup.architecture)})
    write_shares(recorder.folder / "shares.parquet", prepared.tally, by_device(setup.classes, setup.budgets))
    state = recorder.state
    with Display(console, experiment.strategy.name, experiment.rounds) as display:
        display.stage(
            f"{experiment.rounds} rounds of {experiment.clients.per_round} of {experiment.clients.count} clients",
            experiment.rounds,
        )
        pool.profile.taken()
        if state is None:
            state, work, updates = _first_ranking(
                prepared, new_state(with_copies(start, setup.architecture, setup.owned, len(setup.budgets))), pool, display
            )
            first = evaluate(setup, state, pool, prepared.task)
            state = compared(setup, state, prepared.task.metric, first.validation)
            _complete(prepared, work, updates, state, first, True, pool, recorder, console)
            display.evaluated(0, prepared.task.metric, first.metric, first.class_metrics)
        while not is_over(setup, state):
            ranked = ranking_is_due(setup, state)
            with pool.profile.during("plan"):
                if ranked:
                    public = METRICS[experiment.salience.metric].statistic if experiment.salience.source == "public" else None
                    state = rank_again(setup, state, public_statistics(prepared, state, public) if public else state.pending)
                work = begin_round(setup, state)
            summed, updates, late = run_round(setup, work, state, pool, display)
            with pool.profile.during("add"):
                state = finish_round(setup, state, work, summed, updates, late)
            now = None
            if state.round % experiment.evaluation.every == 0 or state.round == experiment.rounds:
                now = evaluate(setup, state, pool, prepared.task)
                state = compared(setup, state, prepared.task.metric, now.validation)
                display.evaluated(state.round, prepared.task.metric, now.metric, now.class_metrics)
            _complete(prepared, work, updates, state, now, ranked, pool, recorder, console)
    if state.round < experiment.rounds:
        console.print(f"{experiment.strategy.name}: stopped after round {state.round} (evaluation.patience)", highlight=False)
    if (best := chosen(setup, state)) is state:
        measured = recorded_evaluation(recorder.rounds[-1], class_plans(setup, state))
    else:
        console.print(f"{experiment.strategy.name}: round {best.round} is kept (evaluation.keep_best)", highlight=False)
        state, measured = best, evaluate(setup, best, pool, prepared.task)
    summary = summarize(setup, recorder.rounds, recorder.clients, measured, state, experiment.name, prepared.task.metric)
    summary |= curve_of(setup, state, pool, prepared.task, measured) | {"made_from": recorder.origin}
    words = prepared.foundation.words
    used = dict(zip(measured.class_plans, copies(setup, state, list(measured.class_plans.values())), strict=True))
    own = saved_copies(state.parameters, setup.architecture, setup.owned, used)
    recorder.finish(summary, state, setup.architecture, words.tokenizer if words else None, own)
    return summary


def completed(
    prepared: Prepared, start: Tensor, pool: Pool, folder: Path, console: Console, recorder: Recorder | None = None
) -> dict[str, Any]:
    """The summary of one strategy's run in a folder that this process holds: begun, gone on with, or read where it is finished."""
    if (folder / SUMMARY).is_file():
        checkpoint.remove(folder / "checkpoints")  # where it ended in between
        return read_summary(folder)
    return train(prepared, start, pool, recorder or opened(folder, prepared.setup.experiment, _teller(console)), console)


def _teller(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, highlight=False, soft_wrap=True)


def simulate(experiment: Experiment, folder: Path, console: Console | None = None, pool: Pool | None = None) -> dict[str, Any]:
    """Runs an experiment and its baselines; writes `folder` and returns the content of its `summary.json`.

    Raises UserError before any training when something cannot work. A given pool is used and left open.
    """
    console = console or Console(stderr=True, quiet=True)
    with one_thread():
        check_output(folder)
        prepared, beside, start = _ready(experiment, folder, console, {})
        with _using(pool, prepared) as used, locked(folder):
            return _run_all(prepared, beside, start, used, folder, console, None)


def resume(
    folder: Path, flags: Sequence[str] = (), console: Console | None = None, pool: Pool | None = None
) -> dict[str, Any]:  # fmt: skip
    """Goes on with a run that was interrupted: its records and summary become, to the bit, what `simulate` would have left, but for real
    time and memory.

    `flags`: as for `resuming.experiment_in`. A run that is finished stays as it is. Raises UserError before any training where the run
    cannot go on, what it is made from has changed, or another process is at it.
    """
    console = console or Console(stderr=True, quiet=True)
    experiment, recorder = experiment_in(folder, flags), None
    with one_thread(), locked(folder):
        if (folder / SUMMARY).is_file():
            summary = read_summary(folder)
            if set(experiment.baselines) <= set(summary.get("baselines", {})):
                checkpoint.remove(folder / "checkpoints")  # where it ended in between
                console.print(f"{folder}: the run is finished, nothing is left to do", highlight=False, soft_wrap=True)
                return summary
            origin = summary["made_from"]
        else:
            recorder = opened(folder, experiment, _teller(console))
            origin = recorder.origin
        prepared, beside, start = _ready(experiment, folder, console, origin)
        with _using(pool, prepared) as used:
            return _run_all(prepared, beside, start, used, folder, console, recorder)


def _ready(
    experiment: Experiment, folder: Path, console: Console, origin: Mapping[str, str]
) -> tuple[Prepared, dict[str, Prepared], Tensor]:
    """The experiment and its baselines, checked, and the flat parameters that all start from."""
    check_baselines(experiment)
    prepared = prepare(experiment)
    check_origin(folder, origin, origin_of(prepared))
    beside = {name: with_strategy(prepared, name) for name in experiment.baselines}
    for name in sorted(set(experiment.fleet.budgets) - set(prepared.setup.budgets)):
        console.print(f"note: fleet.budgets.{name} is not used: no client of this fleet has that device", highlight=False)
    return prepared, beside, starting(prepared, console)


@contextmanager
def _using(pool: Pool | None, prepared: Prepared) -> Iterator[Pool]:
    """The given pool, which is left open, or one that is closed at the end."""
    used = pool or open_pool(prepared.runner(), prepared.setup.experiment.pool)
    try:
        yield used
    finally:
        if pool is None:
            used.close()


def _run_all(
    prepared: Prepared, beside: Mapping[str, Prepared], start: Tensor, pool: Pool, folder: Path, console: Console,
    recorder: Recorder | None,
) -> dict[str, Any]:  # fmt: skip
    summary = completed(prepared, start, pool, folder, console, recorder)
    if beside:
        summary["baselines"] = {}
        for name, one in beside.items():
            place = folder / "baselines" / name
            with locked(place):
                summary["baselines"][name] = completed(one, start, pool, place, console)
        write_json(folder / SUMMARY, summary)
    return summary


def starting(prepared: Prepared, console: Console) -> Tensor:
    """The flat parameters before round 1, with a bar for the training that they may need. Raises UserError as `trained`."""
    experiment = prepared.setup.experiment
    with Display(console, experiment.name, experiment.rounds) as display:
        display.stage(f"pretraining on {len(prepared.task.public)} public examples (cached)", 100)
        return starting_parameters(
            prepared, lambda step, steps: display.advance(100 * step / steps), lambda line: console.print(line, highlight=False)
        )
