"""Whole runs of models with adapters: every rule, the same bits anywhere, what devices are charged, and what goes on after an interruption."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import torch
from conftest import tiny_experiment
from methods import ADAPTED
from round_states import state_of
from safetensors.torch import load_file

import raffm_ray
from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.clients import block_sums
from raffm_ray.clients.evaluation.own_model import OwnModel
from raffm_ray.clients.folds.products import Products, norm_of
from raffm_ray.clients.messages import Update
from raffm_ray.models.adapters.lora import factors
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs.evaluation import _context
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.server.adapter_rules.rules import ADAPTER_RULES
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import parse
from raffm_ray.studies.comparison import compare

DEVICES = ("raspberry_pi_4", "raspberry_pi_5", "laptop", "jetson_agx_orin", "v100")
EXACT = ("flora", "fedex_lora")


def experiment(name: str, ranks: tuple[float, ...] = (0.25, 0.25, 0.5, 0.75, 1.0), **changes: Any) -> Experiment:
    budgets = {device: {"adapter_params": share} for device, share in zip(DEVICES, ranks, strict=True)}
    own: dict[str, Any] = {
        "strategy": {"name": name},
        "model": {"adapters": {"rank": 4}},
        "fleet": {"budgets": budgets},
        "evaluation": {"aggregation_error": True, "sizes": 0},
    }
    values = tiny_experiment(**{**own, **changes}).model_dump(exclude_unset=True)
    del values["extraction"]
    return parse(values)


def errors(folder: Path) -> list[float]:
    found = ds.dataset(folder / "rounds").to_table(["round", "aggregation_error"]).sort_by("round")["aggregation_error"]
    return found.to_pylist()[1:]


@pytest.mark.parametrize("name", [name for name in ADAPTED if name != "fedra"])
def test_every_method_runs_and_says_how_exact_its_aggregation_is(name, tmp_path) -> None:
    found = raffm_ray.simulate(experiment(name), tmp_path / "run")
    assert all((error < 1e-5) == (name in EXACT) for error in errors(tmp_path / "run"))
    rank = {one["params"] for one in found["tiers"].values()}
    assert len(rank) == 4  # of five device types, two alike


def test_random_layers_run_and_devices_are_charged_for_them_alone(tmp_path) -> None:
    shares = (0.34, 0.34, 0.67, 1.0, 1.0)
    found = raffm_ray.simulate(experiment("fedra", shares), tmp_path / "run")
    assert len({one["params"] for one in found["tiers"].values()}) == 3
    assert max(errors(tmp_path / "run")) > 1e-5
    clients = ds.dataset(tmp_path / "run" / "clients").to_table(["device", "bytes_up"]).to_pylist()
    heads, layer = 24 * 10 + 10, 4 * 4 * 48 + 2 * 4 * (24 + 40)
    kept = dict(zip(DEVICES, (1, 1, 2, 3, 3), strict=True))
    assert all(one["bytes_up"] == 4 * (heads + kept[one["device"]] * layer) for one in clients)
    whole = raffm_ray.simulate(experiment("fedra", (1.0,) * 5), tmp_path / "whole")
    means = raffm_ray.simulate(experiment("rbla", (1.0,) * 5), tmp_path / "means")
    assert whole["params_sha256"] == means["params_sha256"] != found["params_sha256"]


def test_sketches_count_what_they_stand_for_and_move_as_much_as_a_prefix(tmp_path) -> None:
    found = {name: raffm_ray.simulate(experiment(name), tmp_path / name) for name in ("rbla", "fslora")}
    assert found["fslora"]["bytes_up"] == found["rbla"]["bytes_up"]
    assert found["fslora"]["bytes_down"] == found["rbla"]["bytes_down"]
    assert found["fslora"]["params_sha256"] != found["rbla"]["params_sha256"]
    ones = [raffm_ray.simulate(experiment(name, (1.0,) * 5), tmp_path / f"{name} whole") for name in ("rbla", "fslora")]
    assert ones[0]["params_sha256"] == ones[1]["params_sha256"]  # all ranks are no sketch


def test_a_baseline_of_sketches_does_not_make_the_others_sketches(tmp_path) -> None:
    alone = {name: raffm_ray.simulate(experiment(name), tmp_path / name) for name in ("rbla", "fslora")}
    for first, second in (("rbla", "fslora"), ("fslora", "rbla")):
        folder = tmp_path / f"{first} first"
        compare(experiment(first, baselines=[second]), [0], folder)
        for name, one in alone.items():
            assert json.loads((folder / name / "seed-0" / "summary.json").read_text())["params_sha256"] == one["params_sha256"]


def test_means_of_equal_ranks_are_fedavg_of_the_adapters(tmp_path) -> None:
    ones = (1.0,) * 5
    first, second = (raffm_ray.simulate(experiment(name, ones), tmp_path / name) for name in ("rbla", "full"))
    assert first["params_sha256"] == second["params_sha256"]
    other = raffm_ray.simulate(experiment("hlora", ones), tmp_path / "hlora")
    assert other["params_sha256"] != first["params_sha256"]


@pytest.mark.parametrize("name", ["flora", "raflora", "hetlora", "raffm", "fslora"])
def test_the_same_bits_on_ray_and_and_in_process(name, tmp_path, four_cores) -> None:
    here = raffm_ray.simulate(experiment(name), tmp_path / "here")
    there = raffm_ray.simulate(experiment(name, pool={"backend": "ray", "workers": 3}), tmp_path / "there")
    assert here["params_sha256"] == there["params_sha256"]
    assert errors(tmp_path / "here") == errors(tmp_path / "there")


@pytest.mark.parametrize("name", ["flora", "fedex_lora", "rolora", "fslora"])
def test_a_run_that_was_interrupted_ends_in_the_same_bits(name, tmp_path) -> None:
    whole = raffm_ray.simulate(experiment(name, rounds=4), tmp_path / "whole")

    def stop(row: RoundRow) -> None:
        if row.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raffm_ray.simulate(experiment(name, rounds=4, checkpoint={"every": 1}), tmp_path / "parts", on_round=stop)
    assert raffm_ray.resume(tmp_path / "parts")["params_sha256"] == whole["params_sha256"]


def test_what_is_added_to_the_frozen_model_is_in_the_final_one_and_in_nothing_else(tmp_path) -> None:
    found = {}
    for name in ("rbla", "flora", "fedex_lora"):
        raffm_ray.simulate(experiment(name, rounds=1), tmp_path / name)
        found[name] = load_file(tmp_path / name / "checkpoints" / "final" / "model.safetensors")
    adapted = {name.replace(".lora_A", "") for name in found["rbla"] if ".lora_A." in name}
    for name in ("flora", "fedex_lora"):
        moved = {key for key, values in found[name].items() if "lora" not in key and not torch.equal(values, found["rbla"][key])}
        assert moved == adapted


def test_devices_are_charged_for_what_a_method_moves(tmp_path) -> None:
    found = {
        name: raffm_ray.simulate(experiment(name), tmp_path / name)
        for name in ("rbla", "flora", "fedex_lora", "ffa_lora", "rolora")
    }
    moved = {name: (one["bytes_down"], one["bytes_up"]) for name, one in found.items()}
    down, up = moved["rbla"]
    assert moved["flora"][1] == moved["fedex_lora"][1] == up
    assert moved["flora"][0] > down  # the stack of the last round
    assert moved["fedex_lora"][0] > down  # the changed projections, whole
    assert moved["ffa_lora"][1] < up
    assert moved["ffa_lora"][0] < down  # a device that has the common A is not sent it again
    assert moved["rolora"][0] == down
    assert moved["rolora"][1] < up


def test_what_is_sent_is_what_is_trained(tmp_path) -> None:
    run = raffm_ray.simulate(experiment("rbla", (1.0,) * 5), tmp_path / "run")
    clients = ds.dataset(tmp_path / "run" / "clients").to_table(["bytes_up", "bytes_down", "frozen_bytes_down"]).to_pylist()
    heads, adapters = 24 * 10 + 10, 3 * (4 * 4 * 48 + 2 * 4 * (24 + 40))
    assert {one["bytes_up"] for one in clients} == {4 * (heads + adapters)}
    assert {one["bytes_down"] - one["frozen_bytes_down"] for one in clients} == {4 * (heads + adapters)}
    assert run["frozen_bytes_down"] == sum(one["frozen_bytes_down"] for one in clients)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"strategy": {"name": "flora"}, "model": {"adapters": None}},
            "strategy.name: 'flora' is a method for adapters: model.adapters must be set",
        ),
        (
            {"strategy": {"name": "raffm", "adapters": "hlora"}, "model": {"adapters": None}},
            "strategy.adapters: 'hlora' is about adapters",
        ),
        (
            {"strategy": {"name": "raffm", "factors": "up"}, "model": {"adapters": None}},
            "strategy.factors: 'up' is about adapters",
        ),
        ({"strategy": {"name": "raffm", "adapters": "hlor"}}, "strategy.adapters 'hlor' is not known"),
        ({"strategy": {"name": "rbla", "adapters": "fedsvd"}}, "strategy.factors: must be up with strategy.adapters 'fedsvd'"),
        ({"strategy": {"name": "hlora"}, "clock": {"late": "accept"}}, "clock.late: must be drop with strategy.adapters 'hlora'"),
        (
            {"strategy": {"name": "flora"}, "model": {"adapters": {"rank": 4}, "frozen_precision": "bfloat16"}},
            "model.frozen_precision: must be float32",
        ),
        (
            {"strategy": {"name": "ffa_lora"}, "local": {"client_update": "scaffold"}},
            "local.client_update: 'scaffold' remembers something of every parameter .* strategy.factors 'up'",
        ),
        (
            {"strategy": {"name": "rolora"}, "clock": {"late": "accept"}},
            "clock.late: must be drop with strategy.factors 'alternating'",
        ),
        (
            {"strategy": {"name": "rbla"}, "clock": {"late": "accept"}},
            "clock.late: must be drop with evaluation.aggregation_error",
        ),
        (
            {"strategy": {"name": "hlora"}, "server": {"fair_exponent": 1}},
            "server.fair_exponent: must be 0 with strategy.adapters 'hlora'",
        ),
        (
            {"strategy": {"name": "hetlora"}, "server": {"fair_exponent": 1}},
            "server.fair_exponent: must be 0 with strategy.name 'hetlora'",
        ),
        (
            {"strategy": {"name": "hetlora"}, "server": {"agnostic_rate": 0.1}},
            "server.agnostic_rate: must be 0 with strategy.name 'hetlora'",
        ),
        (
            {"strategy": {"name": "hetlora", "client_weight": "equal"}},
            "strategy.client_weight: must be default with strategy.name 'hetlora'",
        ),
    ],
)
def test_what_cannot_be_is_one_line_before_work(changes, told, tmp_path) -> None:
    with pytest.raises(UserError, match=told):
        raffm_ray.simulate(experiment("raffm", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("hlora", {"model": {"freeze": ["*lora_A*"]}}, "model.freeze: .*lora_A.weight: strategy.adapters 'hlora' merges both"),
        ("hlora", {"strategy": {"personal": ["*lora_B*"]}}, "strategy.personal: .*lora_B.* strategy.adapters 'hlora' needs"),
        (
            "rolora",
            {"strategy": {"personal": ["*lora_B*"]}},
            "strategy.personal: .*lora_B.* strategy.factors 'alternating' needs",
        ),
        ("hetlora", {"strategy": {"personal": ["*lora_B*"]}}, "strategy.personal: .*lora_B.* strategy.name 'hetlora' needs"),
        ("rbla", {"strategy": {"personal": ["*lora_B*"]}}, "evaluation.aggregation_error: must be false"),
    ],
)
def test_adapters_that_are_not_all_there_cannot_be_merged(name, changes, told) -> None:
    whole = {
        "strategy": {"name": name, **changes.get("strategy", {})},
        "model": {"adapters": {"rank": 4}, **changes.get("model", {})},
    }
    with pytest.raises(UserError, match=told):
        prepare(experiment(name, **whole))


def test_adapters_of_frozen_layers_stay_as_they_are(tmp_path) -> None:
    adapters = {"adapters": {"rank": 4}, "freeze": ["*layers.0.*"]}
    raffm_ray.simulate(experiment("flora", model=adapters, rounds=1), tmp_path / "run")
    assert errors(tmp_path / "run")[0] < 1e-5


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rolora", {"server": {"optimizer": "adam"}}),
        ("ffa_lora", {"strategy": {"name": "ffa_lora", "aggregation": "all_clients"}}),
    ],
    ids=["a server's moments", "a rule that shrinks"],
)
def test_nothing_moves_what_a_round_does_not_train(name, changes) -> None:
    prepared = prepare(experiment(name, evaluation={"aggregation_error": False}, **changes))
    state, generator, shapes = state_of(prepared), torch.Generator().manual_seed(0), prepared.setup.architecture.trained_shapes
    for _ in range(2):
        work = begin_round(prepared.setup, state)
        summed = torch.randn(len(state.parameters), generator=generator)
        for held in work.context.held:
            views(summed, shapes)[held].zero_()
        updates = [Update({job.plan: job.weight}, ()) for job in work.jobs]
        before, state = state, finish_round(prepared.setup, state, work, summed, updates)
        old, new = (views(one.parameters, shapes) for one in (before, state))
        moved = {key for key in shapes if not torch.equal(old[key], new[key])}
        assert work.context.held
        assert moved == set(shapes) - set(work.context.held)


def test_a_round_in_which_nobody_trained_has_no_aggregation_error() -> None:
    prepared = prepare(experiment("hlora"))
    state = replace(state_of(prepared), aggregation_error=0.5)
    work = begin_round(prepared.setup, state)
    assert finish_round(prepared.setup, state, work, torch.zeros_like(state.parameters), []).aggregation_error is None


def test_a_budget_of_adapters_needs_some(tmp_path) -> None:
    with pytest.raises(UserError, match="budget adapter_params: the model has none"):
        raffm_ray.simulate(experiment("raffm", model={"adapters": None}), tmp_path / "run")


def test_a_budget_below_the_frozen_model_names_the_kind_that_counts_ranks(tmp_path) -> None:
    small = {"budgets": {"raspberry_pi_4": {"layer_params": 0.3}}}
    with pytest.raises(UserError, match=r"layer_params .* only ranks are cut .* fleet.budgets of adapter_params"):
        raffm_ray.simulate(experiment("raffm", fleet=small), tmp_path / "run")
    tiny = {"budgets": {name: {"params": 1e-4} for name in DEVICES}}
    with pytest.raises(UserError, match=r"every device type .* only ranks are cut .* fleet.budgets of adapter_params"):
        raffm_ray.simulate(experiment("raffm", fleet=tiny), tmp_path / "run")
    with pytest.raises(UserError) as caught:  # control: nothing of adapters where everything is cut
        raffm_ray.simulate(tiny_experiment(fleet=tiny), tmp_path / "run")
    assert "adapter" not in str(caught.value)


@pytest.mark.parametrize("rule", sorted(ADAPTER_RULES))
def test_a_subnetwork_of_the_frozen_model_and_ranks_are_cut_from_one_list(rule, tmp_path) -> None:
    if rule == "fedsvd":
        pytest.skip("clients train B alone")
    steps = {"rank": 1, "heads": 1, "ffn": 4}
    values = experiment("raffm", strategy={"name": "raffm", "adapters": rule}).model_dump(exclude_unset=True)
    values["extraction"] = {"steps": steps}
    values["fleet"]["budgets"] = {
        device: {"params": share} for device, share in zip(DEVICES, (0.6, 0.6, 0.7, 0.8, 1.0), strict=True)
    }
    found = raffm_ray.simulate(parse(values), tmp_path / "run")
    assert found["tiers"]["raspberry_pi_4"]["params_fraction"] <= 0.6


def test_a_client_whose_weight_is_no_32_bit_float_is_refused_alone(tmp_path, monkeypatch) -> None:
    def norm(products: Products) -> float:
        (first, *_) = products.values()
        return 1e39 if len(first.ranks) == 1 else norm_of(products)

    monkeypatch.setattr(block_sums, "norm_of", norm)
    raffm_ray.simulate(experiment("hetlora", evaluation={"aggregation_error": False}), tmp_path / "run")
    clients = ds.dataset(tmp_path / "run" / "clients").to_table(["device", "refused"]).to_pylist()
    small = DEVICES[:2]
    assert {one["device"] in small for one in clients} == {True, False}
    assert all(one["refused"] == ("change not finite" if one["device"] in small else "") for one in clients)


@pytest.mark.parametrize("name", ["ffa_lora", "rolora", "rbla"])
def test_a_tuned_model_trains_what_its_round_trains(name) -> None:
    prepared = prepare(experiment(name, evaluation={"clients": "all", "tune": {"steps": 3}}, clients={"held_out": 0.3}))
    state, runner = replace(state_of(prepared), round=1), prepared.runner()
    client = next(client for client, share in enumerate(prepared.shares) if len(share) > 3)
    context = _context(prepared.setup, state, [Plan()])
    runner.hold(state.frozen_array)
    given = runner._parameters(state.parameters.numpy(), context, 0)
    before = {key: values.clone() for key, values in given.items()}
    after = dict(runner._module(state.parameters.numpy(), context, OwnModel(0, client, None, 3)).named_parameters())
    moved = {key for key, values in after.items() if not torch.equal(values, before[key])}
    adapters = [factors(module) for module in prepared.setup.architecture.adapters.modules]
    assert {up for _, up in adapters} <= moved
    assert bool({down for down, _ in adapters} & moved) == (name == "rbla")
