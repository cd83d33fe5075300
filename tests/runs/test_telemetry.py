"""A run's rounds as metrics of Ray, read where Prometheus reads them."""

import re
import time
from typing import Any
from urllib.request import urlopen

import pytest
import ray
from conftest import tiny_experiment

from raffm_ray.basics.errors import UserError
from raffm_ray.pool.worker import Worker
from raffm_ray.runs import simulation
from raffm_ray.runs.loggers.telemetry import EXPORTED, LOST_WORKERS
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.runs.simulation import simulate


def samples(text: str, run: str) -> dict[str, dict[str, float]]:
    """Metric -> its own label's value ("" where it has none) -> value, of one run."""
    found: dict[str, dict[str, float]] = {}
    for name, labels, value in re.findall(r"^ray_(raffm_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        own = EXPORTED[name.removesuffix("_total")].label if name.removesuffix("_total") in EXPORTED else ""
        if named["run"] == run:
            found.setdefault(name.removesuffix("_total"), {})[named.get(own, "")] = float(value)
    return found


def test_rounds_are_found_where_prometheus_reads_them(four_cores, tmp_path) -> None:
    rows: list[RoundRow] = []
    experiment = tiny_experiment(name="exported", pool={"backend": "ray", "workers": 1, "metrics": True})
    summary = simulate(experiment, tmp_path / "run", on_round=rows.append)
    port, end = ray.nodes()[0]["MetricsExportPort"], time.monotonic() + 60
    found: dict[str, Any] = {}
    while time.monotonic() < end and found.get("raffm_rounds") != {"": 2}:
        time.sleep(0.2)
        found = samples(urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode(), "exported")
    assert found["raffm_rounds"] == {"": 2}
    assert set(found) == set(EXPORTED) - {"raffm_refused_updates"}  # none was
    assert found["raffm_clients"] == {"arrived": sum(row.arrived for row in rows)}
    assert found["raffm_bytes"] == {"down": sum(row.bytes_down for row in rows), "up": sum(row.bytes_up for row in rows)}
    assert found["raffm_metric"]["full model"] == pytest.approx(summary["full_model"])
    assert set(found["raffm_metric"]) == {"full model", *summary["device_types"]}
    assert found["raffm_round_seconds"][""] == pytest.approx(sum(found["raffm_phase_seconds"].values()))
    assert LOST_WORKERS not in found


def test_rounds_are_exported_where_a_run_joins_a_cluster(monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("raffm_ray.runs.loggers.telemetry.exporting", lambda experiment, pool: asked.append(experiment.name))
    cases = {"alone": (None, ""), "joined": (None, "192.0.2.1:6379"), "never": (False, "192.0.2.1:6379"), "always": (True, "")}
    for name, (metrics, address) in cases.items():
        monkeypatch.setenv("RAY_ADDRESS", address)
        experiment = tiny_experiment(name=name, pool={"backend": "ray", "metrics": metrics})
        simulation._exporting(experiment, None)
    assert asked == ["joined", "always"]
    with pytest.raises(UserError, match=r"pool: metrics: are Ray's, and backend is in_process"):
        tiny_experiment(pool={"metrics": True})


def test_workers_have_readable_names() -> None:
    def named(share: float) -> str:
        worker = Worker.__new__(Worker)
        worker.share, worker.number = share, 3
        return repr(worker)

    assert [named(share) for share in (0.0, 0.25, 1 / 3, 2)] == [
        "raffm worker 3 (1 core)",
        "raffm worker 3 (0.25 GPU)",
        "raffm worker 3 (0.333 GPU)",
        "raffm worker 3 (2 GPU)",
    ]
