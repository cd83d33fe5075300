"""Laws 5 and 6 on whole runs, and what a run leaves behind. Real Ray, real training, seconds each."""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from conftest import tiny_experiment
from methods import WHOLE
from rich.console import Console
from torch import Tensor

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import ClientError, UserError, WorkerLostError
from raffm_ray.basics.seeding import generator, torch_seed
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.client_updates import train
from raffm_ray.clients.local_training import ClientData, Training, one_thread
from raffm_ray.clients.messages import Call, RoundContext
from raffm_ray.models.architecture import build
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.pool.ray_pool import RayPool
from raffm_ray.pool.worker_pool import InProcessPool, open_pool
from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.pretraining import pretrained
from raffm_ray.preparation.starting_parameters import pretraining_of
from raffm_ray.reports.run_report import write_report
from raffm_ray.runs.recorder import Recorder
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.ranking import rank_again
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import new_state

# Workers cannot import this module: what it defines travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

BITS = ("params_sha256", "full_model", "start", "bytes_down", "bytes_up", "energy_joules")


def bits(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What must not depend on where a run was made: everything but real time and memory."""
    device_types = {name: dict(device_type.items()) for name, device_type in summary["device_types"].items()}
    return {key: summary[key] for key in BITS} | {"device_types": device_types}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the summary of a run in process."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return folder, simulate(tiny_experiment(), folder)


@pytest.fixture(scope="module")
def undisturbed(run: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return bits(run[1])


@pytest.mark.parametrize(
    ("workers", "changes"),
    [(1, {"workers": 1}), (4, {"gpus_per_worker": 0.5, "device": "cpu"})],
    ids=["one", "shares of logical GPUs"],
)
def test_law_6_the_same_bits_on_any_number_of_workers(four_cores, undisturbed, out, workers, changes) -> None:
    experiment = tiny_experiment(pool={"backend": "ray", **changes})
    pool = open_pool(prepare(experiment).runner(), experiment.pool)
    assert pool.workers == workers
    assert bits(simulate(experiment, out, pool=pool)) == undisturbed
    pool.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said(four_cores, out) -> None:
    with pytest.raises(UserError, match="torch sees none there"):
        simulate(tiny_experiment(pool={"backend": "ray", "gpus_per_worker": 1}), out)
    with pytest.raises(UserError, match="torch sees no GPU here"):
        simulate(tiny_experiment(pool={"device": "cuda"}), out)
    with pytest.raises(UserError, match=r"pool.workers: 5 workers need 0.5 GPU each, and there are 2"):
        simulate(tiny_experiment(pool={"backend": "ray", "gpus_per_worker": 0.5, "workers": 5}), out)
    assert not out.exists()


def test_two_runs_never_share_a_folder(out) -> None:
    Recorder(out, tiny_experiment())
    (out / "config.yaml").rename(out.parent / "aside")
    for part in out.iterdir():
        shutil.rmtree(part)
    first = Recorder(out, tiny_experiment())
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        Recorder(out, tiny_experiment())
    assert first.folder == out


def test_refused_updates_are_told_and_counted(out) -> None:
    console = Console(record=True, file=io.StringIO())
    summary = simulate(tiny_experiment(local={"learning_rate": 1e30, "clip": None, "optimizer": "sgd"}), out, console)
    assert summary["rejected_updates"] > 0
    told = " ".join(console.export_text().split())
    assert re.search(r"note: round 1: refused: client \d+ \(change not finite\)", told)
    assert told.count("change not finite") < summary["rejected_updates"]  # the first round's alone


def test_a_diverged_or_uncacheable_pretraining_is_one_clear_error(out, tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="model.pretrain: training diverged at learning_rate 1e"):
        simulate(tiny_experiment(model={"pretrain": {"epochs": 3, "learning_rate": 1e30}}), out)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cache folder .*file cannot be written to .*RAFFM_CACHE names another"):
        simulate(tiny_experiment(), tmp_path / "other")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_block_on_a_gpu_equals_the_cpu_s_to_rounding() -> None:
    prepared = prepare(tiny_experiment())
    start = start_of(prepared)
    state = rank_again(prepare(tiny_experiment(salience={"metric": "l2"})).setup, new_state(start), None)
    work = begin_round(prepared.setup, state)
    sums = []
    for device in ("cpu", "cuda"):
        runner = prepared.runner()
        runner.device = device
        sums.append(runner.block(work.context, start.numpy(), work.blocks[0])[1])
    np.testing.assert_allclose(sums[0], sums[1], atol=1e-3 * np.abs(sums[0]).max())


def test_law_6_again_in_process_whatever_torch_s_own_generator_and_threads(undisturbed, out) -> None:
    torch.manual_seed(12345)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = torch.random.get_rng_state()
        assert bits(simulate(tiny_experiment(), out)) == undisturbed
        assert torch.equal(before, torch.random.get_rng_state())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_law_6_control_another_seed_gives_other_bits(undisturbed, out) -> None:
    assert bits(simulate(tiny_experiment(seed=1), out))["params_sha256"] != undisturbed["params_sha256"]


def test_law_6_control_other_blocks_may_change_the_last_bits_only(undisturbed, out) -> None:
    summary = simulate(tiny_experiment(pool={"block_clients": 3}), out)
    assert summary["params_sha256"] != undisturbed["params_sha256"]
    assert summary["full_model"] == pytest.approx(undisturbed["full_model"], abs=0.02)


def test_law_6_with_dropout(four_cores, tmp_path) -> None:
    """And with images that are changed at random, and class weights."""
    dropout = {"config": {**tiny_experiment().model.config, "hidden_dropout_prob": 0.2}}
    changes = {"local": {"crop_padding": 1, "flip": True}, "task": {"class_weights": "balanced"}}
    runs = [
        simulate(tiny_experiment(model=dropout, pool=pool, **changes), tmp_path / str(number))["params_sha256"]
        for number, pool in enumerate([{"backend": "in_process"}, {"backend": "ray", "workers": 2}])
    ]
    assert runs[0] == runs[1]


def test_law_6_with_updates_that_come_late(four_cores, tmp_path) -> None:
    clock = {"over_selection": 1.7, "late": "accept", "dropout": 0.1}
    runs = [
        simulate(tiny_experiment(clock=clock, pool=pool), tmp_path / str(number))["params_sha256"]
        for number, pool in enumerate([{"backend": "in_process"}, {"backend": "ray", "workers": 2}])
    ]
    assert runs[0] == runs[1]


def fedavg_round(prepared: Any, start: Tensor) -> Tensor:
    """One round of FedAvg, written as a plain loop: full-size models, the weighted mean of what comes back."""
    setup, experiment = prepared.setup, prepared.setup.experiment
    architecture = setup.architecture
    able = [client for client, count in enumerate(setup.examples) if count]
    rng = generator(experiment.seed, "clients", 1)
    chosen = sorted(rng.choice(able, size=min(experiment.clients.per_round, len(able)), replace=False).tolist())
    total, weight = torch.zeros_like(start, dtype=torch.float64), 0
    for client in chosen:
        torch.manual_seed(torch_seed(experiment.seed, "client", 1, client))
        named = {name: values.clone() for name, values in views(start, architecture.shapes).items()}
        model = build(architecture, named, Plan()).train()
        share = prepared.shares[client]
        batches_rng = generator(experiment.seed, "batches", 1, client)
        train(
            model,
            Training(OBJECTIVES["image_classification"], experiment.local, experiment.local.learning_rate),
            prepared.task.clients,
            ClientData(share, batches_rng, batches_rng),
        )
        total += len(share) * flatten(dict(model.named_parameters()), architecture.shapes).double()
        weight += len(share)
    return total / weight


def one_round(prepared: Any, start: Tensor) -> Tensor:
    """One round of the system."""
    setup = prepared.setup
    layout = setup.architecture.layout
    scores = {
        n: np.ones((layout.axes[a.parent].size, a.size) if a.parent else a.size) for n, a in layout.axes.items() if n != "layers"
    }
    state = replace(new_state(start), scores=scores)
    work = begin_round(setup, state)
    summed, updates = torch.zeros_like(start), []
    calls = [Call("block", work.context, (block,)) for block in work.blocks]
    for update, part in InProcessPool(prepared.runner()).run(start.numpy(), calls, lambda *_: None):
        summed += torch.from_numpy(part)
        updates.append(update)
    return finish_round(setup, state, work, summed, updates).parameters


def start_of(prepared: Any) -> Tensor:
    return pretrained(pretraining_of(prepared), lambda *_: None).flat


# Adam divides a gradient by its size: of one that is about zero, rounding decides the sign. So what adds in another order than the plain loop,
# stacks and a last layer of the first position alone, is held to it with SGD.
@pytest.mark.parametrize(("optimizer", "stack"), [("adamw", 1), ("sgd", 1), ("sgd", 4)])
@pytest.mark.parametrize("name", sorted(WHOLE))
def test_law_5_plans_that_keep_everything_are_fedavg(name, optimizer, stack, monkeypatch) -> None:
    if optimizer == "adamw":
        monkeypatch.setattr("raffm_ray.clients.module_factory.compute_first_position", lambda architecture, plan, model: model)
    whole = {device: {"params": 1.0} for device in tiny_experiment().fleet.budgets}
    local = {"optimizer": optimizer, "learning_rate": 0.01, "epochs": 1, "batch_size": 16}
    pool = {"backend": "in_process", "stack_clients": stack}
    prepared = prepare(tiny_experiment(strategy={"name": name}, fleet={"budgets": whole}, local=local, pool=pool))
    start = start_of(prepared)
    with one_thread():
        expected = fedavg_round(prepared, start)
        assert (one_round(prepared, start).double() - expected).abs().max() < 1e-6
        assert (start.double() - expected).abs().max() > 1e-3


def test_law_5_control_smaller_plans_are_not_fedavg() -> None:
    prepared = prepare(tiny_experiment())
    start = start_of(prepared)
    with one_thread():
        assert (one_round(prepared, start).double() - fedavg_round(prepared, start)).abs().max() > 1e-3


def test_blocks_are_pure() -> None:
    """The same block twice on one runner, and on a fresh one, gives the same bits and leaves the broadcast alone."""
    prepared = prepare(tiny_experiment())
    start = start_of(prepared)
    setup = prepared.setup
    state = rank_again(prepare(tiny_experiment(salience={"metric": "l2"})).setup, new_state(start), None)
    work = begin_round(setup, state)
    flat = start.numpy().copy()
    flat.setflags(write=False)
    runner, before = prepared.runner(), flat.copy()
    first = [runner.block(work.context, flat, block)[1] for block in work.blocks]
    again = [runner.block(work.context, flat, block)[1] for block in reversed(work.blocks)][::-1]
    fresh = [prepared.runner().block(work.context, flat, block)[1] for block in work.blocks]
    assert all((a == b).all() and (a == c).all() for a, b, c in zip(first, again, fresh, strict=True))
    assert (flat == before).all()


@pytest.mark.drawn
def test_what_a_run_leaves(out) -> None:
    summary = simulate(tiny_experiment(baselines=("full", "heterofl"), evaluation={"every": 1}), out)
    for page in write_report(out):
        assert page.stat().st_size > 10_000
    names = {path.name for path in out.iterdir()}
    assert {
        "config.yaml",
        "rounds",
        "clients",
        "checkpoints",
        "tensorboard",
        "summary.json",
        "report.html",
        "report.png",
    } <= names
    assert json.loads((out / "summary.json").read_text()) == summary
    fields = {"rounds", "clients", "metric", "start", "full_model", "device_types", "bytes_down", "bytes_up", "bytes_full_size"}
    assert fields | {"round_wall_seconds", "driver_peak_rss_bytes", "params_sha256"} <= set(summary)
    device_type_fields = {
        "params",
        "params_fraction",
        "metric",
        "bytes_down",
        "bytes_up",
        "peak_memory_bytes",
        "round_seconds",
        "energy_joules",
    }
    assert all(device_type_fields <= set(device_type) for device_type in summary["device_types"].values())
    assert len(summary["device_types"]) == 5
    assert summary["bytes_down"] < summary["baselines"]["full"]["bytes_down"]
    rounds = [pq.read_table(path).to_pylist()[0] for path in sorted((out / "rounds").glob("*.parquet"))]
    clients = [row for path in sorted((out / "clients").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["round"] for row in rounds] == [0, 1, 2]
    assert sum(row["bytes_down"] for row in clients) == summary["bytes_down"]
    assert sum(row["bytes_up"] for row in rounds) == summary["bytes_up"]
    assert len(summary["round_wall_seconds"]) == 2
    assert any((out / "tensorboard").iterdir())


def test_the_final_model_is_a_plain_transformers_checkpoint(run) -> None:
    from transformers import AutoModelForImageClassification

    folder, summary = run
    prepared = prepare(tiny_experiment())
    model = AutoModelForImageClassification.from_pretrained(folder / "checkpoints" / "final").eval()
    batch = prepared.task.held_out.batch(slice(0, 1000))
    with torch.no_grad():
        right = (model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).double().mean()
    assert float(right) == pytest.approx(summary["full_model"])


def test_the_resolved_configuration_repeats_the_run(run, undisturbed, out) -> None:
    from raffm_ray.settings.loading import load

    assert bits(simulate(load(run[0] / "config.yaml"), out)) == undisturbed


class _Explodes(ClientRunner):
    def _train(self, parameters: Any, context: RoundContext, job: Any, number: int, *remembered: Any) -> Any:
        if context.round == 1:
            raise ZeroDivisionError("a user's bug")
        return super()._train(parameters, context, job, number, *remembered)


class _Dies(ClientRunner):
    """Kills its process the first time a block of two clients comes by, and whenever the folder says so."""

    folder: Path

    def block(self, context: RoundContext, flat: Any, jobs: Any) -> Any:
        tries = len(list(self.folder.iterdir()))
        if tries < int(self.folder.name):
            (self.folder / str(tries)).touch()
            os._exit(1)
        return super().block(context, flat, jobs)


def runner_of(kind: type[ClientRunner], prepared: Any) -> Any:
    plain = prepared.runner()
    return kind(plain.architecture, plain.examples, plain.shares, plain.held_out)


def test_an_actor_that_dies_is_replaced_and_its_block_counted_once(four_cores, undisturbed, tmp_path) -> None:
    experiment = tiny_experiment(pool={"backend": "ray", "workers": 2})
    runner = runner_of(_Dies, prepare(experiment))
    runner.folder = tmp_path / "2"
    runner.folder.mkdir()
    pool = RayPool(runner, experiment.pool)
    assert bits(simulate(experiment, tmp_path / "run", pool=pool)) == undisturbed
    assert len(list(runner.folder.iterdir())) == 2
    pool.close()


def test_an_actor_that_always_dies_ends_in_an_error_that_names_round_and_block(four_cores, tmp_path) -> None:
    experiment = tiny_experiment(pool={"backend": "ray", "workers": 1})
    runner = runner_of(_Dies, prepare(experiment))
    runner.folder = tmp_path / "1000"
    runner.folder.mkdir()
    pool = RayPool(runner, experiment.pool)
    with pytest.raises(
        WorkerLostError, match=r"round 0, block of clients \d+: the worker was lost 3 times, the last time by ActorDiedError"
    ):
        simulate(experiment, tmp_path / "run", pool=pool)
    pool.close()


def test_a_user_s_exception_is_not_retried(four_cores, out) -> None:
    experiment = tiny_experiment(pool={"backend": "ray", "workers": 1, "block_clients": 5, "stack_clients": 1})
    pool = RayPool(runner_of(_Explodes, prepare(experiment)), experiment.pool)
    told = r"(?s)round 1, block of clients \d+, \d+.*: .*ZeroDivisionError: a user's bug\nraised in round 1 by client \d+$"
    with pytest.raises(ClientError, match=told):
        simulate(experiment, out, pool=pool)
    pool.close()


def test_lines_of_a_baseline_begin_with_its_label(tmp_path) -> None:
    told = io.StringIO()
    variant = {"name": "raffm", "label": "no prefixes", "prefix": "none"}
    simulate(tiny_experiment(rounds=1, baselines=(variant,)), tmp_path / "run", Console(file=told, width=200))
    begin = [line.split(":")[0] for line in told.getvalue().splitlines() if ": round 1/1 " in line]
    assert begin == ["raffm", "no prefixes"]
