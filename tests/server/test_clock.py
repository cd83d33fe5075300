"""Virtual time: availability, the end of a round, late updates, and predictions of work that must come true."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import tiny_experiment
from hypothesis import given
from hypothesis import strategies as st
from methods import WHOLE
from plans import masks
from rich.console import Console

from raffm_ray.axes.flat_parameters import flatten
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.formatting import time_unit
from raffm_ray.clients.local_training import one_thread
from raffm_ray.clients.messages import Job, Update
from raffm_ray.devices.availability import AVAILABILITY
from raffm_ray.devices.round_costs import DeviceCost
from raffm_ray.models.architecture import new_model
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.baselines import with_strategy
from raffm_ray.preparation.prepare import prepare
from raffm_ray.reports.run_report import write_report
from raffm_ray.runs.progress import Display
from raffm_ray.runs.reader import read_rounds
from raffm_ray.runs.rounds.run_round import run_round
from raffm_ray.runs.simulation import simulate
from raffm_ray.runs.summary import client_rows
from raffm_ray.server import round_schedule
from raffm_ray.server.clock import LATE_POLICIES, OUTCOMES, LateUpdate, VirtualClock, Visit, close_round, sort_late_updates
from raffm_ray.server.ranking import begin_calibration
from raffm_ray.server.round_schedule import cost_of, planned_work
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import Round, new_state
from raffm_ray.settings.experiment import ClockSettings
from raffm_ray.settings.strategy import BaselineSettings
from raffm_ray.subnetworks.calibration import STATISTICS, collect, statistics_size
from raffm_ray.subnetworks.norm_correction import norm_statistics, norm_statistics_size
from raffm_ray.subnetworks.salience import METRICS


def available_clients(setup: Any, clock: VirtualClock) -> tuple[float, list[int]]:
    seconds, clients = round_schedule.available_clients(setup, clock)
    return seconds, clients.tolist()


@pytest.fixture(scope="module")
def prepared() -> Any:
    return prepare(tiny_experiment())


@pytest.fixture(scope="module")
def state(prepared) -> Any:
    architecture = prepared.setup.architecture
    flat = flatten(dict(new_model(architecture, 0).named_parameters()), architecture.shapes)
    scores = METRICS["random"].score(architecture.layout, {}, {}, np.random.default_rng(0))
    return replace(new_state(flat), scores=scores)


def with_clock(setup: Any, **changes: Any) -> Any:
    """A setup with other settings of its clock, and everybody always awake unless they say otherwise."""
    clock = ClockSettings(**changes)
    experiment = setup.experiment.model_copy(update={"clock": clock})
    return replace(setup, experiment=experiment, availability=AVAILABILITY[clock.availability](clock, 0, len(setup.device_types)))


# --- the end of a round


def end_by_events(needs: Sequence[float], stops: Sequence[float], wanted: int, deadline: float) -> tuple[float, set[int]]:
    """`close_round`, told as a story: what happens next, until there is no reason to wait."""
    events = sorted((min(need, stop), client, need <= stop) for client, (need, stop) in enumerate(zip(needs, stops, strict=True)))
    now, back = 0.0, set()
    for time, client, arrives in events:
        if len(back) == wanted:
            return now, back
        if time > deadline:
            return deadline, back
        now = time
        back |= {client} if arrives else set()
    return now, back


TIMES = st.floats(0.1, 100).map(lambda value: round(value, 1))


@given(st.lists(st.tuples(TIMES, TIMES | st.just(math.inf)), max_size=12), st.integers(1, 12), TIMES | st.just(math.inf))
def test_a_round_ends_as_told_event_by_event(clients, wanted, deadline) -> None:
    needs, stops = (np.array([one[at] for one in clients], dtype=float) for at in (0, 1))
    end, arrived = close_round(needs, stops, wanted, deadline)
    expected, back = end_by_events(needs, stops, wanted, deadline)
    assert end == expected
    assert set(np.flatnonzero(arrived).tolist()) == back
    assert end <= deadline
    assert arrived.sum() <= wanted
    longer, more = close_round(needs, stops, wanted, 2 * deadline)
    assert longer >= end
    assert (more | ~arrived).all()
    assert close_round(needs, stops, wanted + 1, deadline)[0] >= end


def test_rounds_as_one_would_write_them_down() -> None:
    needs, never = np.array([5.0, 1.0, 3.0]), np.full(3, math.inf)

    def closed(*arguments: Any) -> tuple[float, list[bool]]:
        end, arrived = close_round(needs, *arguments)
        return end, arrived.tolist()

    assert closed(never, 3, math.inf) == (5.0, [True, True, True])
    assert closed(never, 2, math.inf) == (3.0, [False, True, True])  # over-selection takes the fastest
    assert closed(never, 3, 4.0) == (4.0, [False, True, True])
    assert closed(never, 3, 0.5) == (0.5, [False, False, False])
    assert closed(np.array([2.0, 9.0, 9.0]), 3, 4.0) == (3.0, [False, True, True])  # nobody is left to wait for
    assert close_round(np.zeros(0), np.zeros(0), 3, 4.0)[0] == 0


# --- what a client has spent by a moment

COST = DeviceCost(bytes_down=100, flops=80.0, bytes_up=50, phase_seconds=(2.0, 8.0, 1.0), phase_joules=(0.2, 16.0, 0.1))


def test_costs_are_cut_phase_by_phase() -> None:
    assert COST.seconds == 11
    assert COST.until(math.inf) == COST.until(11.0) == COST
    assert COST.until(1.0) == DeviceCost(
        bytes_down=50, flops=0.0, bytes_up=0, phase_seconds=(1.0, 0.0, 0.0), phase_joules=(0.1, 0.0, 0.0)
    )
    assert COST.until(6.0) == DeviceCost(
        bytes_down=100, flops=40.0, bytes_up=0, phase_seconds=(2.0, 4.0, 0.0), phase_joules=(0.2, 8.0, 0.0)
    )
    assert COST.until(10.5) == DeviceCost(
        bytes_down=100, flops=80.0, bytes_up=25, phase_seconds=(2.0, 8.0, 0.5), phase_joules=(0.2, 16.0, 0.05)
    )


@given(st.floats(0, 12), st.floats(0, 12))
def test_who_stops_later_has_spent_no_less(first, second) -> None:
    early, late = (COST.until(time) for time in sorted((first, second)))
    assert early.seconds == pytest.approx(min(first, second, 11.0))
    assert early.bytes_down <= late.bytes_down <= 100
    assert early.bytes_up <= late.bytes_up
    assert early.energy_joules <= late.energy_joules


# --- who is awake


def trace_file(folder: Path, rows: Sequence[tuple[Any, Any, Any]], **columns: Any) -> str:
    path = folder / "trace.parquet"
    names = ("client", "start_seconds", "end_seconds")
    table = {name: [row[at] for row in rows] for at, name in enumerate(names)} | columns
    pq.write_table(pa.table({name: values for name, values in table.items() if values is not None}), path)
    return str(path)


ROWS = [(0, 0.0, 4.0), (0, 6.0, 10.0), (1, 2.0, 3.0), (2, 0.0, 10.0), (3, 5.0, 9.0), (7, 0.0, 2.0)]


@pytest.fixture(params=sorted(AVAILABILITY))
def availability(request, tmp_path) -> Any:
    """Every model for four clients whose states last seconds."""
    changes: dict[str, Any] = {
        "availability": request.param,
        "period_seconds": 10.0,
        "mean_on_seconds": 3.0,
        "mean_off_seconds": 2.0,
    }
    if request.param == "trace":
        changes["trace"] = trace_file(tmp_path, ROWS)
    return lambda seed=0: AVAILABILITY[request.param](ClockSettings(**changes), seed, 4)


def test_availability_is_a_pure_function_of_time(availability) -> None:
    times = np.random.default_rng(0).uniform(0, 100, 30).tolist()
    at, again = availability(), availability()
    first = {time: [values.tolist() for values in at(time)] for time in times}
    assert all([values.tolist() for values in again(time)] == first[time] for time in sorted(times, reverse=True))


def test_a_client_s_state_lasts_until_its_next_change(availability) -> None:
    at = availability()
    for now in np.random.default_rng(1).uniform(0, 60, 30).tolist():
        awake, changes = at(now)
        assert (changes > now).all()
        for client in np.flatnonzero(np.isfinite(changes)).tolist():
            change = float(changes[client])
            for part in (0.01, 0.5, 0.99):
                between, same = at(now + part * (change - now))
                assert between[client] == awake[client]
                assert same[client] == pytest.approx(change)
            assert at(change + 1e-6)[0][client] != awake[client]


@pytest.mark.parametrize(("model", "share"), [("periodic", 0.5), ("markov", 0.6)])
def test_the_share_of_time_awake_is_what_is_asked_for(model, share) -> None:
    asked = ClockSettings(availability=model, period_seconds=10, awake=0.5, mean_on_seconds=3, mean_off_seconds=2)
    at = AVAILABILITY[model](asked, 0, 400)
    for start in (0.0, 1e6):  # stationary from the first moment on
        measured = np.mean([at(start + time)[0].mean() for time in np.linspace(0, 200, 40)])
        assert measured == pytest.approx(share, abs=0.02)
    assert np.mean([at(time)[0].mean() for time in (0.0, 1.0)]) == pytest.approx(share, abs=0.08)
    assert (at(0.0)[0] != AVAILABILITY[model](asked, 1, 400)(0.0)[0]).any()


def test_markov_states_last_exponentially_with_the_means_that_are_asked_for() -> None:
    """Memoryless: what is left of a state has the mean and the deviation of the whole, whenever one looks."""
    at = AVAILABILITY["markov"](ClockSettings(availability="markov", mean_on_seconds=3, mean_off_seconds=20), 0, 20000)
    awake, changes = at(500.0)
    for left, mean in ((changes[awake] - 500, 3), (changes[~awake] - 500, 20)):
        assert left.mean() == pytest.approx(mean, rel=0.06)
        assert left.std() == pytest.approx(mean, rel=0.08)


def test_a_trace_is_replayed_again_and_again(tmp_path) -> None:
    at = AVAILABILITY["trace"](ClockSettings(availability="trace", trace=trace_file(tmp_path, ROWS)), 0, 4)
    for turn in range(3):
        for now in np.arange(0.5, 10).tolist():
            expected = [any(client == one and start <= now < end for one, start, end in ROWS) for client in range(4)]
            assert at(now + 10 * turn)[0].tolist() == expected
    assert at(7.0)[1].tolist() == [14.0, 12.0, math.inf, 9.0]  # client 0 is awake through the seam, client 2 always


GOOD = [(0, 0.0, 4.0), (1, 2.0, 3.0)]


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([GOOD[0]], {}, "client 1 is never available (1 of 2 clients have no row: 0 to 1 need one)"),
        (
            [(0, 0.0, 4.0), (0, 3.0, 5.0), GOOD[1]],
            {},
            "row 1: must start after the client's row before it has ended, got client 0, 3 to 5 s",
        ),
        ([(0, 6.0, 7.0), (0, 1.0, 5.0), GOOD[1]], {}, "row 1: rows must be sorted by client, then by start_seconds"),
        ([GOOD[1], GOOD[0]], {}, "row 1: rows must be sorted by client"),
        ([(0, -1.0, 4.0), GOOD[1]], {}, "row 0: start_seconds must be finite and not negative, got client 0, -1 to 4 s"),
        ([(0, 4.0, 4.0), GOOD[1]], {}, "row 0: end_seconds must be finite and after start_seconds"),
        ([GOOD[0], (1, 2.0, math.inf)], {}, "row 1: end_seconds must be finite"),
        ([(-1, 0.0, 4.0), *GOOD], {}, "row 0: client must not be negative"),
        ([GOOD[0], (1, None, 3.0)], {}, "row 1: start_seconds is empty"),
        (GOOD, {"client": ["a", "b"]}, "column 'client' must hold integers, got string"),
        (GOOD, {"end_seconds": None}, "column 'end_seconds' is missing"),
        (GOOD, {"end_seconds": None, "end_second": [4.0, 3.0]}, "column 'end_seconds' is missing (did you mean 'end_second'?)"),
        (
            [],
            {
                "client": pa.array([], pa.int64()),
                "start_seconds": pa.array([], pa.float64()),
                "end_seconds": pa.array([], pa.float64()),
            },
            "client 0 is never available (2 of 2",
        ),
    ],
)
def test_a_broken_trace_is_one_clear_line(tmp_path, rows, columns, words) -> None:
    path = trace_file(tmp_path, rows, **columns)
    with pytest.raises(UserError) as caught:
        AVAILABILITY["trace"](ClockSettings(availability="trace", trace=path), 0, 2)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"clock.trace {path}: ")
    assert AVAILABILITY["trace"](ClockSettings(availability="trace", trace=trace_file(tmp_path, GOOD)), 0, 2)


def test_a_round_waits_until_somebody_is_awake_and_free(prepared) -> None:
    awake, wakes = np.zeros(12, dtype=bool), np.full(12, 90.0)
    wakes[4] = 50.0

    def at(now: float) -> tuple[Any, Any]:
        return awake | (wakes <= now), np.where(wakes <= now, math.inf, wakes)

    setup = replace(prepared.setup, availability=at, examples=[10] * 12)
    assert available_clients(setup, VirtualClock(7.0)) == (50.0, [4])
    assert available_clients(setup, VirtualClock(100.0)) == (100.0, list(range(12)))
    busy = LateUpdate(
        round=1,
        arrival_seconds=70.0,
        visit=Visit(job=Job(4, 0), report=None, cost=COST, outcome="stale"),
        plan=Plan(),
        weight=1.0,
        summed=torch.zeros(1),
    )
    assert available_clients(setup, VirtualClock(7.0, (busy,))) == (70.0, [4])
    assert available_clients(setup, VirtualClock(100.0, (replace(busy, arrival_seconds=101.0),)))[1] == [
        0,
        1,
        2,
        3,
        *range(5, 12),
    ]
    assert available_clients(replace(setup, examples=[10] * 4 + [0] * 8), VirtualClock(7.0)) == (90.0, [0, 1, 2, 3])
    never = replace(setup, availability=lambda now: (awake, np.full(12, math.inf)))
    with pytest.raises(UserError, match=r"clock.availability 'always': no client with data is ever available after 7 s"):
        available_clients(never, VirtualClock(7.0))


# --- predictions come true


@pytest.mark.parametrize(
    ("name", "prefix", "local"),
    [
        *((name, None, {"steps": 3}) for name in WHOLE),
        *(("raffm", prefix, {"batch_size": 7}) for prefix in ("none", "smallest", "random", "one")),
        ("raffm", "one", {"epochs": 2, "batch_size": 32}),
    ],
)
def test_work_is_known_before_it_is_done(prepared, state, name, prefix, local) -> None:
    setup = with_strategy(prepared, BaselineSettings(name=name)).setup
    setup = replace(setup, strategy=replace(setup.strategy, prefix=prefix)) if prefix else setup
    changed = setup.experiment.local.model_copy(update=local)
    setup = replace(setup, experiment=setup.experiment.model_copy(update={"local": changed}))
    work = begin_round(setup, state)
    whole = any(len(work.context.plans[job.plan]) == 0 for job in work.jobs if job.plan is not None)
    assert any(job.calibrate for job in work.jobs) == (setup.strategy.salience and whole)
    assert whole or name not in ("raffm", "full")
    update, _ = prepared.runner().block(work.context, state.parameters.numpy(), work.jobs)
    rows = client_rows(setup, work, [update])
    jobs = sorted(work.jobs, key=lambda job: job.client)
    reports = sorted(update.reports, key=lambda report: report.client)
    for job, report, row in zip(jobs, reports, rows, strict=True):
        told = replace(planned_work(setup, work.context, job), loss=report.loss, seconds=report.seconds)
        assert told == report
        cost = cost_of(setup, work.context, job, report)
        assert row.round_seconds == cost.seconds
        assert (row.bytes_up, row.training_flops, row.energy_joules) == (cost.bytes_up, cost.flops, cost.energy_joules)
    assert work.seconds == max(row.round_seconds for row in rows)


def test_control_another_round_draws_other_prefixes(prepared, state) -> None:
    work = begin_round(prepared.setup, state)
    other = replace(work.context, round=2)
    assert any(
        planned_work(prepared.setup, other, job).forward_backward != visit.report.forward_backward
        for job, visit in zip(work.jobs, work.visits, strict=True)
    )


def test_the_first_calibration_is_known_before_it_is_done(prepared, state) -> None:
    work = begin_calibration(prepared.setup, state)
    assert work is not None
    update, _ = prepared.runner().block(work.context, state.parameters.numpy(), work.jobs)
    for visit, report in zip(work.visits, update.reports, strict=True):
        assert report.statistics_values > 0
        assert replace(visit.report, seconds=report.seconds, loss=0.0) == replace(report, loss=0.0)


def test_how_many_numbers_statistics_have(architecture, model, inputs) -> None:
    words = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    labels = torch.zeros(6, dtype=torch.long) if architecture.head.endswith("classification") else words
    batch = {**inputs, "labels": torch.ones(6, 4, dtype=torch.long) if architecture.head == "question_answering" else labels}
    for statistic in STATISTICS:
        measured = collect(model, architecture.layout, [batch], statistic, OBJECTIVES[architecture.head])
        assert statistics_size(architecture.layout, statistic) == sum(values.numel() for values in measured.values())
    norms = norm_statistics(model, architecture.layout, [batch])
    assert norm_statistics_size(architecture.layout) == sum(values.numel() for values in norms.values())


# --- who trains at all


def outcomes(work: Round) -> dict[int, str]:
    return {visit.job.client: visit.outcome for visit in work.visits}


def test_over_selection_keeps_the_fastest_and_the_rest_does_not_train(prepared, state) -> None:
    plain = begin_round(prepared.setup, state)
    assert set(outcomes(plain).values()) == {"used"}
    assert len(plain.visits) == 5
    work = begin_round(with_clock(prepared.setup, over_selection=1.7), state)
    by_speed = sorted(work.visits, key=lambda visit: cost_of(prepared.setup, work.context, visit.job, visit.report).seconds)
    assert len(work.visits) == 9
    assert [visit.outcome for visit in by_speed] == ["used"] * 5 + ["late"] * 4
    assert {job.client for job in work.jobs} == {visit.job.client for visit in by_speed[:5]}
    assert work.seconds == by_speed[4].cost.seconds
    for visit in by_speed[5:]:  # charged up to the round's end, no further
        assert visit.cost.seconds == pytest.approx(work.seconds)
        assert 0 < visit.cost.bytes_down <= cost_of(prepared.setup, work.context, visit.job, visit.report).bytes_down
    assert len(begin_round(with_clock(prepared.setup, over_selection=1000), state).visits) == sum(
        map(bool, prepared.setup.examples)
    )


def test_a_deadline_ends_the_round(prepared, state) -> None:
    whole = begin_round(prepared.setup, state)
    needs = {visit.job.client: visit.cost.seconds for visit in whole.visits}
    deadline = sorted(needs.values())[2]
    work = begin_round(with_clock(prepared.setup, deadline_seconds=deadline), state)
    assert outcomes(work) == {client: "used" if need <= deadline else "late" for client, need in needs.items()}
    assert (work.seconds, len(work.jobs), work.late) == (deadline, 3, 0)
    kept = begin_round(with_clock(prepared.setup, deadline_seconds=deadline, late="accept"), state)
    assert outcomes(kept) == {client: "used" if need <= deadline else "stale" for client, need in needs.items()}
    assert [len(block) for block in kept.blocks[-2:]] == [1, 1]
    assert (kept.late, len(kept.jobs)) == (2, 5)
    assert all(visit.cost.seconds == needs[visit.job.client] for visit in kept.visits)


def test_who_drops_out_or_falls_asleep_does_not_train(prepared, state) -> None:
    setup = with_clock(prepared.setup, dropout=0.5)
    seen: dict[str, list[float]] = {outcome: [] for outcome in OUTCOMES}
    for number in range(40):
        work = begin_round(setup, replace(state, round=number))
        for visit in work.visits:
            whole = cost_of(setup, work.context, visit.job, visit.report)
            seen[visit.outcome].append(visit.cost.seconds / whole.seconds)
        assert {job.client for job in work.jobs} == {client for client, outcome in outcomes(work).items() if outcome == "used"}
        assert work.seconds == pytest.approx(max(visit.cost.seconds for visit in work.visits))
    assert set(seen["used"]) == {1.0}
    assert len(seen["dropped"]) == pytest.approx(100, abs=25)
    assert np.mean(seen["dropped"]) == pytest.approx(0.5, abs=0.1)
    assert not seen["late"]
    assert not seen["stale"]
    needs = begin_round(prepared.setup, state).visits
    falling = np.full(12, math.inf)
    falling[needs[1].job.client] = 10 + needs[1].cost.seconds / 2
    asleep = replace(prepared.setup, availability=lambda now: (np.ones(12, dtype=bool), falling))
    work = begin_round(asleep, replace(state, clock=VirtualClock(10.0)))
    assert [visit.outcome for visit in work.visits] == ["used", "dropped", "used", "used", "used"]
    assert work.visits[1].cost.seconds == pytest.approx(needs[1].cost.seconds / 2)


def test_a_round_without_updates_leaves_the_parameters_and_moves_time(prepared, state) -> None:
    setup = with_clock(prepared.setup, deadline_seconds=1e-9)
    work = begin_round(setup, state)
    assert work.blocks == ()
    after = finish_round(setup, state, work, torch.zeros_like(state.parameters), [])
    assert torch.equal(after.parameters, state.parameters)
    assert (after.round, after.clock.seconds) == (1, 1e-9)
    assert after.clock.wasted_joules == sum(visit.cost.energy_joules for visit in work.visits)


def test_time_moves_on_where_nobody_takes_part(prepared, state) -> None:
    nobody = replace(prepared.setup.strategy, train=lambda view, budget, client: None)
    asleep = replace(prepared.setup, strategy=nobody, availability=lambda now: (np.ones(12, dtype=bool), np.full(12, 30.0)))
    work = begin_round(asleep, replace(state, clock=VirtualClock(10.0)))
    assert (work.visits, work.blocks, work.start_seconds, work.seconds) == ((), (), 10.0, 20.0)
    assert begin_round(replace(prepared.setup, strategy=nobody), state).seconds == 0


# --- updates that come late


def test_late_updates_arrive_are_waited_for_or_given_up() -> None:
    asked = ClockSettings(late="accept", late_rounds=2, staleness=1.0)
    assert [LATE_POLICIES["accept"](asked, rounds) for rounds in (1, 2, 3)] == [1 / 2, 1 / 3, 0]
    assert [LATE_POLICIES["drop"](asked, rounds) for rounds in (1, 2, 3)] == [0, 0, 0]
    visit = Visit(job=Job(4, 0), report=None, cost=COST, outcome="stale")
    late = tuple(
        LateUpdate(round=number, arrival_seconds=time, visit=visit, plan=Plan(), weight=1.0, summed=torch.zeros(1))
        for number, time in [(1, 30.0), (2, 9.0), (2, 30.0), (1, 10.0)]
    )
    arrived, waiting, expired = sort_late_updates(asked, late, 3, 10.0)
    assert [(one.round, factor) for one, factor in arrived] == [(2, 1 / 2), (1, 1 / 3)]
    assert [(one.round, one.arrival_seconds) for one in waiting] == [(2, 30.0)]
    assert [one.round for one in expired] == [1]


def late_case(prepared: Any, state: Any, rule: str, staleness: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(new parameters, the dense oracle's) of a round with one client on time and one that comes two rounds late."""
    setup = with_clock(prepared.setup, late="accept", late_rounds=3, staleness=staleness)
    setup = replace(setup, strategy=replace(setup.strategy, aggregation=rule))
    layout, shapes = setup.architecture.layout, setup.architecture.shapes
    plans = [Plan({"residual": np.arange(16), "0/ffn": np.arange(8)}), Plan({"residual": np.arange(4, 24), "layers": [0, 2]})]
    weights, factor = (7.0, 12.0), 3.0**-staleness
    rng = torch.Generator().manual_seed(0)
    dense = [flatten(masks(layout, shapes, plan), shapes) for plan in plans]
    changes = [mask * torch.randn(mask.shape, generator=rng) for mask in dense]
    context = replace(begin_round(setup, state).context, round=3, plans=(plans[0],))
    work = Round(context, ((Job(0, 0),),), start_seconds=4.0, seconds=2.0)
    late = LateUpdate(
        round=1,
        arrival_seconds=5.0,
        visit=Visit(job=Job(1, 0), report=None, cost=COST, outcome="stale"),
        plan=plans[1],
        weight=weights[1],
        summed=weights[1] * changes[1],
    )
    before = replace(state, round=2, clock=VirtualClock(4.0, (late,)))
    after = finish_round(setup, before, work, weights[0] * changes[0], [Update({0: weights[0]}, ())])
    assert after.clock == VirtualClock(6.0)
    scaled = [weights[0] * dense[0].double(), factor * weights[1] * dense[1].double()]
    summed, covered = (
        sum(weight * (state.parameters + change) for weight, change in zip(scaled, changes, strict=True)),
        sum(scaled),
    )
    if rule == "all_clients":
        return after.parameters, summed / (weights[0] + factor * weights[1])
    return after.parameters, torch.where(covered > 0, summed / covered.clamp(min=1e-9), state.parameters.double())


@pytest.mark.parametrize("rule", ["coverage", "all_clients"])
@pytest.mark.parametrize("staleness", [0.0, 0.5, 2.0])
def test_a_late_update_is_averaged_like_a_dense_oracle_does(prepared, state, rule, staleness) -> None:
    new, dense = late_case(prepared, state, rule, staleness)
    torch.testing.assert_close(new.double(), dense, atol=1e-5, rtol=1e-5)


def test_control_staleness_changes_the_average(prepared, state) -> None:
    assert (late_case(prepared, state, "coverage", 0.5)[0] - late_case(prepared, state, "coverage", 0.0)[1]).abs().max() > 1e-2


def test_a_late_update_stays_out_of_its_own_round_and_comes_in_when_it_arrives(prepared, state) -> None:
    setup = with_clock(prepared.setup, over_selection=1.7, late="accept", late_rounds=50)
    work = begin_round(setup, state)
    runner, parts = prepared.runner(), []
    with one_thread():
        for block in work.blocks:
            parts.append(torch.from_numpy(runner.block(work.context, state.parameters.numpy(), block)[1]))
    assert work.late == 4
    on_time, updates, late, _ = run_round(setup, work, state, InProcessPool(runner), Display(Console(quiet=True), "", 1))
    assert torch.equal(on_time, sum(parts[:-4], torch.zeros_like(state.parameters)))
    after = finish_round(setup=setup, state=state, work=work, summed=on_time, updates=updates, late=late)
    plain = finish_round(setup, state, replace(work, late=0, visits=()), on_time, updates[:-4])
    assert torch.equal(after.parameters, plain.parameters)
    assert [one.visit.job.client for one in after.clock.late] == [job.client for (job,) in work.blocks[-4:]]
    assert all(torch.equal(one.summed, part) for one, part in zip(after.clock.late, parts[-4:], strict=True))
    assert not set(outcomes(begin_round(setup, after))) & {one.visit.job.client for one in after.clock.late}
    nobody = Round(replace(work.context, round=2), (), start_seconds=after.clock.seconds, seconds=1e6)
    later = finish_round(setup, after, nobody, torch.zeros_like(on_time), [])
    assert later.clock.late == ()
    assert not torch.equal(later.parameters, after.parameters)
    assert later.clock.wasted_bytes == 0


# --- whole runs

BUSY: dict[str, Any] = {
    "over_selection": 1.5,
    "late": "accept",
    "dropout": 0.15,
    "availability": "markov",
    "deadline_seconds": 0.0035,
    "mean_on_seconds": 0.05,
    "mean_off_seconds": 0.01,
}


def run(folder: Path, **changes: Any) -> tuple[Mapping[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    summary = simulate(tiny_experiment(**{"rounds": 5, "clock": BUSY, "evaluation": {"sizes": 0}, **changes}), folder)
    return summary, read_rounds(folder), pq.read_table(folder / "clients").to_pylist()


@pytest.fixture(scope="module")
def busy(tmp_path_factory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clock") / "run"
    return folder, run(folder)


def test_a_run_s_records_add_up(busy) -> None:
    folder, (summary, rounds, clients) = busy
    times = [row["simulated_seconds"] for row in rounds]
    assert times == sorted(times)
    assert times[-1] == summary["simulated_seconds"] > 0
    assert {row["outcome"] for row in clients} == {"used", "stale", "dropped"}
    for row in rounds:
        own = [one["outcome"] for one in clients if one["round"] == row["round"]]
        assert row["selected"] == len(own) == row["arrived"] + row["late"] + row["dropped"]
        assert row["arrived"] == own.count("used") <= 5
        assert row["bytes_down"] == sum(one["bytes_down"] for one in clients if one["round"] == row["round"])
        assert row["round"] == 0 or row["round_seconds"] <= 0.0035
    assert all(math.isnan(row["loss"]) == (row["outcome"] == "dropped") for row in clients if row["round"])
    dropped = sum(one["bytes_down"] + one["bytes_up"] for one in clients if one["outcome"] == "dropped")
    assert dropped <= summary["wasted_bytes"] < summary["bytes_down"] + summary["bytes_up"]
    assert 0 < summary["wasted_joules"] < summary["energy_joules"]
    page = write_report(folder)[1].read_text()
    assert "went into updates that were never used" in page


def test_the_same_seed_gives_the_same_run_again(busy, tmp_path) -> None:
    _, (summary, _, clients) = busy
    again = run(tmp_path / "again")
    for key in ("params_sha256", "simulated_seconds", "wasted_bytes", "wasted_joules"):
        assert again[0][key] == summary[key]
    assert [row["outcome"] for row in again[2]] == [row["outcome"] for row in clients]


def test_blocks_do_not_change_who_is_used(prepared, state) -> None:
    setup = with_clock(prepared.setup, over_selection=1.7, late="accept", dropout=0.3)
    rounds = []
    for size in (1, 3, 100):
        pool = setup.experiment.pool.model_copy(update={"block_clients": size})
        rounds.append(begin_round(replace(setup, experiment=setup.experiment.model_copy(update={"pool": pool})), state))
        assert max(len(block) for block in rounds[-1].blocks) == min(size, len(rounds[-1].jobs) - rounds[-1].late)
    told = [[(visit.job, visit.outcome, visit.cost) for visit in one.visits] for one in rounds]
    assert all((one, work.seconds) == (told[0], rounds[0].seconds) for one, work in zip(told, rounds, strict=True))


# --- mistakes


@pytest.mark.parametrize(
    ("clock", "words"),
    [
        ({"over_selection": 0.5}, "clock.over_selection: input should be greater than or equal to 1, got 0.5"),
        ({"deadline_seconds": 0}, "clock.deadline_seconds: input should be greater than 0"),
        ({"awake": 0}, "clock.awake: input should be greater than 0"),
        ({"dropout": 1}, "clock.dropout: input should be less than 1"),
        ({"availability": "trace"}, "clock: trace is a file where availability is trace, and only there: availability 'trace'"),
        ({"trace": "x"}, "clock: trace is a file where availability is trace, and only there: availability 'always'"),
        ({"availability": "trace", "trace": "nowhere.parquet"}, "nowhere.parquet: no such file"),
        ({"availability": "trace", "trace": __file__}, "not a Parquet file"),
        ({"availability": "markow"}, "clock.availability 'markow' is not known (did you mean 'markov'?)"),
        ({"late": "acept"}, "clock.late 'acept' is not known (did you mean 'accept'?)"),
        ({"deadline_seconds": 1e-6}, "clock.deadline_seconds 1e-06: nobody can be done by then: the fastest device type, "),
    ],
)
def test_a_mistake_is_one_clear_line_before_anything_starts(clock, words) -> None:
    with pytest.raises(UserError) as caught:
        prepare(tiny_experiment(clock=clock))
    assert words in str(caught.value)


def test_a_deadline_that_the_fastest_device_type_meets_is_accepted() -> None:
    with pytest.raises(UserError) as caught:
        prepare(tiny_experiment(clock={"deadline_seconds": 1e-6}))
    needed = float(str(caught.value).split("needs ")[1].split(" s")[0])
    assert prepare(tiny_experiment(clock={"deadline_seconds": needed * 1.01}))
    with pytest.raises(UserError, match="nobody can be done by then"):
        prepare(tiny_experiment(clock={"deadline_seconds": needed * 0.99}))


def test_times_are_shown_in_the_unit_that_suits_them() -> None:
    assert [time_unit(seconds)[1] for seconds in (0.01, 30, 600, 8000, 1e6)] == [
        "milliseconds",
        "seconds",
        "minutes",
        "hours",
        "days",
    ]
    assert time_unit(7200)[0] == 3600
