"""Updates that are not finite, too large or no updates at all: refused with the reason, counted, told; or the run stops, and can go on."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import tiny_experiment
from quick import Quick, quick
from rich.console import Console

from raffm_ray.basics.errors import BadUpdateError, ClientError
from raffm_ray.clients.local_training import one_thread
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.clients.update_checks import refusal
from raffm_ray.data.examples import step_sizes
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.reports.run_story import summary_table
from raffm_ray.runs.loop import Environment
from raffm_ray.runs.simulation import completed, resume, simulate
from raffm_ray.server.ranking import rank_again
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import new_state
from raffm_ray.server.workload import block_costs

PLAIN: dict[str, Any] = {
    "strategy": {"name": "full"},
    "salience": {"metric": "l1"},
    "evaluation": {"sizes": 0},
    "local": {"optimizer": "sgd", "learning_rate": 0.1, "steps": 1, "clip": None},
}
RUINED = {**PLAIN, "local": {**PLAIN["local"], "learning_rate": 1e30, "steps": 3}}


def records(folder: Path, part: str) -> list[dict[str, Any]]:
    return [row for file in sorted((folder / part).iterdir()) for row in pq.read_table(file).to_pylist()]


def test_the_bound_is_of_the_l2_norm() -> None:
    change = torch.tensor([3.0, -4.0])
    assert refusal(change, 1.0, 5.0) == refusal(change, 100.0, 5.0) == refusal(change, 1.0, None) == ""
    assert refusal(change, 1.0, 4.999) == "norm 5 > 4.999"
    large = torch.full((4,), 1e25)  # its squares are beyond float32
    assert refusal(large, 1.0, 1e26) == ""
    assert refusal(large, 1.0, 1e25) == "norm 2e+25 > 1e+25"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(number) -> None:
    assert refusal(torch.tensor([1.0, number]), 1.0, None) == "change not finite"
    assert refusal(torch.tensor([1.0, 1e38]), 1.0, None) == ""
    assert refusal(torch.tensor([1.0, 1e38]), 50.0, None) == "change not finite"  # its part of the sum would not be


def norms_of(experiment: Any) -> dict[int, float]:
    """By client, the norm of its change in round 1, found in its block's sum."""
    prepared = prepare(experiment)
    start = starting_parameters(prepared, lambda *_: None, lambda *_: None)
    state = rank_again(prepared.setup, new_state(start), None)
    work = begin_round(prepared.setup, state)
    runner, found = prepared.runner(), {}
    for job in work.jobs:
        summed = runner.block(work.context, start.numpy(), [job])[1]
        found[job.client] = float(np.linalg.norm(summed.astype(np.float64)) / job.weight)
    return found


@pytest.mark.parametrize("stacked", [False, True])
def test_who_is_beyond_the_bound_is_refused_and_nobody_else(stacked, out) -> None:
    experiment = tiny_experiment(**PLAIN, rounds=1, pool={"stack_clients": 8 if stacked else 1, "block_clients": 5})
    norms = norms_of(experiment)
    bound = float(np.median(list(norms.values())))  # one of them: who is at the bound is within it
    changed = experiment.model_copy(update={"server": experiment.server.model_copy(update={"update_norm_bound": bound * 1.0001})})
    summary = simulate(changed, out)
    beyond = {client for client, norm in norms.items() if norm > bound * 1.0001}
    assert 0 < len(beyond) < len(norms)
    rows = [row for row in records(out, "clients") if row["round"] == 1]
    assert {row["client"] for row in rows if not row["accepted"]} == beyond
    assert all(
        row["refused"] == f"norm {norms[row['client']]:.4g} > {bound * 1.0001:g}" for row in rows if row["client"] in beyond
    )
    assert all(row["refused"] == "" for row in rows if row["client"] not in beyond)
    assert [row["refused"] for row in records(out, "rounds")] == [0, len(beyond)]
    assert summary["rejected_updates"] == len(beyond)


def test_a_bound_that_nobody_reaches_changes_no_bit(tmp_path) -> None:
    shas = [
        simulate(tiny_experiment(**PLAIN, server={"update_norm_bound": bound}), tmp_path / str(bound))["params_sha256"]
        for bound in (None, 1e6, 1e-6)
    ]
    assert shas[0] == shas[1]
    assert shas[2] != shas[0]  # control: where nobody is used, the model stays


def test_a_refused_update_counts_as_one_that_was_never_sent() -> None:
    experiment = tiny_experiment(**PLAIN)
    prepared = prepare(experiment)
    start = starting_parameters(prepared, lambda *_: None, lambda *_: None)
    work = begin_round(prepared.setup, rank_again(prepared.setup, new_state(start), None))
    norms = norms_of(experiment)
    largest = max(norms, key=lambda client: norms[client])
    bounded = replace(work.context, norm_bound=norms[largest] * 0.9999)
    runner = prepared.runner()
    update, summed = runner.block(bounded, start.numpy(), work.jobs)
    others = [job for job in work.jobs if job.client != largest]
    without, alone = runner.block(work.context, start.numpy(), others)
    assert summed.tobytes() == alone.tobytes()
    assert update.weights == without.weights
    assert runner.block(work.context, start.numpy(), work.jobs)[1].tobytes() != summed.tobytes()


def test_a_run_that_stops_names_round_and_clients_and_may_go_on_without(tmp_path) -> None:
    experiment = tiny_experiment(**RUINED, server={"bad_updates": "stop"})
    with pytest.raises(BadUpdateError, match=r"^round 1: refused: client \d+ \(change not finite\), client .*bad_updates: stop"):
        simulate(experiment, tmp_path / "run")
    assert [row["round"] for row in records(tmp_path / "run", "rounds")] == [0]
    with pytest.raises(BadUpdateError, match="^round 1: "):
        resume(tmp_path / "run")
    console = Console(record=True, file=io.StringIO(), width=500)
    summary = resume(tmp_path / "run", ["--server.bad_updates", "refuse"], console)
    assert summary["rejected_updates"] == 10
    said = console.export_text()
    assert said.count("change not finite") == 5  # the first round's, by name
    assert "note: round 1: refused: client" in said
    assert simulate(tiny_experiment(**RUINED), tmp_path / "refusing")["params_sha256"] == summary["params_sha256"]
    assert summary_table(summary).title


class Wrong(Quick):
    """Returns something else than a block's sum."""

    def block(self, context: RoundContext, flat: Any, jobs: Sequence[Job]) -> Any:
        update, total = super().block(context, flat, jobs)
        return update, self.wrong(total)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda total: total[:-1], r"its sum is float32 \(\d+,\), not float32"),
        (lambda total: total[:1], r"its sum is float32 \(1,\), not float32"),
        (lambda total: total.astype(np.float64), "its sum is float64"),
        (lambda total: total.tolist(), "its sum is <class 'list'>"),
    ],
)
def test_a_sum_of_another_shape_or_type_names_round_and_clients(wrong, told, out) -> None:
    prepared, start, pool = quick(**PLAIN)
    pool.runner.__class__ = Wrong
    pool.runner.wrong = wrong  # type: ignore[attr-defined]
    with one_thread(), pytest.raises(ClientError, match=rf"round 1, block of clients [0-9, ]+: {told}"):
        completed(prepared, start, out, Environment(pool, Console(quiet=True)))


def test_a_sum_beyond_float32_is_an_error_and_no_model(out) -> None:
    prepared, start, pool = quick(**PLAIN, pool={"block_clients": 1})
    pool.runner.__class__ = Wrong
    pool.runner.wrong = lambda total: np.where(np.arange(len(total)) == 7, np.float32(3e38), total)  # type: ignore[attr-defined]
    assert isinstance(pool, InProcessPool)
    with one_thread(), pytest.raises(BadUpdateError, match="round 1: the sum of its updates is beyond the range of float32"):
        completed(prepared, start, out, Environment(pool, Console(quiet=True)))
    assert all(row["round"] == 0 for row in records(out, "rounds"))


def test_statistics_that_are_not_finite_are_refused_and_the_update_is_averaged(monkeypatch) -> None:
    """Two fields: a client whose calibration went wrong is not one whose update was refused."""
    prepared = prepare(tiny_experiment(salience={"every": 1, "metric": "fisher"}))
    flat = starting_parameters(prepared, lambda *_: None, lambda _: None)
    state = rank_again(replace(prepared.setup, strategy=replace(prepared.setup.strategy, salience=False)), new_state(flat), None)
    work = begin_round(prepared.setup, state)
    assert any(job.calibrate for job in work.jobs)
    runner = prepared.runner()
    good, _ = runner.block(work.context, state.parameters.numpy(), work.jobs)
    monkeypatch.setattr(type(runner), "_calibrate", lambda *_: {"examples": torch.tensor([np.nan])})
    bad, _ = runner.block(work.context, state.parameters.numpy(), work.jobs)
    for job, report in zip(
        sorted(work.jobs, key=lambda job: job.client), sorted(bad.reports, key=lambda one: one.client), strict=True
    ):
        assert report.refused == ""
        assert report.statistics_refused == ("statistics not finite" if job.calibrate else "")
    assert bad.weights == good.weights
    assert good.statistics is not None
    assert bad.statistics is None


def test_a_block_costs_what_it_computes() -> None:
    """A client with few examples that takes many steps is no cheap one: it would be taken for hung."""
    prepared = prepare(tiny_experiment(local={"steps": 30}, strategy={"prefix": "none"}, salience={"metric": "l1"}))
    work = begin_round(
        prepared.setup,
        rank_again(prepared.setup, new_state(starting_parameters(prepared, lambda *_: None, lambda _: None)), None),
    )
    costs = dict(zip(work.blocks, block_costs(prepared.setup, work), strict=True))
    for block, cost in costs.items():
        each = [prepared.setup.costs(work.context.plans[job.plan]).training_flops for job in block]
        sizes = [sum(step_sizes(prepared.setup.examples[job.client], 16, 30)) for job in block]
        assert cost == sum(flops * count for flops, count in zip(each, sizes, strict=True))
        examples = [prepared.setup.examples[job.client] for job in block]
        assert cost > 2 * sum(
            flops * count for flops, count in zip(each, examples, strict=True)
        )  # control: one pass of its examples
