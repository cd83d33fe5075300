"""Devices: their profiles, what a round costs them, and the commands that show and measure them."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_experiment
from hypothesis import given
from hypothesis import strategies as st

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.benchmarks.synthetic_data import vit
from raffm_ray.cli.main import main as cli
from raffm_ray.clients.messages import Report
from raffm_ray.devices.profiles import DEVICES, MIXES, PACKAGED, Device, Host, fleet_shares, load_profiles
from raffm_ray.devices.round_costs import Workload, compute_seconds, device_cost, training_work
from raffm_ray.fleet.device_calibration import measure, profile_text
from raffm_ray.fleet.device_plans import budget_in_words, device_type_rows, in_runs, provisional_ranking, widths
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.runs.summary import client_row
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.ranking import plain_state
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import ServerState
from raffm_ray.server.workload import expected_work, reported_work, training_flops
from raffm_ray.settings.loading import dump
from raffm_ray.subnetworks.budgets import Budget

MINE = {
    "memory_bytes": 1e9,
    "flops_per_second": 1e9,
    "memory_bytes_per_second": 1e8,
    "down_bytes_per_second": 1e6,
    "up_bytes_per_second": 1e5,
    "latency_seconds": 0.5,
    "dispatch_seconds": 1e-3,
    "power_watts": 10.0,
    "radio_watts": 2.0,
    "sustained": 0.5,
    "source": "made up",
}
DEVICE = Device(**MINE)


def written(folder: Path, content: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(tiny_experiment())


def plain(prepared: Prepared) -> ServerState:
    return plain_state(prepared.setup.architecture)


# Profiles


def test_packaged_figures_of_old_devices_stay() -> None:
    rows = {
        name: (
            one.memory_bytes / 2**30,
            one.flops_per_second,
            one.up_bytes_per_second,
            one.down_bytes_per_second,
            one.power_watts,
        )
        for name, one in DEVICES.items()
    }
    assert rows["raspberry_pi_4"] == (4, 48e9, 54e6, 54e6, 15)
    assert rows["raspberry_pi_5"] == (8, 154e9, 54e6, 54e6, 25)
    assert rows["laptop"] == (16, 358e9, 150e6, 150e6, 28)
    assert rows["jetson_agx_orin"] == (32, 5.3e12, 1.25e9, 1.25e9, 60)
    assert rows["v100"] == (32, 15.7e12, 1.25e9, 1.25e9, 300)
    assert {one.sustained for name, one in DEVICES.items() if name != "server_core"} == {0.3}
    assert {one.overlap for name, one in DEVICES.items() if name != "server_core"} == {1.0}


def test_a_users_file_adds_and_replaces(tmp_path) -> None:
    path = written(tmp_path, {"devices": {"mine": MINE, "laptop": MINE}, "mixes": {"ours": {"mine": 0.25, "v100": 0.75}}})
    profiles = load_profiles(path, PACKAGED)
    assert profiles.devices["mine"] == profiles.devices["laptop"] == DEVICE != DEVICES["laptop"]
    assert set(profiles.devices) == {*DEVICES, "mine"}
    assert next(iter(profiles.devices)) in ("mine", "laptop")  # weakest first
    assert fleet_shares("ours", {}, profiles) == {"mine": 0.25, "v100": 0.75}
    assert set(profiles.mixes) == {*MIXES, "ours"}
    assert "mine" not in DEVICES  # control: the packaged ones are as they were


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"devices": {"mine": MINE | {"flops_per_secnd": 1.0}}},
            "devices.mine.flops_per_secnd: unknown key (did you mean 'flops_per_second'?)",
        ),
        ({"devices": {"mine": MINE | {"memory_bytes": 0}}}, "devices.mine.memory_bytes: input should be greater than 0, got 0"),
        (
            {"devices": {"mine": MINE | {"up_bytes_per_second": -1.5}}},
            "devices.mine.up_bytes_per_second: input should be greater than 0, got -1.5",
        ),
        ({"devices": {"mine": MINE | {"power_watts": float("nan")}}}, "devices.mine.power_watts: input should be"),
        (
            {"devices": {"mine": MINE | {"power_watts": True}}},
            "devices.mine.power_watts: input should be a valid number, got True",
        ),
        (
            {"devices": {"mine": MINE | {"power_watts": "5 W"}}},
            "devices.mine.power_watts: input should be a valid number, got '5 W'",
        ),
        (
            {"devices": {"mine": MINE | {"sustained": 1.5}}},
            "devices.mine.sustained: input should be less than or equal to 1, got 1.5",
        ),
        ({"devices": {"mine": MINE | {"source": ""}}}, "devices.mine.source: "),
        (
            {"devices": {"mine": {key: MINE[key] for key in MINE if key != "memory_bytes"}}},
            "devices.mine.memory_bytes: is required",
        ),
        ({"devices": {"mine": 3}}, "devices.mine: input should be a valid dictionary"),
        ({"device": {"mine": MINE}}, "device: unknown key (did you mean 'devices'?)"),
        ({"mixes": {"ours": {"lptop": 1.0}}}, "mixes.ours: device type 'lptop' is not known (did you mean 'laptop'?)"),
        ({"mixes": {"ours": {"laptop": 0.6}}}, "mixes.ours: shares must add up to 1, got 0.6"),
        ({"mixes": {"ours": {"laptop": -1}}}, "mixes.ours.laptop: input should be greater than 0, got -1"),
        ("devices: [1", "line 1: not valid YAML"),
        ("[]", "expected a mapping of settings, got list"),
        ("", "expected a mapping of settings, got NoneType"),
    ],
)
def test_a_mistake_in_a_profile_is_one_line(tmp_path, content, words, capsys) -> None:
    path, config = written(tmp_path, content), tmp_path / "config.yaml"
    config.write_text(dump(tiny_experiment(fleet={"profiles": str(path)})), encoding="utf-8")
    assert cli(["fleet", "show", str(config)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"raffm-ray: fleet.profiles: {path}")
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_missing_profile_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"fleet.profiles: .*nowhere.yaml: no such file"):
        prepare(tiny_experiment(fleet={"profiles": str(tmp_path / "nowhere.yaml")}))


def test_numbers_with_an_exponent_are_numbers(tmp_path) -> None:
    text = yaml.safe_dump({"devices": {"mine": MINE}}).replace("1000000000.0", "1.5e9")
    assert load_profiles(written(tmp_path, text)).devices["mine"].flops_per_second == 1.5e9


# What a round costs

AMOUNTS = st.just(0.0) | st.floats(1, 1e15)
"""Of FLOPs or bytes: none, or at least one."""


@given(AMOUNTS, AMOUNTS)
def test_the_roofline_is_the_slower_of_computing_and_memory(flops, traffic) -> None:
    seconds = compute_seconds(DEVICE, Workload(flops, traffic))
    computing, moving = flops / 5e8, traffic / 5e7
    assert seconds == pytest.approx(max(computing, moving))
    ridge = DEVICE.flops_per_second / DEVICE.memory_bytes_per_second  # FLOPs a byte (Williams et al. 2009)
    if flops > 1.001 * ridge * traffic:
        assert seconds == compute_seconds(DEVICE, Workload(flops, 0)) >= compute_seconds(DEVICE, Workload(0, traffic))
    if flops < 0.999 * ridge * traffic:
        assert seconds == compute_seconds(DEVICE, Workload(0, traffic)) > compute_seconds(DEVICE, Workload(flops, 0))


@given(st.floats(1, 1e12), st.floats(1, 1e12), st.floats(0, 1e6), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_rounds_cost_is_the_sum_of_its_parts(flops, traffic, dispatches, down, up) -> None:
    cost = device_cost(DEVICE, Workload(flops, traffic, dispatches), down, up)
    assert cost.compute_seconds == pytest.approx(compute_seconds(DEVICE, Workload(flops, traffic)) + 1e-3 * dispatches)
    assert cost.phase_seconds[0] == pytest.approx(0.5 + down / 5e5 if down else 0)
    assert cost.phase_seconds[2] == pytest.approx(0.5 + up / 5e4 if up else 0)
    assert cost.seconds == pytest.approx(cost.compute_seconds + cost.transfer_seconds)
    assert cost.energy_joules == pytest.approx(10 * cost.compute_seconds + 2 * cost.transfer_seconds)
    assert (cost.bytes_down, cost.bytes_up) == (down, up)
    silent = device_cost(DEVICE.model_copy(update={"radio_watts": 0.0}), Workload(flops, traffic, dispatches), down, up)
    assert silent.energy_joules == 10 * silent.compute_seconds  # control: the radio is what differs
    assert (silent.energy_joules < cost.energy_joules) == bool(down or up)


def test_smaller_plans_and_smaller_batches_cost_as_expected(prepared) -> None:
    setup = prepared.setup
    plans = device_type_plans(setup, plain(prepared))
    work = [training_work(setup.costs(plan), 64, 16) for plan in plans.values()]
    for smaller, larger in pairwise(work):
        assert smaller.flops < larger.flops
        assert smaller.traffic_bytes < larger.traffic_bytes
    full = setup.costs(Plan())
    halved = training_work(full, 64, 8)
    assert halved.flops == training_work(full, 64, 16).flops  # control: FLOPs do not depend on the batch
    assert halved.traffic_bytes - training_work(full, 64, 16).traffic_bytes == 4 * full.step_traffic_bytes
    assert halved.dispatches == 8 * full.tensors == 8 * len(setup.architecture.shapes)


# Work


def report_of(client: int, plan: int, examples: int, seen: dict[int, int], calibrated: int = 0) -> Report:
    return Report(
        client=client,
        plan=plan,
        examples=examples,
        steps=0,
        loss=1.0,
        seconds=0.0,
        refused=True,
        forward_backward=tuple(sorted(seen.items())),
        calibrated=calibrated,
    )


def test_expected_work_is_what_is_reported(prepared) -> None:
    setup = prepared.setup
    for prefix in ("none", "smallest"):
        chosen = replace(setup, strategy=replace(setup.strategy, prefix=prefix))
        work = begin_round(chosen, plain(prepared))
        job = max(work.jobs, key=lambda job: job.plan)
        examples = 37
        seen = {job.plan: examples} | ({0: examples} if prefix == "smallest" else {})
        plans = work.context.plans
        expected = expected_work(chosen, plans[job.plan], plans[: job.plan], examples)
        assert reported_work(chosen, work.context, report_of(job.client, job.plan, examples, seen)) == pytest.approx(expected)
        assert expected.dispatches == pytest.approx(
            sum(3 * setup.costs(plans[one]).tensors for one in seen)
        )  # steps of 16, 16 and 5


def test_expected_draws_are_means(prepared) -> None:
    setup = prepared.setup
    plans = list(device_type_plans(setup, plain(prepared)).values())
    own, smaller = plans[-1], plans[:-1]
    flops = {}
    for prefix in ("none", "random", "one"):
        chosen = replace(setup, strategy=replace(setup.strategy, prefix=prefix))
        flops[prefix] = expected_work(chosen, own, smaller, 16).flops / 16
    each = [setup.costs(plan).training_flops for plan in smaller]
    assert flops["none"] == setup.costs(own).training_flops
    assert flops["random"] == pytest.approx(flops["none"] + np.mean(each))
    assert flops["one"] == pytest.approx(np.mean([*each, flops["none"]]))


def test_calibration_is_charged(prepared) -> None:
    setup = prepared.setup
    work = begin_round(setup, plain(prepared))
    work = replace(work, context=replace(work.context, statistic="fisher"))
    job = work.jobs[0]
    without = report_of(job.client, job.plan, 20, {job.plan: 20})
    charged = replace(without, calibrated=8)
    more, less = (reported_work(setup, work.context, one) for one in (charged, without))
    assert more.flops == training_flops(setup, work.context, charged) > less.flops == training_flops(setup, work.context, without)
    assert more.traffic_bytes > less.traffic_bytes


def test_a_users_device_reaches_budgets_and_records(tmp_path) -> None:
    def row_with(**changes: float):
        path = written(tmp_path, {"devices": {"mine": MINE | changes}})
        fleet = {"profiles": str(path), "shares": {"mine": 1.0, "raspberry_pi_4": 0, "v100": 0}, "budgets": {}}
        prepared = prepare(tiny_experiment(fleet=fleet, salience={"metric": "l2"}))
        setup = prepared.setup
        assert setup.budgets == {"mine": Budget(memory_bytes=MINE["memory_bytes"] * 0.25)}
        work = begin_round(setup, plain(prepared))
        visit = work.visits[0]
        costs = setup.costs(work.context.plans[visit.job.plan])
        done = reported_work(setup, work.context, visit.report)
        expected = device_cost(setup.devices["mine"], done, costs.bytes, costs.bytes)
        row = client_row(setup, work, visit, visit.report)
        assert (row.device, row.round_seconds, row.energy_joules) == ("mine", expected.seconds, expected.energy_joules)
        return row

    assert row_with(latency_seconds=9.0).round_seconds == pytest.approx(row_with().round_seconds + 2 * 8.5)


# Too small


def test_a_fleet_whose_every_device_is_too_small_is_one_line() -> None:
    names = ("raspberry_pi_4", "raspberry_pi_5", "laptop", "jetson_agx_orin", "v100")
    tiny = {name: {"params": 110 + number} for number, name in enumerate(names)}
    with pytest.raises(UserError) as error:
        prepare(tiny_experiment(fleet={"budgets": tiny}))
    message = str(error.value)
    assert message.startswith("every device type of this fleet is below the smallest subnetwork: raspberry_pi_4: params ")
    assert all(f"{name}: params " in message and f" > {tiny[name]['params']}" in message for name in names)
    assert len(message.splitlines()) == 1


def test_control_one_device_that_is_large_enough_changes_the_error() -> None:
    budgets = {name: {"params": 100} for name in ("raspberry_pi_4", "raspberry_pi_5", "laptop", "jetson_agx_orin")} | {
        "v100": {"params": 1.0}
    }
    with pytest.raises(UserError, match=r"^device type raspberry_pi_4: the budget is below the smallest subnetwork: params"):
        prepare(tiny_experiment(fleet={"budgets": budgets}))


# Commands


@pytest.fixture
def config(tmp_path, monkeypatch) -> str:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr("raffm_ray.preparation.pretraining.pretrain", started)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(dump(tiny_experiment()), encoding="utf-8")
    return str(path)


def test_show_names_every_device_type_and_writes_nothing(config, capsys, tmp_path) -> None:
    before = set(tmp_path.rglob("*"))
    assert cli(["fleet", "show", config]) == 0
    told = capsys.readouterr().out
    for name in ("raspberry_pi_4", "raspberry_pi_5", "laptop", "jetson_agx_orin", "v100"):
        assert told.count(name) == 3  # its plan, its costs, its widths
    assert max(len(line) for line in told.splitlines() if "laptop" in line or "───" in line) <= 80
    assert "params <= " in told
    assert "(40%)" in told
    assert "ranked by 'l1' of the weights before any training; the run's 'outputs' picks" in told
    assert set(tmp_path.rglob("*")) == before
    assert cli(["fleet", "show", config, "--salience.metric", "l2"]) == 0
    assert "ranked by 'l2' of the weights before any training\n" in capsys.readouterr().out


def test_show_shows_a_fleet_that_cannot_calibrate_and_warns(config, capsys) -> None:
    half = {name: {"params": 0.6} for name in ("raspberry_pi_4", "raspberry_pi_5", "laptop", "jetson_agx_orin", "v100")}
    assert cli(["fleet", "show", config, "--fleet.budgets", yaml.safe_dump(half, default_flow_style=True)]) == 0
    told = capsys.readouterr().out
    assert "warning: this experiment cannot run as it is: salience.metric 'outputs' is calibrated by clients" in told
    assert told.count("laptop") == 3
    assert cli(["fleet", "show", config]) == 0
    assert "warning" not in capsys.readouterr().out  # control


def test_rows_keep_budgets_and_leave_out_who_takes_no_part(prepared) -> None:
    setup, state = prepared.setup, provisional_ranking(prepared)
    rows = device_type_rows(setup, state, 20)
    assert [row.name for row in rows] == list(setup.budgets)
    assert sum(row.clients for row in rows) == setup.experiment.clients.count
    assert all(setup.budgets[row.name].allows(row.costs) for row in rows)
    assert rows[0].costs.params < rows[-1].costs.params == setup.costs(Plan()).params
    assert rows[0].budget == budget_in_words(setup.budgets["raspberry_pi_4"], setup.costs(Plan()))
    nobody = replace(setup, strategy=replace(setup.strategy, train=lambda view, budget, client: None))
    assert {(row.plan, row.costs, row.cost) for row in device_type_rows(nobody, state, 20)} == {(None, None, None)}


def test_widths_are_of_kept_layers(prepared) -> None:
    architecture = prepared.setup.architecture
    layers = next(iter(architecture.layout.layer_axes))
    names = [name for name in architecture.layout.axes if name.endswith("/ffn")]
    assert widths(architecture, Plan())["ffn"] == "40"
    assert widths(architecture, Plan({names[0]: np.arange(8)}))["ffn"] == "8 40x2"
    assert widths(architecture, Plan({names[0]: np.arange(8), layers: np.arange(1, 3)}))["ffn"] == "40"
    assert widths(architecture, Plan({layers: np.arange(1, 3)}))[layers] == "2"
    assert (in_runs([4, 4, 4, 2]), in_runs([4, 4]), in_runs([1, 2, 1])) == ("4x3 2", "4", "1 2 1")


def test_budgets_in_words() -> None:
    full = prepare(tiny_experiment()).setup.costs(Plan())
    assert budget_in_words(Budget(params=full.params / 2), full) == f"params <= {full.params / 2:,.0f} (50%)"
    assert budget_in_words(Budget(memory_bytes=2e9), full) == "memory_bytes <= 2.0 GB (all fits)"
    assert budget_in_words(Budget(), full) == "none"


def test_what_is_measured_is_a_profile(tmp_path) -> None:
    stages: list[str] = []
    few = ((vit(8, 1, 1), "grey", 2, (1.0,), (1, 2)), (vit(16, 1, 1), "grey", 4, (1.0,), (1,)))
    device = measure(None, stages.append, 0.0, few, 0, lambda: Host(round_seconds=0.1))
    assert len(stages) == 2
    assert device.overlap == 0
    assert device.host is not None
    assert device.host.round_seconds == 0.1
    assert device.sustained == 1
    assert "power 15 W (--watts)" in device.source
    assert load_profiles(written(tmp_path, profile_text("here", device))).devices == {"here": device}
    assert "--watts" not in measure(7.5, stages.append, 0.0, few, 0, Host).source
    assert torch.get_num_threads() >= 1


def test_calibrate_prints_or_writes_a_profile_and_compares(config, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "raffm_ray.fleet.command.measure", lambda watts, progress: DEVICE.model_copy(update={"power_watts": watts or 15.0})
    )
    assert cli(["fleet", "calibrate", "--watts", "30"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["devices"]["this_machine"]["power_watts"] == 30
    monkeypatch.setattr("raffm_ray.fleet.command.STEP_SECONDS", 0.0)
    out = tmp_path / "here.yaml"
    assert cli(["fleet", "calibrate", config, "--local.batch_size", "4", "--out", str(out), "--name", "here"]) == 0
    told = capsys.readouterr().out
    assert load_profiles(out).devices["here"].memory_bytes == 1e9
    assert "measured / estimated" in told
    assert "batches of 4" in told
    assert "100%" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "fleet: name one (known: calibrate, show)"),
        (["shwo"], "fleet: 'shwo' is not one of them (did you mean 'show'? known: calibrate, show)"),
        (["show"], "fleet show: expected the path of a YAML file"),
        (["show", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["calibrate", "--watts", "-3"], "--watts: expected a positive number, got '-3'"),
        (["calibrate", "--watts", "much"], "--watts: expected a positive number, got 'much'"),
        (["calibrate", "--name", "a b"], "--name: expected letters"),
        (["calibrate", "--outt", "x"], "fleet calibrate: '--outt' is not a flag of it (did you mean '--out'?)"),
        (["calibrate", "--out", "config.yaml"], "--out config.yaml: is there already"),
        (["calibrate", "--out", "nowhere/x.yaml"], "--out nowhere/x.yaml: its folder is not there"),
        (["calibrate", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_a_mistake_in_a_command_is_one_line_before_anything_is_measured(config, arguments, words, monkeypatch, capsys) -> None:
    monkeypatch.setattr("raffm_ray.fleet.command.measure", lambda *_: pytest.fail("measured"))
    assert cli(["fleet", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
