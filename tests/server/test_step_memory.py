"""How many arrays the server's step takes: what is counted on short arrays is what a process grows by on long ones."""

import pytest
import torch

from raffm_ray.benchmarks.measurement import peak_growth
from raffm_ray.server.aggregation import AGGREGATION_RULES
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS
from raffm_ray.server.step_memory import LiveBytes, step_copies
from raffm_ray.settings.experiment import ServerSettings

ENTRIES = 4_000_000


@pytest.mark.parametrize("rule", AGGREGATION_RULES)
@pytest.mark.parametrize("optimizer", SERVER_OPTIMIZERS)
def test_the_count_is_what_the_process_grows_by(rule: str, optimizer: str) -> None:
    settings = ServerSettings(optimizer=optimizer)
    old, summed, covered = torch.randn(ENTRIES), torch.randn(ENTRIES), torch.ones(ENTRIES)
    step, averages = SERVER_OPTIMIZERS[optimizer], AGGREGATION_RULES[rule]
    moments = step(old, summed, covered, {}, settings)[1]
    kept = []
    grown, how = peak_growth(lambda: kept.append(step(old, averages(old, summed, covered, 3.0), covered, moments, settings)))
    counted, remembered = step_copies(rule, settings)
    assert remembered == len(moments)
    if "reset" in how:
        assert grown / old.nbytes == pytest.approx(counted, rel=0.1)


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
