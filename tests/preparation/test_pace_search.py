"""Budgets that embeddings would take up: the residual stream is given up beside the layers, at the pace that public examples prefer."""

from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_tokenizer
from rich.console import Console
from text_data import WORDS, glue_folder, text_experiment

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.nesting import within
from raffm_ray.axes.serialization import pack, unpack
from raffm_ray.cli.main import main
from raffm_ray.deployment.deploy import budget_for, fitted, hollow_note, plan_for
from raffm_ray.deployment.supernet import open_supernet, write_supernet
from raffm_ray.deployment.trained_model import of_run
from raffm_ray.models.architecture import build
from raffm_ray.preparation import pace_search
from raffm_ray.preparation.pace_search import public_loss, rank_with_pace, with_best_pace
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.public_calibration import public_statistics
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs.checkpoint import Checkpoint
from raffm_ray.runs.reader import read_summary
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.ranking import plain_state
from raffm_ray.server.residual_pace import LEAN, PACES, device_type_answers, with_ruled_pace
from raffm_ray.server.state import ServerState, new_state
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import dump
from raffm_ray.subnetworks.budgets import HOLLOW, Budget, balance, budget_from
from raffm_ray.subnetworks.costs import costs_of

STEPS = {"heads": 1, "qk": 2, "vo": 2, "ffn": 4, "residual": 4}
PARAMS = {"raspberry_pi_5": {"params": 0.5}, "laptop": {"params": 0.7}, "jetson_agx_orin": {"params": 1.0}}
LAYERS = {"raspberry_pi_5": {"layer_params": 0.35}, "laptop": {"layer_params": 0.5}, "jetson_agx_orin": {"layer_params": 1.0}}


@pytest.fixture(scope="module")
def wordy(tmp_path_factory) -> Any:
    """Experiments with a BERT of which 45% of the parameters are word embeddings."""
    folder = tmp_path_factory.mktemp("wordy")
    small_tokenizer([*WORDS, *(f"word{number}" for number in range(450))]).save_pretrained(folder / "words")
    task = {"name": "sst2", "data": str(glue_folder(folder / "data", "sst2"))}

    def experiment(budgets: dict[str, dict[str, float]] = PARAMS, public: int = 12, **changes: Any) -> Experiment:
        changes = {"extraction": {"steps": STEPS}, **changes}
        fleet = {"budgets": budgets}
        return text_experiment({**task, "public": public}, "bert", str(folder / "words"), fleet=fleet, **changes)

    return experiment


def ready(experiment: Experiment) -> tuple[Prepared, ServerState]:
    """Ranked on public examples, with the pace of the rule."""
    prepared = prepare(experiment)
    state = new_state(starting_parameters(prepared, lambda *_: None, lambda _: None))
    return prepared, rank_with_pace(prepared, state, public_statistics(prepared, state, "outputs"))


@pytest.fixture(scope="module")
def of_params(wordy) -> tuple[Prepared, ServerState]:
    return ready(wordy())


@pytest.fixture(scope="module")
def of_layers(wordy) -> tuple[Prepared, ServerState]:
    return ready(wordy(LAYERS))


def balances(prepared: Prepared, state: ServerState) -> list[float]:
    setup, full = prepared.setup, costs_of(prepared.setup.architecture, Plan())
    plans = device_type_plans(setup, state)
    return [balance(setup.budgets[name], setup.costs(plan), full) for name, plan in plans.items()]


def test_a_balance_is_of_the_unit_that_binds(of_layers) -> None:
    prepared, state = of_layers
    architecture = prepared.setup.architecture
    full = costs_of(architecture, Plan())
    plan = device_type_plans(prepared.setup, state)["laptop"]
    costs = costs_of(architecture, plan)
    layers = costs.layer_params / full.layer_params
    assert balance(budget_from({"layer_params": 0.5}, full), costs, full) == pytest.approx(1.0)
    params = costs.params / full.params
    assert balance(Budget(params=costs.params), costs, full) == pytest.approx(layers / params)
    assert balance(Budget(params=costs.params, layer_params=full.layer_params), costs, full) == pytest.approx(layers / params)
    assert balance(Budget(), costs, full) == 1.0  # nothing binds


def test_the_rule_moves_the_pace_only_where_layers_would_be_lean(wordy, of_params, of_layers) -> None:
    for (prepared, _), moved in ((of_params, True), (of_layers, False)):
        last = plain_state(prepared.setup.architecture)
        state = with_ruled_pace(prepared.setup, last)
        assert (state.pace > 0) == moved == (min(balances(prepared, last)) < LEAN)
        if moved:  # the slowest of those that leave enough
            slower = [pace for pace in PACES if pace < state.pace]
            assert min(balances(prepared, state)) >= HOLLOW
            assert all(min(balances(prepared, replace(last, pace=pace))) < HOLLOW for pace in slower)
    setup = of_params[0].setup
    for pace in (0.0, 0.25):
        fixed = replace(setup, experiment=wordy(extraction={"steps": STEPS, "pace": pace}))
        assert with_ruled_pace(fixed, plain_state(fixed.architecture)).pace == pace


def test_the_pace_with_the_least_public_loss_is_taken_for_all_device_types(of_params) -> None:
    prepared, state = of_params
    setup, losses = prepared.setup, {}
    for pace in PACES:
        plans = device_type_plans(setup, replace(state, pace=pace))
        losses[pace] = sum(public_loss(prepared, state, plan) for plan in plans.values())
        for small, large in pairwise(sorted(plans.values(), key=lambda one: setup.costs(one).params)):
            within(small, large, setup.architecture.layout)
        for name, plan in plans.items():
            assert setup.budgets[name].allows(setup.costs(plan))
    assert len(set(losses.values())) > 2
    assert state.pace == min(losses, key=losses.get)
    assert losses[state.pace] < max(losses.values())


def test_the_measured_loss_decides_and_not_the_order_of_paces(of_params, monkeypatch) -> None:
    """A control: with other losses, another pace."""
    prepared, state = of_params
    answers, last = device_type_answers(prepared.setup), replace(state, pace=0.0)
    monkeypatch.setattr(pace_search, "public_loss", lambda prepared, state, plan: len(plan.get("residual", range(24))))
    assert with_best_pace(prepared, last, answers).pace == 2.0
    monkeypatch.setattr(pace_search, "public_loss", lambda prepared, state, plan: -len(plan.get("residual", range(24))))
    assert with_best_pace(prepared, last, answers).pace == 0.0
    monkeypatch.setattr(pace_search, "public_loss", lambda *_: float("nan"))
    assert with_best_pace(prepared, last, answers).pace == 0.0


def test_budgets_of_layers_measure_nothing_and_neither_does_who_has_no_public_examples(of_params, of_layers, monkeypatch) -> None:
    monkeypatch.setattr(pace_search, "public_loss", None)  # whoever calls it fails
    prepared, state = of_layers
    statistics = public_statistics(prepared, state, "outputs")
    assert rank_with_pace(prepared, state, statistics).pace == 0.0
    prepared, state = of_params
    without = replace(prepared, task=replace(prepared.task, public=prepared.task.public.part(np.arange(0))))
    assert rank_with_pace(without, state, statistics).pace == with_ruled_pace(prepared.setup, state).pace > 0
    with pytest.raises(TypeError):  # control
        rank_with_pace(prepared, state, statistics)


def test_a_search_gives_the_same_bits_with_any_number_of_threads(of_params, monkeypatch) -> None:
    prepared, state = of_params
    real, seen = public_loss, list[tuple[int, float]]()

    def told(*arguments: Any) -> float:
        seen.append((torch.get_num_threads(), real(*arguments)))
        return seen[-1][1]

    monkeypatch.setattr(pace_search, "public_loss", told)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        with_best_pace(prepared, replace(state, pace=0.0), device_type_answers(prepared.setup))
    half = len(seen) // 2
    assert half > 3
    assert seen[:half] == seen[half:]
    assert {threads for threads, _ in seen} == {1}


def test_a_checkpoint_without_a_pace_is_one_with_the_residual_stream_last() -> None:
    state = ServerState(3, torch.zeros(2), {}, pace=2.0)
    plain, arrays = pack(Checkpoint(state, {}, ""))
    tensors = {name: torch.as_tensor(values) for name, values in arrays.items()}
    assert unpack(Checkpoint, plain, tensors).state.pace == 2.0
    plain["state"].pop("pace")
    assert unpack(Checkpoint, plain, tensors).state.pace == 0.0
    plain["state"].pop("round")  # control: nothing else may be missing
    with pytest.raises((KeyError, ValueError)):
        unpack(Checkpoint, plain, tensors)


@pytest.fixture(scope="module")
def run(wordy, tmp_path_factory) -> tuple[Path, str]:
    """A run, and what it printed."""
    folder, console = tmp_path_factory.mktemp("run") / "run", Console(file=StringIO(), width=60)
    simulate(wordy({**PARAMS, "raspberry_pi_5": {"params": 0.3}}), folder, console)
    return folder, console.file.getvalue()


def test_a_device_type_with_hollow_layers_is_told_before_the_run_starts(wordy, run, tmp_path, capsys) -> None:
    lines = [line for line in run[1].splitlines() if "outside the layers" in line]
    assert len(lines) == 1
    assert lines[0].startswith("note: device type raspberry_pi_5: params <= ")
    assert "% of the multiply-accumulates: " in lines[0]
    for name, budgets in (("hollow", {**PARAMS, "raspberry_pi_5": {"params": 0.3}}), ("layers", LAYERS)):
        config = tmp_path / f"{name}.yaml"
        config.write_text(dump(wordy(budgets)))
        assert main(["fleet", "show", str(config)]) == 0
        assert ("note: device type raspberry_pi_5: params" in capsys.readouterr().out) == (name == "hollow")


def test_a_run_deploys_the_plans_of_its_own_pace_and_other_budgets_at_theirs(run, tmp_path, capsys) -> None:
    folder, trained = run[0], of_run(run[0])
    device_types = read_summary(folder)["device_types"]
    assert read_summary(folder)["residual_pace"] == trained.state.pace
    for name, device_type in device_types.items():
        same = fitted(trained, {}, name)
        assert same is trained
        assert trained.prepared.setup.costs(plan_for(same, {}, name)).params == device_type["params"]
    full, last = costs_of(trained.prepared.setup.architecture, Plan()), replace(trained, state=replace(trained.state, pace=0.0))
    for kind, share in (("params", 0.55), ("bytes", 0.55), ("inference_bytes", 0.6)):
        chosen = fitted(last, {kind: share})
        before, after = (costs_of(trained.prepared.setup.architecture, plan_for(one, {kind: share})) for one in (last, chosen))
        budget = budget_from({kind: share}, full)
        assert balance(budget, before, full) < min(LEAN, balance(budget, after, full))
        losses = [public_loss(trained.prepared, one.state, plan_for(one, {kind: share})) for one in (last, chosen)]
        assert losses[1] <= losses[0]
    for kind in ("layer_params", "training_flops", "macs"):
        assert fitted(last, {kind: 0.5}).state.pace == 0.0
    assert main(["deploy", str(folder), "--budget", "params=0.3", "--out", str(tmp_path / "hollow")]) == 0
    assert "note: params <= " in capsys.readouterr().err
    half = budget_for(trained, {"layer_params": 0.5})
    assert hollow_note(trained, trained.plan(half), half) is None  # control


def test_one_file_of_all_sizes_is_in_the_order_of_the_pace(run, tmp_path) -> None:
    trained = of_run(run[0])
    for pace in (0.0, 2.0):
        one = replace(trained, state=replace(trained.state, pace=pace))
        (tmp_path / str(pace)).mkdir()
        write_supernet(one, tmp_path / str(pace))
        plan = plan_for(one, {"params": 0.6})
        module, _ = open_supernet(tmp_path / str(pace)).read({"params": 0.6})
        expected = build(one.prepared.setup.architecture, one.cut(plan), plan).state_dict()
        assert all(torch.equal(values, expected[name]) for name, values in module.state_dict().items())
