"""The loop over rounds: an imperative shell. Everything it calls is pure, a pool, a file or the screen."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from torch import Tensor

from raffm_ray.axes.flat_parameters import as_tensor
from raffm_ray.basics.errors import BadUpdateError, UserError
from raffm_ray.basics.formatting import counted
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.messages import Update
from raffm_ray.data.shares import by_device, write_shares
from raffm_ray.models.freezing import from_array
from raffm_ray.pool.worker_pool import Pool
from raffm_ray.preparation.pace_search import rank_with_pace
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.preparation.public_calibration import public_statistics
from raffm_ray.preparation.run_forecast import RunForecast, held_line
from raffm_ray.runs.callbacks import Listeners
from raffm_ray.runs.client_metrics.participation import participation
from raffm_ray.runs.client_metrics.statistics import client_summary, told
from raffm_ray.runs.client_states.store import ClientStates, states_of
from raffm_ray.runs.evaluation import EvaluationRequest, calls_of, curve_of, evaluate, request_evaluation, run_request
from raffm_ray.runs.extending import recorded_extensions
from raffm_ray.runs.hints import hint_at_end, hint_at_start
from raffm_ray.runs.progress import Display, Notes
from raffm_ray.runs.reader import START
from raffm_ray.runs.recorder import Recorder, parameters_sha256, write_json
from raffm_ray.runs.resuming import check_fits, origin_of
from raffm_ray.runs.rounds.run_round import run_round
from raffm_ray.runs.summary import Evaluation, client_rows, recorded_evaluation, round_row, start_of, summarize
from raffm_ray.server.device_type_plans import copies, device_type_plans
from raffm_ray.server.early_stopping import chosen_state, is_evaluated, is_finished, with_best_round
from raffm_ray.server.ranking import begin_calibration, plain_scores, ranking_is_due
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import Round, ServerState, starting_state
from raffm_ray.subnetworks.calibration import Statistics
from raffm_ray.subnetworks.salience import METRICS
from raffm_ray.subnetworks.size_specific import saved_copies
from raffm_ray.subnetworks.unit_coverage import add_reached, units_of, write_units


def _tell(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Environment:
    """What a run works with, which changes none of its results: where its blocks run, where it prints, who is told of it.

    `listeners`: None where that is its experiment's loggers alone; `pretraining_seconds`: real time that its starting parameters took, if it is the one that they were made for; `forecast`: where what it
    will take is told, None where nobody reads; `label`: what its lines begin with, its strategy's name where empty; `notes`: where several runs tell their hints, None for its console.
    """

    pool: Pool
    console: Console
    listeners: Listeners | None = None
    pretraining_seconds: float = 0.0
    forecast: RunForecast | None = None
    label: str = ""
    notes: Notes | None = None


@dataclass(frozen=True)
class FinishedRound:
    """A round whose training is over, and what is asked of its model, if it is evaluated."""

    state: ServerState
    work: Round | None
    updates: Sequence[Update]
    ranked: bool
    question: EvaluationRequest[Evaluation] | None


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
        what = "the parameters" if setup.strategy.budgeted else "the parameters for the subnetworks cut from it"
        told = f"{setup.experiment.strategy.name}: ranking {what}, on the examples of {counted(len(work.jobs), 'client')}"
        display.console.print(told, highlight=False)
        summed, updates, *_ = run_round(setup, work, state, pool, display)
        with pool.profile.during("add"):
            state = finish_round(setup, state, work, summed, updates)
        statistics = state.pending
        if not statistics:
            raise UserError(
                "calibration: no client reported finite statistics of the starting model; its weights or data hold NaN"
            )
    elif setup.strategy.salience and statistic is not None:
        told = (
            f"{setup.experiment.strategy.name}: ranking the parameters, on {counted(len(prepared.task.public), 'public example')}"
        )
        display.console.print(told, highlight=False)
        with pool.profile.during("calibrate"):
            statistics = public_statistics(prepared, state, statistic)
    with pool.profile.during("plan"):
        return rank_with_pace(prepared, state, statistics), work, updates


def _next_round(
    prepared: Prepared,
    state: ServerState,
    pool: Pool,
    display: Display,
    beside: EvaluationRequest[Evaluation] | None,
    states: ClientStates | None,
) -> tuple[FinishedRound, Evaluation | None]:
    """The round after a state; and the answer to what is still asked of that state."""
    setup, experiment = prepared.setup, prepared.setup.experiment
    with pool.profile.during("plan"):
        if ranked := ranking_is_due(setup, state):
            public = METRICS[experiment.salience.metric].statistic if experiment.salience.source == "public" else None
            state = rank_with_pace(prepared, state, public_statistics(prepared, state, public) if public else state.pending)
        work = begin_round(setup, state)
    summed, updates, late, before = run_round(
        setup=setup, work=work, state=state, pool=pool, display=display, beside=beside, states=states
    )
    with pool.profile.during("add"):
        state = finish_round(setup=setup, state=state, work=work, summed=summed, updates=updates, late=late)
    question = None
    if is_evaluated(experiment, state.round):
        with pool.profile.during("plan"):
            question = request_evaluation(setup, state, prepared.task, prepared.parts, _measured_states(prepared, state, states))
    return FinishedRound(state=state, work=work, updates=updates, ranked=ranked, question=question), before


def _measured_states(prepared: Prepared, state: ServerState, states: ClientStates | None) -> Mapping[int, ClientState]:
    """By client that is measured, what it keeps, where that is parameters of its own."""
    if states is None or not prepared.setup.keeps_own:
        return {}
    return states_of(states.folder, state.memory, prepared.parts.measured.tolist())


def _complete(
    prepared: Prepared,
    ended: FinishedRound,
    now: Evaluation | None,
    phases: Mapping[str, float],
    recorder: Recorder,
    display: Display,
    notes: Notes,
) -> ServerState:
    """The end of a round: it is recorded, with its evaluation if it has one, and then what the run goes on from. Returns its state with
    the best round so far.

    Raises BadUpdateError, with nothing recorded of the round, where a bad update is to stop the run.
    """
    setup, metric = prepared.setup, prepared.task.metric
    state = with_best_round(setup, ended.state, metric, now.validation if now else None)
    rows = client_rows(setup, ended.work, ended.updates)
    refused = [(row.client, why) for row in rows for why in (row.refused, row.statistics_refused) if why]
    reason = f"round {state.round}: refused: {', '.join(f'client {client} ({why})' for client, why in refused)}"
    if refused and setup.experiment.server.bad_updates == "stop":
        raise BadUpdateError(f"{reason} (server.bad_updates: stop)")
    if refused and not recorder.clients.any_refused:
        display.console.print(f"note: {reason}; later ones are only counted", highlight=False)
    recorder.complete(
        replace(
            round_row(setup=setup, work=ended.work, rows=rows, measured=now, ranked=ended.ranked, phases=phases),
            aggregation_error=state.aggregation_error,
        ),
        rows,
        state,
        now.clients if now else None,
    )
    if now is not None:
        display.evaluated(state.round, metric, now.metric, now.device_type_metrics)
        if now.clients is not None:
            _tell(display.console, f"{setup.experiment.strategy.name}: {told(metric, now.clients)}")
    if state.round == 0 and (hint := hint_at_start(setup.experiment, prepared.task, recorder.rounds[-1])):
        notes.tell(hint)
    return state


def train(prepared: Prepared, start: Tensor, recorder: Recorder, environment: Environment) -> dict[str, Any]:
    """All rounds of one strategy that are not recorded yet, recorded as they end and then told to its listeners; returns the summary.

    A round is evaluated beside the next one's training, unless that depends on it (`evaluation.patience`) or there is none.
    """
    setup, experiment = prepared.setup, prepared.setup.experiment
    pool, console = environment.pool, environment.console
    notes = environment.notes or Notes(console)
    recorder.made_from({**origin_of(prepared), "model": parameters_sha256(start, setup.architecture)})
    write_shares(recorder.folder / "shares.parquet", prepared.label_distribution, by_device(setup.device_types, setup.budgets))
    write_json(recorder.folder / START, start_of(setup, prepared.task.metric, len(prepared.task.held_out)))

    def complete(ended: FinishedRound, now: Evaluation | None, phases: Mapping[str, float]) -> ServerState:
        with pool.profile.during("checkpoint"):
            completed = _complete(prepared, ended, now, phases, recorder, display, notes)
        if environment.listeners is not None:
            environment.listeners.round(recorder.rounds[-1])
        return completed

    state, first = recorder.state, starting_state(setup, start)
    first = first.with_frozen(from_array(as_tensor(pool.placed(first.frozen_array))))
    if state is not None:
        scores, reached = plain_scores(setup.architecture), add_reached({}, {}, [], setup.architecture.layout)
        check_fits(state, replace(first, scores=scores, reached=reached), recorder.folder)
        state = state.with_frozen(first.frozen)
    states = recorder.client_states.begun(state) if setup.keeps else None
    ended: FinishedRound | None = None
    with Display(console, environment.label or experiment.strategy.name, experiment.rounds) as display:
        display.stage(
            f"{counted(experiment.rounds, 'round')} of {experiment.clients.per_round} of {counted(experiment.clients.count, 'client')}",
            experiment.rounds,
        )
        pool.profile.taken()
        if state is None:
            pool.profile.spent("pretrain", environment.pretraining_seconds)
            first, work, updates = _first_ranking(prepared, first, pool, display)
            with pool.profile.during("plan"):
                question = request_evaluation(setup, first, prepared.task, prepared.parts)
                ended = FinishedRound(state=first, work=work, updates=updates, ranked=True, question=question)
        present = ended.state if ended else state
        if environment.forecast and present is not None and not is_finished(setup, present):
            display.doing("timing a few steps of clients and a part of an evaluation, which are not used")
            _tell(console, environment.forecast.time_line(prepared, present, calls_of(prepared, present), pool))
        while state is None or ended is not None or not is_finished(setup, state):
            if ended is None:
                assert state is not None
                ended, _ = _next_round(prepared, state, pool, display, None, states)
            elif ended.question is None or experiment.evaluation.patience is not None or is_finished(setup, ended.state):
                now = run_request(ended.question, ended.state, pool) if ended.question else None
                state, ended = complete(ended, now, pool.profile.taken()), None
            else:
                phases = pool.profile.taken()
                following, now = _next_round(prepared, ended.state, pool, display, ended.question, states)
                state = complete(ended, now, phases)
                ended = replace(following, state=replace(following.state, best=state.best))
    if state.round < experiment.rounds:
        console.print(f"{experiment.strategy.name}: stopped after round {state.round} (evaluation.patience)", highlight=False)
    if (best := chosen_state(setup, state)) is state:
        measured = recorded_evaluation(recorder.rounds[-1], device_type_plans(setup, state))
    else:
        console.print(f"{experiment.strategy.name}: round {best.round} is kept (evaluation.keep_best)", highlight=False)
        state, measured = best, evaluate(setup, best, pool, prepared.task)
    summary = summarize(
        setup=setup,
        rounds=recorder.rounds,
        clients=recorder.clients,
        final=measured,
        state=state,
        metric=prepared.task.metric,
        held_out=len(prepared.task.held_out),
    )
    extensions = [asdict(one) for one in recorded_extensions(recorder.folder, experiment)]
    summary["forecast"] = environment.forecast.content(pool) if environment.forecast else None
    if environment.forecast:
        _tell(console, held_line(summary["forecast"]))
    if experiment.evaluation.sizes:
        console.print(f"{experiment.strategy.name}: measuring {experiment.evaluation.sizes} sizes between", highlight=False)
    summary |= curve_of(setup, state, pool, prepared.task, measured) | {"made_from": recorder.origin, "extensions": extensions}
    clients = recorder.evaluations(state.round)
    summary["participation"] = participation(setup, recorder.folder, summary["rounds"])
    summary["client_metrics"] = client_summary(prepared.task.metric, clients, list(setup.budgets)) if clients else None
    words = prepared.foundation.words
    used = dict(zip(measured.device_type_plans, copies(setup, state, list(measured.device_type_plans.values())), strict=True))
    own = saved_copies(state.parameters, setup.architecture, setup.size_specific, used)
    write_units(
        recorder.folder / "units.parquet",
        units_of(setup.architecture.layout, state.reached, state.reached_weight, measured.device_type_plans),
    )
    kept_last = best.round == recorder.rounds[-1].round
    hint = hint_at_end(experiment, prepared.task.metric, recorder.rounds[0], recorder.rounds[-1]) if kept_last else None
    if hint:
        notes.tell(hint)
    summary["hints"] = [one for one in (hint_at_start(experiment, prepared.task, recorder.rounds[0]), hint) if one]
    recorder.finish(summary, state, setup.architecture, words.tokenizer if words else None, own)
    return summary
