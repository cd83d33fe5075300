"""How many arrays the server's step takes: what is counted on short arrays is what a process grows by on long ones."""

import gc
from typing import Any

import pytest
import torch

from raffm_ray.benchmarks.measurement import peak_growth
from raffm_ray.benchmarks.warm_processes import in_fresh_process
from raffm_ray.server.aggregation import AGGREGATION_RULES
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS, share_of
from raffm_ray.server.step_memory import LiveBytes, step_copies
from raffm_ray.settings.experiment import ServerSettings

ENTRIES = 3_000_000
PAIRS = [(rule, "sgd") for rule in AGGREGATION_RULES] + [("damped", name) for name in SERVER_OPTIMIZERS if name != "sgd"]


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, str], tuple[float, int, int, float | None]]:
    """By rule and optimizer, from a fresh process, whose heap no other test has filled."""
    return in_fresh_process(_measured_all)


@pytest.mark.parametrize(("rule", "optimizer"), PAIRS)
def test_the_count_is_what_the_process_grows_by(rule: str, optimizer: str, measured) -> None:
    counted, remembered, moments, grown = measured[rule, optimizer]
    assert remembered == moments
    if grown is not None:
        assert grown == pytest.approx(counted, rel=0.1)


def _measured_all() -> dict[tuple[str, str], tuple[float, int, int, float | None]]:
    gc.freeze()  # libraries: every measurement collects garbage first
    return {pair: _measured(*pair) for pair in PAIRS}


def _measured(rule: str, optimizer: str) -> tuple[float, int, int, float | None]:
    """What is counted, in arrays, and remembered; how many moments there are, and what the process grows by, None where it cannot be told."""
    settings = ServerSettings(optimizer=optimizer)
    old, summed, covered = torch.randn(ENTRIES), torch.randn(ENTRIES), torch.ones(ENTRIES)
    row, averages = SERVER_OPTIMIZERS[optimizer], AGGREGATION_RULES[rule]

    def step() -> Any:
        averaged = averages(old, summed, covered, 3.0)
        return row.step(old, averaged, share_of(covered, covered.clone()) if row.shares else covered, moments, settings)

    moments = row.step(old, summed, covered, {}, settings)[1]
    kept = []
    # What a process takes once, at its first step, is not the step's: the smaller of two.
    grown, how = min(peak_growth(lambda: kept.append(step())) for _ in range(2))
    counted, remembered = step_copies(rule, settings)
    return counted, remembered, len(moments), grown / old.nbytes if "reset" in how else None


def test_control_one_more_array_is_counted() -> None:
    values = torch.zeros(1000)
    with LiveBytes() as one:
        _ = values + 1
    with LiveBytes() as two:
        _ = (values + 1) * (values + 2)
    with LiveBytes() as none:
        values.add_(1)
    assert (one.peak, two.peak, none.peak) == (4000, 12000, 0)
    assert two.now <= 4000
