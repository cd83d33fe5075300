"""A call that never ends: found by what its cost predicts, run again elsewhere, counted once."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from conftest import tiny_experiment

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import WorkerLostError
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.messages import Call, RoundContext
from raffm_ray.pool.call_timeout import SLACK, SLOWEST, CallTimeout
from raffm_ray.pool.ray_pool import RayPool
from raffm_ray.preparation.prepare import prepare
from raffm_ray.settings.execution import PoolSettings
from raffm_ray.settings.experiment import LocalSettings

# Workers cannot import this module: what it defines travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

FLAT = np.arange(4, dtype=np.float32)
PACKAGE = RoundContext(seed=0, round=1, plans=(Plan(),), local=LocalSettings(), learning_rate=0.1)


class _Hangs(ClientRunner):
    """Hangs at a call as it is told to, the first so many times."""

    def note(self, context: RoundContext, flat: Any, number: int, folder: Path, how: str, times: int) -> Any:
        tries = len(list(folder.glob(f"{number}-*")))
        (folder / f"{number}-{tries}").touch()
        if tries < times and how == "asleep":
            time.sleep(1e6)
        if tries < times and how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        return number, flat * number


@pytest.fixture(scope="module")
def runner() -> _Hangs:
    plain = prepare(tiny_experiment()).runner()
    return _Hangs(plain.architecture, plain.examples, plain.shares, plain.held_out)


@pytest.mark.parametrize("how", ["asleep", "stopped"])
def test_a_hung_call_runs_again_and_counts_once(four_cores, runner, tmp_path, how) -> None:
    pool = RayPool(runner, PoolSettings(workers=2, patience_seconds=1.0))
    try:
        asked: list[Call] = [Call("note", PACKAGE, (number, tmp_path, how, int(number == 3))) for number in range(12)]
        told: list[int] = []
        found = [(small, large.tolist()) for small, large in pool.run(FLAT, asked, lambda index, _: told.append(index))]
        assert found == [(number, (FLAT * number).tolist()) for number in range(12)]
        assert sorted(told) == list(range(12))
        assert {path.name for path in tmp_path.glob("3-*")} == {"3-0", "3-1"}
    finally:
        pool.close()


def test_one_that_always_hangs_is_named(four_cores, runner, tmp_path) -> None:
    pool = RayPool(runner, PoolSettings(workers=1, patience_seconds=1.0, attempts=1))
    try:
        asked: list[Call] = [Call("note", PACKAGE, (number, tmp_path, "asleep", int(number == 3))) for number in range(5)]
        expected = (
            r"round 1, note \(3, .*: the worker was lost 1 times, the last time by HungError: not done after 1(\.\d+)? s, and its"
        )
        with pytest.raises(WorkerLostError, match=expected):
            list(pool.run(FLAT, asked, lambda *_: None))
    finally:
        pool.close()


def test_limits_follow_costs_and_the_slowest_call() -> None:
    call_timeout = CallTimeout(300.0)
    assert call_timeout.limit_seconds("block", 1e10) == 300.0 + SLACK * 1e10 * SLOWEST
    call_timeout.ended("block", 1e10, 5.0)
    call_timeout.ended("block", 1e10, 2.0)
    call_timeout.ended("block", 0.0, 9.0)
    assert call_timeout.limit_seconds("block", 2e10) == pytest.approx(300.0 + SLACK * 10.0)
    assert call_timeout.limit_seconds("evaluate", 2e10) == 300.0 + SLACK * 2e10 * SLOWEST
    assert call_timeout.limit_seconds("block", 0.0) == 300.0
