"""What is told of memory and time before round 1: formulas give what is counted by hand, and nothing of it changes a result."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from rich.console import Console
from torch import nn

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.profiling import Profile
from raffm_ray.clients.local_training import Distillation, backward
from raffm_ray.clients.messages import Call, Update
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.pool.gpu_sharing import DISTILLATION_COPIES, LOSS_COPIES
from raffm_ray.preparation import memory_forecast as memory_forecast_module
from raffm_ray.preparation import time_forecast
from raffm_ray.preparation.memory_forecast import (
    SPREAD_KEPT,
    MemoryForecast,
    changed_bytes,
    driver_copies,
    flat_bytes,
    frozen_bytes,
    memory_forecast,
    waiting_sums,
)
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.run_forecast import held_line
from raffm_ray.runs.evaluation import calls_of
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.early_stopping import is_evaluated
from raffm_ray.server.ranking import begin_calibration, plain_state, random_state
from raffm_ray.server.round_schedule import planned_work
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import ServerState
from raffm_ray.server.step_memory import LiveBytes
from raffm_ray.server.workload import training_flops


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(tiny_experiment(pool={"backend": "in_process", "stack_clients": 1}, strategy={"prefix": "none"}))


@pytest.fixture(scope="module")
def state(prepared: Prepared) -> ServerState:
    return plain_state(prepared.setup.architecture)


class Clockwork:
    """A pool whose clients take `client` seconds and `flop` seconds a FLOP, and ten times as long for more steps than any had before: what they
    need is made first. It answers at once with `flop` seconds a FLOP. `now`: what its clock says."""

    workers = 2

    def __init__(self, prepared: Prepared, flop: float, client: float) -> None:
        self.prepared, self.setup, self.flop, self.client, self.profile = prepared, prepared.setup, flop, client, Profile()
        self.calls, self.runs, self.now, self.made = list[Call](), 0, 0.0, 0

    def run(self, flat: Any, calls: Sequence[Call], progress: Any, *rest: Any) -> Iterator[tuple[Any, Any]]:
        self.calls += calls
        self.runs += 1
        evaluated = [call for call in calls if call.method == "evaluate"]
        self.now += self.flop * time_forecast._evaluation_flops(self.prepared, evaluated) / self.workers
        steps = max((call.context.local.steps or 0 for call in calls), default=0)
        slower, self.made = (10 if steps > self.made else 1), max(steps, self.made)
        for call in calls:
            reports = []
            setup = replace(self.setup, experiment=self.setup.experiment.model_copy(update={"local": call.context.local}))
            for job in call.arguments[0] if call.method == "block" else ():
                report = planned_work(setup, call.context, job)
                seconds = self.client + self.flop * training_flops(setup, call.context, report)
                reports.append(replace(report, seconds=slower * seconds))
            yield Update({}, tuple(reports)), np.zeros(0)

    def rough(self, runs: Sequence[Prepared], monkeypatch: pytest.MonkeyPatch) -> float:
        """The rough forecast by its clock."""
        monkeypatch.setattr(time_forecast, "perf_counter", lambda: self.now)
        return time_forecast.rough_seconds(runs, calls_of, self)  # type: ignore[arg-type]


def test_rates_are_told_apart_from_what_a_client_takes_whatever_its_steps(prepared: Prepared, state: ServerState) -> None:
    work, pool = begin_round(prepared.setup, state), Clockwork(prepared, 1e-9, 0.25)
    rates = time_forecast._training_rates(prepared.setup, state, work, pool, time_forecast.MOST_PLANS)  # type: ignore[arg-type]
    assert set(rates) == {
        prepared.setup.costs(work.context.plans[plan]).params for plan in (0, len(work.context.plans) - 1)
    } | set(rates)
    for rate in rates.values():
        assert (rate.flop, rate.client) == pytest.approx((1e-9, 0.25))
    steps = [planned_work(prepared.setup, work.context, job).steps for job in work.jobs]
    assert sum(steps) > 0
    assert {call.context.local.steps for call in pool.calls} == {1, time_forecast.STEPS}  # a small part is timed


def test_a_rounds_seconds_are_those_of_its_clients_on_its_workers(prepared: Prepared, state: ServerState) -> None:
    setup, work = prepared.setup, begin_round(prepared.setup, state)
    full = setup.costs(Plan()).params
    rates = time_forecast.Rates({full: time_forecast.PlanRate(2e-9, 0.5)}, summing=0.125, evaluating=0.0, step=0.0)
    blocks = time_forecast._block_seconds(setup, work, rates)
    flops = [
        sum(training_flops(setup, work.context, planned_work(setup, work.context, job)) for job in block) for block in work.blocks
    ]
    assert blocks == pytest.approx(
        [0.125 + 0.5 * len(block) + 2e-9 * count for block, count in zip(work.blocks, flops, strict=True)]
    )
    assert time_forecast._makespan(blocks, 1) == pytest.approx(sum(blocks))
    assert time_forecast._makespan([4.0, 3.0, 3.0], 2) == 6.0
    assert time_forecast._makespan([], 2) == 0.0


def test_the_rough_forecast_is_that_of_all_rounds_rankings_and_evaluations(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, pool = prepared.setup, Clockwork(prepared, 1e-9, 0.0)
    rough = pool.rough([prepared], monkeypatch)
    state = random_state(setup, torch.Generator().manual_seed(0))
    rates = time_forecast.Rates({0: time_forecast.PlanRate(1e-9, 0.0)}, 0.0, 0.0, 0.0)
    works = [begin_round(setup, replace(state, round=number)) for number in range(setup.experiment.rounds)]
    ranking = begin_calibration(setup, state)
    assert ranking is not None
    spans = [time_forecast._makespan(time_forecast._block_seconds(setup, work, rates), 2) for work in (*works, ranking)]
    evaluations = 1 + sum(is_evaluated(setup.experiment, number + 1) for number in range(setup.experiment.rounds))
    one = 1e-9 * time_forecast._evaluation_flops(prepared, calls_of(prepared, state)) / 2
    assert rough == pytest.approx(sum(spans) + evaluations * one)
    timed = {setup.costs(call.context.plans[job.plan]).params for call in pool.calls for job in _jobs(call)}
    trained = {setup.costs(works[0].context.plans[job.plan]).params for job in works[0].jobs if job.plan is not None}
    assert {min(trained), max(trained)} == timed  # a rate of one size is not that of another
    assert len(trained) > 2


def _jobs(call: Call) -> Sequence[Any]:
    return call.arguments[0] if call.method == "block" else ()


def test_a_rough_forecast_times_every_way_of_training_once(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    other = prepare(tiny_experiment(pool={"backend": "in_process", "stack_clients": 1}, strategy={"prefix": "one"}))
    pools = [Clockwork(prepared, 1e-9, 0.0) for _ in range(3)]
    one, both, unlike = (
        pool.rough(runs, monkeypatch) for pool, runs in zip(pools, ([prepared], [prepared] * 2, [prepared, other]), strict=True)
    )
    assert both == pytest.approx(2 * one)
    assert pools[1].runs == pools[0].runs
    assert pools[2].runs == 2 * pools[0].runs
    assert unlike > one


def test_sums_wait_for_the_blocks_before_them() -> None:
    assert waiting_sums([1.0, 1.0, 1.0, 1.0], 1) == 1  # done in their order
    assert waiting_sums([1.0, 2.0, 4.0, 8.0], 1) == 4  # the costliest first: all wait for the first block
    assert waiting_sums([], 2) == 0


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({"rounds": 1}, 1 + 2 + 3),  # the start, which is round 0; sum and coverage; what the damped rule makes
        ({"rounds": 2, "evaluation": {"every": 5}}, 2 + 2 + 3),  # and round 1
        ({"rounds": 3, "evaluation": {"every": 2}}, 3 + 2 + 3),  # round 2 is evaluated while round 3 trains
        ({"rounds": 3, "evaluation": {"every": 2}, "server": {"optimizer": "momentum"}}, 3 + 2 * 1 + 2 + 1 + 4.25),
    ],
)
def test_the_drivers_copies_are_counted(changes: dict[str, Any], copies: float) -> None:
    setup = prepare(tiny_experiment(**changes, strategy={"aggregation": "damped"})).setup
    training, averaging = driver_copies(setup)
    assert averaging == pytest.approx(copies)
    assert training < averaging - 3


@pytest.mark.parametrize(("rule", "best", "arrays"), [("fedex", False, 3), ("flora", True, 5), ("hlora", True, 0)])
def test_what_a_rule_adds_to_frozen_parameters_is_counted(rule: str, best: bool, arrays: int) -> None:
    experiment = tiny_experiment(
        strategy={"name": "full", "adapters": rule},
        model={"adapters": {"rank": 2}, "pretrain": {"epochs": 0}},
        fleet={"budgets": {name: {"params": 1.0} for name in tiny_experiment().fleet.budgets}},
        task={"validation": 100},
        evaluation={"keep_best": best},
    )
    setup = prepare(experiment).setup
    assert changed_bytes(setup) == arrays * frozen_bytes(setup)


def test_more_workers_or_what_is_held_now_take_more(prepared: Prepared) -> None:
    none, two = memory_forecast(prepared, 1000, []), memory_forecast(prepared, 1000, [500, 700])
    assert (none.workers, none.worker_bytes, two.workers) == (0, 0, 2)
    assert memory_forecast(prepared, 2000, [500, 800]) == replace(
        two, driver_bytes=two.driver_bytes + 1000, worker_bytes=two.worker_bytes + 100
    )
    assert two.worker_bytes > 700 + two.shared_bytes + 2 * flat_bytes(prepared.setup)
    assert two.together_bytes == two.driver_bytes + 2 * (two.worker_bytes - two.shared_bytes)
    assert MemoryForecast(1, 9, 2, 3).at_least(MemoryForecast(5, 4, 2, 1)) == MemoryForecast(5, 9, 2, 3)


def test_who_trains_on_images_counts_the_pieces_that_it_keeps(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    none, one, flat = memory_forecast(prepared, 1000, []), memory_forecast(prepared, 1000, [500]), flat_bytes(prepared.setup)
    used = memory_forecast_module.heap_bytes(prepared, memory_forecast_module._rounds(prepared.setup))
    kept = max(int(SPREAD_KEPT[doing] * used[doing]) + 2 * flat for doing in ("train", "evaluate"))
    assert one.worker_bytes == 500 + kept + one.shared_bytes
    monkeypatch.setattr(memory_forecast_module, "SPREAD_KEPT", {})
    assert memory_forecast(prepared, 1000, [500]).worker_bytes < one.worker_bytes  # control
    assert memory_forecast(prepared, 1000, []).driver_bytes < none.driver_bytes


def test_a_forecast_is_told_and_changes_no_bit(tmp_path: Any) -> None:
    shown = io.StringIO()
    told = simulate(tiny_experiment(baselines=["full"]), tmp_path / "told", Console(file=shown, width=200))
    quiet = simulate(tiny_experiment(baselines=["full"]), tmp_path / "quiet")
    lines = shown.getvalue().splitlines()
    (memory,) = [line for line in lines if line.startswith("expected peak of memory: driver ")]
    times = [line for line in lines if line.startswith("expected time of 2 rounds with their evaluations: ")]
    held = [line for line in lines if line.startswith("expected -> measured: driver ")]
    assert (len(times), len(held)) == (2, 2)
    assert lines.index(memory) < lines.index(times[0])
    (rough,) = [line for line in lines if line.startswith("expected time of all rounds, those of 1 baseline too: roughly ")]
    assert lines.index(rough) == lines.index(memory) + 2
    assert not any("round 0" in line for line in lines[: lines.index(times[0])])
    assert (quiet["forecast"], quiet["baselines"]["full"]["forecast"]) == (None, None)  # control: nobody reads, nothing is timed
    assert told["forecast"]["seconds"] > 0
    assert told["forecast"]["measured"]["driver_bytes"] >= told["forecast"]["driver_bytes"] / 10
    assert told["params_sha256"] == quiet["params_sha256"]
    assert told["baselines"]["full"]["params_sha256"] == quiet["baselines"]["full"]["params_sha256"]


def test_what_was_not_forecast_is_left_out() -> None:
    measured = {"driver_bytes": 2e9, "worker_bytes": None, "seconds": 240.0}
    content = {"driver_bytes": 1.5e9, "worker_bytes": None, "workers": 0, "seconds": 150.0, "measured": measured}
    assert held_line(content) == "expected -> measured: driver 1.5 GB -> 2.0 GB, rounds 2.5 minutes -> 4.0 minutes"
    assert held_line({**content, "seconds": None}) == "expected -> measured: driver 1.5 GB -> 2.0 GB"


class _Words(nn.Module):
    """Says something of as many words at every position."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.says = nn.Linear(8, words)

    def forward(self, states: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.says(states))


def test_how_often_a_step_holds_the_outputs_of_a_language_model_is_counted() -> None:
    """In all, with the one copy that costs count of what is answered, and with another of what a prefix learns from."""
    batch = {"states": torch.randn(8, 32, 8), "labels": torch.randint(0, 4096, (8, 32))}
    objective, own, prefix, outputs = OBJECTIVES["causal_language_modelling"], _Words(4096), _Words(4096), 8 * 32 * 4096 * 4
    with LiveBytes() as alone:
        _, said = backward(own, batch, objective)
    assert alone.peak / outputs == pytest.approx(1 + LOSS_COPIES, rel=0.1)
    with LiveBytes() as taught:
        backward(prefix, batch, objective, distillation=Distillation(said, 0.5))
    assert 1 + taught.peak / outputs == pytest.approx(2 + DISTILLATION_COPIES, rel=0.1)
    assert 1 + taught.peak / outputs > 1.5 * (1 + LOSS_COPIES)  # control: without it, half would be told
