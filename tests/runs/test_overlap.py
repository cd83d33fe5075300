"""An evaluation beside the next round's training leaves what one before it would have left, to the bit."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import tiny_experiment

from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs.reader import read_rounds
from raffm_ray.runs.simulation import simulate

REAL = {"seconds", "wall_seconds", "phase_seconds", "round_wall_seconds", "driver_peak_rss_bytes", "forecast", "made_from"}
"""What is real time or memory, or the digest of settings."""
NEVER = {"patience": 10**6}
"""A run that may stop after any evaluation cannot train before it; this one never does."""


class _Seen(InProcessPool):
    """Notes what every run of the pool was asked for."""

    def run(self, flat: Any, calls: Any, *rest: Any) -> Any:
        self.__dict__.setdefault("methods", []).append({method for method, *_ in calls})
        return super().run(flat, calls, *rest)


def left(folder: Path, **changes: Any) -> tuple[dict[str, str], dict[str, Any], list[set[str]]]:
    """(records as text, since no number equals itself where it is none; summary; methods of every run of the pool)."""
    changes = {"rounds": 3, "task": {"validation": 100}, **changes, "evaluation": {"sizes": 0, **changes["evaluation"]}}
    experiment = tiny_experiment(**changes)
    pool = _Seen(prepare(experiment).runner())
    summary = simulate(experiment, folder, pool=pool)
    records = {
        f"{kind} {path.name}": repr(pq.read_table(path).drop_columns(list(REAL & set(pq.read_schema(path).names))).to_pylist())
        for kind in ("rounds", "clients")
        for path in sorted((folder / kind).iterdir())
    }
    return records, {key: value for key, value in summary.items() if key not in REAL}, pool.__dict__["methods"]


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {"every": 1, "keep_best": True}, "local": {"learning_rate": 0.3}},
        {"evaluation": {"every": 2}, "salience": {"every": 2}},
        {"evaluation": {"every": 1}, "clock": {"over_selection": 1.7, "late": "accept"}, "salience": {"source": "public"}},
        {"evaluation": {"every": 1}, "strategy": {"name": "exclusive"}, "clients": {"count": 12, "per_round": 1}},
    ],
    ids=["the best is kept", "some rounds only", "late updates", "rounds in which nobody trains"],
)
def test_an_evaluation_beside_training_leaves_the_same(tmp_path, changes) -> None:
    beside = left(tmp_path / "beside", **changes)
    before = left(tmp_path / "before", **{**changes, "evaluation": {**changes["evaluation"], **NEVER}})
    assert beside[0] == before[0]
    assert beside[1] == before[1]
    assert {"block", "evaluate"} in beside[2]
    assert {"block", "evaluate"} not in before[2]


def test_control_what_is_compared_differs_between_runs(tmp_path) -> None:
    changes = {"evaluation": {"every": 1}}
    one, other = left(tmp_path / "one", **changes), left(tmp_path / "other", **changes, seed=1)
    assert set(one[0]) == set(other[0])
    assert all(one[0][name] != other[0][name] for name in one[0])
    assert one[1] != other[1]


def test_rounds_are_recorded_in_order_and_the_last_one_too(tmp_path) -> None:
    simulate(tiny_experiment(rounds=3, evaluation={"every": 2, "sizes": 0}), tmp_path / "run")
    assert [(row["round"], row["metric"] is not None) for row in read_rounds(tmp_path / "run")] == [
        (0, True),
        (1, False),
        (2, True),
        (3, True),
    ]
