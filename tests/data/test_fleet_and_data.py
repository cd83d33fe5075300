"""Devices, batches: everything dealt once, the same way for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raffm_ray.basics.seeding import generator, torch_seed
from raffm_ray.data.examples import batches, steps_of
from raffm_ray.data.tasks import load_task
from raffm_ray.devices.profiles import DEVICES, MIXES, assign_devices, fleet_shares
from raffm_ray.settings.task_and_model import TaskSettings


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_mixes_are_whole_fleets(mix) -> None:
    assert sum(MIXES[mix].values()) == pytest.approx(1)
    shares = fleet_shares(mix, {})
    assert sum(shares.values()) == pytest.approx(1)
    names = assign_devices(shares, 100, generator(0, "devices"))
    assert {name: names.count(name) / 100 for name in shares} == pytest.approx(shares)


def test_a_widened_mix_keeps_its_proportions() -> None:
    shares = fleet_shares("medium", {"raspberry_pi_4": 0.1, "v100": 0.1})
    assert shares == pytest.approx(
        {"raspberry_pi_4": 0.1, "raspberry_pi_5": 0.24, "laptop": 0.32, "jetson_agx_orin": 0.24, "v100": 0.1}
    )


@given(st.integers(1, 300), st.floats(0, 1))
def test_every_client_has_a_device(clients, share) -> None:
    names = assign_devices(fleet_shares("xsmall", {"v100": share}), clients, generator(1, "devices"))
    assert len(names) == clients
    assert abs(names.count("v100") - share * clients) <= 1


def test_devices_are_ordered_and_sourced() -> None:
    devices = list(DEVICES.values())
    assert [device.flops_per_second for device in devices] == sorted(device.flops_per_second for device in devices)
    for device in devices:
        assert device.source


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 3))
def test_an_epoch_sees_every_example_once(count, batch_size, epochs) -> None:
    share = np.arange(100, 100 + count)
    steps = steps_of(count, batch_size, epochs, None)
    seen = list(batches(share, batch_size, steps, generator(0, "batches")))
    assert len(seen) == steps
    assert all(1 <= len(batch) <= batch_size for batch in seen)
    assert (np.sort(np.concatenate(seen)) == np.sort(np.tile(share, epochs))).all()
    assert steps_of(count, batch_size, epochs, 5) == 5


def test_digits_are_split_once_and_apart() -> None:
    task = load_task(TaskSettings(), generator(0, "split"))
    assert (len(task.public), len(task.clients), len(task.held_out)) == (200, 1148, 449)
    rows = [part.inputs["pixel_values"].reshape(len(part), -1) for part in (task.public, task.clients, task.held_out)]
    assert len(np.concatenate(rows)) == 1797
    assert rows[0].min() == -1
    assert rows[0].max() == 1


def test_generators_are_named_and_independent() -> None:
    assert generator(0, "a", 1).random() == generator(0, "a", 1).random()
    draws = {generator(*where).random() for where in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a", 1, 0)]}
    assert len(draws) == 5
    assert 0 <= torch_seed(0, "a", 1) < 2**63
