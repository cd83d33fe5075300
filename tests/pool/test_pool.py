"""Actors with several calls in flight: results in call order, and what is counted when an actor dies."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from conftest import tiny_experiment

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError, WorkerLostError
from raffm_ray.basics.profiling import Profile
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.messages import Call, RoundContext
from raffm_ray.pool import ray_pool, ray_start
from raffm_ray.pool.call_scheduler import CallScheduler, WorkerSlot, _InFlightCall
from raffm_ray.pool.call_timeout import CallTimeout
from raffm_ray.pool.dispatch import DEPTH
from raffm_ray.pool.gpu_sharing import ExclusiveGpuQueue
from raffm_ray.pool.ray_pool import RayPool
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.prepare import prepare
from raffm_ray.settings.execution import PoolSettings
from raffm_ray.settings.experiment import LocalSettings

# Workers cannot import this module: what it defines travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

CALLS = 30
FLAT = np.arange(4, dtype=np.float32)
FIRST, SECOND = (
    RoundContext(seed=0, round=number, plans=(Plan(),), local=LocalSettings(), learning_rate=0.1) for number in (1, 2)
)


class _Notes(ClientRunner):
    """Notes every call in a folder, and dies at it where told to: the first so many times."""

    def note(self, context: RoundContext, flat: Any, number: int, folder: Path, deaths: int) -> Any:
        tries = len(list(folder.glob(f"{number}-*")))
        (folder / f"{number}-{tries}").touch()
        if tries < deaths:
            os._exit(1)
        return number, flat * number + context.round


@pytest.fixture(scope="module")
def runner() -> _Notes:
    plain = prepare(tiny_experiment()).runner()
    return _Notes(plain.architecture, plain.examples, plain.shares, plain.held_out)


@pytest.fixture(scope="module")
def one(four_cores, runner) -> Iterator[RayPool]:
    pool = RayPool(runner, PoolSettings(workers=1))
    yield pool
    pool.close()


def calls(folder: Path, deaths: Sequence[int] = ()) -> list[Call]:
    """Of two packages, by turns. `deaths`: of the first calls, how often each kills its actor."""
    asked = [*deaths, *[0] * (CALLS - len(deaths))]
    return [Call("note", SECOND if number % 2 else FIRST, (number, folder, times)) for number, times in enumerate(asked)]


def results(pool: Any, asked: Sequence[Call], costs: Sequence[float] = (1.0,) * CALLS) -> list[tuple[int, list[float]]]:
    costly = [call._replace(cost=cost) for call, cost in zip(asked, costs, strict=True)]
    return [(small, large.tolist()) for small, large in pool.run(FLAT, costly, lambda *_: None)]


EXPECTED = [(number, (FLAT * number + 1 + number % 2).tolist()) for number in range(CALLS)]


def test_waiting_for_workers_is_told_once(four_cores, runner, monkeypatch) -> None:
    monkeypatch.setattr(ray_pool, "LOOK_SECONDS", 0.01)
    for seconds, wanted in ((-1.0, ["pool: waiting for 1 of 1 worker to start, at most 180 s"]), (1e9, [])):
        monkeypatch.setattr(ray_pool, "TOLD_SECONDS", seconds)
        told: list[str] = []
        RayPool(runner, PoolSettings(workers=1), told.append).close()
        assert told == wanted


def test_results_come_in_call_order_whatever_the_costs(four_cores, runner, tmp_path) -> None:
    assert results(InProcessPool(runner), calls(tmp_path)) == EXPECTED
    pool = RayPool(runner, PoolSettings(workers=2))
    assert results(pool, calls(tmp_path)) == EXPECTED
    assert results(pool, calls(tmp_path), [float(number * 7 % CALLS) for number in range(CALLS)]) == EXPECTED
    ended: list[int] = []
    dearer = [call._replace(cost=float(number)) for number, call in enumerate(calls(tmp_path))]
    list(pool.run(FLAT, dearer, lambda index, _: ended.append(index)))
    assert sorted(ended) == list(range(CALLS))
    assert min(ended[:4]) > CALLS - 12  # the costliest first
    pool.close()


def test_a_run_after_an_abandoned_one(one, tmp_path) -> None:
    abandoned = one.run(FLAT, calls(tmp_path), lambda *_: None)
    assert next(abandoned)[0] == 0
    abandoned.close()
    assert results(one, calls(tmp_path)) == EXPECTED


def test_deaths_with_calls_in_flight_count_once_and_for_the_call_that_was_run(one, tmp_path, monkeypatch) -> None:
    """The second deadly call is in flight behind the first: it is tried anew as if it had not been sent."""
    assert DEPTH > 1
    monkeypatch.setattr(one, "attempts", 2)
    told: list[int] = []
    found = one.run(FLAT, calls(tmp_path, (1, 1)), lambda index, _: told.append(index))
    assert [(small, large.tolist()) for small, large in found] == EXPECTED
    assert sorted(told) == list(range(CALLS))
    assert len(list(tmp_path.glob("1-*"))) == 2
    assert len(list(tmp_path.glob("2-*"))) == 1


def test_a_result_that_comes_twice_is_told_once(monkeypatch) -> None:
    """As it does where its large part was lost after its small one had arrived. Without Ray."""
    monkeypatch.setattr(ray, "get", lambda promise: (promise, {}))
    told: list[tuple[int, str]] = []
    scheduler = object.__new__(CallScheduler)
    scheduler.calls, scheduler.done, scheduler.reported = calls(Path())[:2], {}, set()
    scheduler.gpu_queue = ExclusiveGpuQueue()
    scheduler.progress = lambda index, small: told.append((index, small))
    scheduler.pool = SimpleNamespace(profile=Profile(), workers=1, call_timeout=CallTimeout(PoolSettings().patience_seconds))
    slot = WorkerSlot(actor=None, starting=None, place="here")
    for index, small in ((0, "first"), (1, "other"), (0, "again")):
        slot.in_flight.append(_InFlightCall(index, small, f"{small}'s"))
        scheduler.finish_call(slot)
    assert told == [(0, "first"), (1, "other")]
    assert scheduler.done[0] == ("again", "again's")  # what is there still is what counts


def test_the_call_that_kills_too_often_is_named_though_others_were_in_flight(one, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(one, "attempts", 2)
    with pytest.raises(WorkerLostError, match=r"round 1, note \(2, .*: the worker was lost 2 times"):
        results(one, calls(tmp_path, (0, 0, 5)))


def test_a_call_without_its_run_s_parameters_is_tried_on_another_actor(one, tmp_path, monkeypatch) -> None:
    """Never with those of the run before."""
    assert results(one, calls(tmp_path)) == EXPECTED
    sent = []
    begin = CallScheduler.begin

    def forgets_once(scheduler: CallScheduler, slot: Any) -> None:
        sent.append(slot)
        if len(sent) > 1:
            begin(scheduler, slot)

    monkeypatch.setattr(CallScheduler, "begin", forgets_once)
    doubled = one.run(2 * FLAT, calls(tmp_path)[:2], lambda *_: None)
    assert [large.tolist() for _, large in doubled] == [[1.0] * 4, [2.0, 4.0, 6.0, 8.0]]
    assert len(sent) == 2


def test_ray_that_cannot_start_is_one_line(monkeypatch) -> None:
    def late(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", late)
    with pytest.raises(UserError, match="^Ray cannot be started here: The current node timed out during startup.*in_process"):
        ray_start._start(PoolSettings())


def test_ray_that_was_started_ahead_outlives_its_start() -> None:
    told = """
import ray
from raffm_ray.pool.ray_start import connect, start_ahead
from raffm_ray.settings.execution import PoolSettings
start_ahead(PoolSettings(workers=1))
start_ahead(PoolSettings(workers=1))
connect(PoolSettings(workers=1))
connect(PoolSettings(workers=1))
print(ray.get(ray.remote(lambda: 7).remote(), timeout=60), "raffm_ray.clients.client_runner" in __import__("sys").modules)
"""
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["7", "False"], done.stderr


def test_a_start_ahead_that_fails_is_told_to_whoever_waits_for_it(monkeypatch) -> None:
    started = []

    def fails(settings: PoolSettings) -> None:
        started.append(settings)
        raise UserError("no Ray today")

    monkeypatch.setattr("raffm_ray.pool.ray_start._start", fails)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    ray_start.start_ahead(PoolSettings(backend="in_process"))
    assert not started
    ray_start.start_ahead(PoolSettings())
    with pytest.raises(UserError, match="no Ray today"):
        ray_start.connect(PoolSettings())
    assert len(started) == 1


def test_frozen_parameters_are_read_where_they_were_put_and_put_once(one) -> None:
    frozen = np.arange(1000, dtype=np.float32)
    there = one.placed(frozen)
    assert np.array_equal(there, frozen)
    assert not np.shares_memory(there, frozen)
    assert not there.flags.writeable
    promise = one._in_store(there, True)
    assert one.placed(there).ctypes.data == there.ctypes.data
    assert one._in_store(there, True) is promise
    assert one._in_store(frozen, True) is not promise  # control: other memory is put anew
    assert InProcessPool(one._runner).placed(frozen) is frozen
