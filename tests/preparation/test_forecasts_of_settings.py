"""What is told before round 1 is told of every kind of run: a forecast never ends one."""

from io import StringIO
from typing import Any

import pytest
from conftest import tiny_experiment
from rich.console import Console

from raffm_ray.runs.simulation import simulate

KINDS: dict[str, dict[str, Any]] = {
    "clients with heads of their own, tuned": {
        "strategy": {"name": "raffm", "personal": ["classifier"]},
        "clients": {"held_out": 0.3},
        "evaluation": {"clients": "all", "tune": {"steps": 2}, "sizes": 0},
    },
    "control variates": {"local": {"client_update": "scaffold", "optimizer": "sgd", "learning_rate": 0.05}},
    "choices by what was reported, fair weights": {"clients": {"selection": "oort"}, "server": {"agnostic_rate": 0.1}},
    "choices by losses, fair changes": {"clients": {"selection": "power_of_choice"}, "server": {"fair_exponent": 1.0}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_somebody_watches_says_what_it_takes(kind, out) -> None:
    console = Console(file=StringIO(), width=200)
    summary = simulate(tiny_experiment(rounds=1, **KINDS[kind]), out, console)
    told = console.file.getvalue()
    assert "expected time of 1 round" in told
    assert summary["forecast"]["seconds"] > 0
    assert summary["rounds"] == 1
