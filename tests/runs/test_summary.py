"""The summary's means are of clients' training rounds: the calibration before round 1 is recorded, and is none of them."""

import json

import pyarrow.parquet as pq
import pytest
from conftest import tiny_experiment

from raffm_ray.runs.simulation import simulate


def test_means_of_a_device_type_leave_out_the_calibration_before_round_1(out) -> None:
    simulate(tiny_experiment(rounds=2, evaluation={"sizes": 0}, salience={"metric": "fisher", "every": 9}), out)
    device_types = json.loads((out / "summary.json").read_text())["device_types"]
    rows = [row for file in sorted((out / "clients").iterdir()) for row in pq.read_table(file).to_pylist()]
    assert any(row["round"] == 0 for row in rows)
    differs = False
    for device, device_type in device_types.items():
        trained = [row for row in rows if row["device"] == device and row["round"] > 0]
        everything = [row for row in rows if row["device"] == device]
        assert device_type["client_rounds"] == len(trained)
        if trained:
            for key, column in (("bytes_up", "bytes_up"), ("energy_joules", "energy_joules"), ("flops", "training_flops")):
                mean = sum(row[column] for row in trained) / len(trained)
                assert device_type[key] == pytest.approx(mean, rel=1e-12)
                differs |= abs(sum(row[column] for row in everything) / len(everything) - mean) > 1e-9 * mean
    assert differs  # control: with the calibration they would be others
