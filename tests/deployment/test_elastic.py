"""A sorted supernet: every prefix of its file is the subnetwork that is deployed for a budget, and nothing behind it is looked at."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import architecture_case, tiny_experiment

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import TooSmallError, UserError
from raffm_ray.basics.seeding import generator
from raffm_ray.deployment.model_card import supernet_card
from raffm_ray.deployment.supernet import FILE, entry_levels, levels_of, open_supernet, write_supernet
from raffm_ray.deployment.trained_model import TrainedModel, of_run
from raffm_ray.models.architecture import build
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.loading import parse
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import Cutting, plan_of, ranked_list
from raffm_ray.subnetworks.salience import METRICS, rank
from raffm_ray.subnetworks.standalone import load_standalone, save_standalone


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("elastic") / "run"
    simulate(tiny_experiment(), folder)
    return of_run(folder)


def test_every_prefix_is_what_is_deployed_to_the_bit(trained: TrainedModel, tmp_path: Path) -> None:
    architecture = trained.prepared.setup.architecture
    write_supernet(trained, tmp_path)
    supernet, full = open_supernet(tmp_path), costs_of(architecture, Plan())
    assert trained.state.norms
    for fraction in (0.4, 0.5, 0.7, 0.9, 1.0):
        plan = trained.plan(Budget(params=fraction * full.params))
        module, read = supernet.read({"params": fraction})
        assert read == costs_of(architecture, plan).bytes
        expected = build(architecture, trained.cut(plan), plan).state_dict()
        assert all(torch.equal(values, expected[name]) for name, values in module.state_dict().items())


@pytest.fixture(scope="module")
def adapted_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("elastic") / "run"
    budgets = {
        name: {"adapter_params": share} for name, share in (("raspberry_pi_4", 0.34), ("raspberry_pi_5", 0.5), ("laptop", 0.5))
    }
    changes: dict[str, Any] = {"model": {"adapters": {"rank": 3, "alpha": 7.0}}, "fleet": {"budgets": budgets}}
    values = tiny_experiment(**changes).model_dump(exclude_unset=True)
    del values["extraction"]
    simulate(parse(values), folder)
    return of_run(folder)


def test_ranks_are_chosen_afterwards_and_merged_as_what_is_deployed(adapted_run: TrainedModel, tmp_path: Path) -> None:
    setup = adapted_run.prepared.setup
    (tmp_path / "all").mkdir()
    path = write_supernet(adapted_run, tmp_path / "all")
    supernet, full = open_supernet(path.parent), costs_of(setup.architecture, Plan())
    assert supernet.architecture.adapters == replace(setup.architecture.adapters, dropout=0.0)
    assert 'read({"adapter_params": 0.5})' in supernet_card("a run", supernet)
    found = {}
    for fraction in (0.34, 0.5, 0.8, 1.0):
        plan = adapted_run.plan(Budget(adapter_params=fraction * full.adapter_params))
        module, read = supernet.read({"adapter_params": fraction})
        assert read == 4 * costs_of(setup.architecture, plan).params
        (tmp_path / str(fraction)).mkdir()
        save_standalone(tmp_path / str(fraction), setup.architecture, plan, adapted_run.cut(plan))
        expected = load_standalone(tmp_path / str(fraction), setup.architecture.head).state_dict()
        assert all(torch.equal(values, expected[name]) for name, values in module.state_dict().items())
        assert set(expected) == {name for name in setup.architecture.shapes if "lora" not in name}
        found[fraction] = next(values for name, values in module.state_dict().items() if name.endswith("k_proj.weight"))
    assert not torch.equal(found[0.34], found[1.0])
    described = json.loads((path.parent / "elastic.json").read_text())
    for change, told in (
        ({"rank": 9000}, "rank"),
        ({"modules": ["none"]}, "none"),
        ({"scale": None}, "its adapters"),
        ({"scale": 1.0}, ""),
    ):
        broken = {**described, "adapters": {**described["adapters"], **change}}
        (path.parent / "elastic.json").write_text(json.dumps(broken))
        if told:
            with pytest.raises(UserError, match=told):
                open_supernet(path.parent)
        else:  # the control: another scale is another model
            other = open_supernet(path.parent).read({"adapter_params": 1.0})[0].state_dict()
            assert not all(torch.equal(values, expected[name]) for name, values in other.items())


def test_nothing_behind_the_prefix_is_looked_at(trained: TrainedModel, tmp_path: Path) -> None:
    path = write_supernet(trained, tmp_path)
    supernet = open_supernet(tmp_path)
    module, read = supernet.read({"params": 0.5})
    before = {name: values.clone() for name, values in module.state_dict().items()}
    whole = path.read_bytes()
    total = costs_of(supernet.architecture, Plan()).bytes
    start = len(whole) - total
    for end, same in ((start + read, True), (start + read - 4, False)):
        path.write_bytes(whole[:end] + b"\xff" * (len(whole) - end))
        after = open_supernet(tmp_path).read({"params": 0.5})[0].state_dict()
        assert all(torch.equal(values, before[name]) for name, values in after.items()) is same


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", "question_answering"),
        ("gpt2", "causal_language_modelling"),
        ("llama", "sequence_classification"),
        ("t5", "sequence_to_sequence"),
    ],
)
def test_prefixes_are_nested_in_every_kind_of_family(name: str, head: str) -> None:
    architecture = architecture_case(name, head)
    layout, rng = architecture.layout, generator(0, "elastic")
    scores = METRICS["random"].score(layout, {}, {}, rng)
    cutting = Cutting({"groups": 1, "heads": 1, "qk": 2, "vo": 2, "ffn": 8, "residual": 4}, {})
    units, orders = ranked_list(architecture, scores, cutting), rank(scores)
    floors = {axis: cutting.floor(axis, layout) for axis in cutting.axes(layout)}
    levels = entry_levels(architecture, levels_of(orders, floors, units), Plan())
    for length in np.linspace(0, len(units), 7).astype(int):
        plan = plan_of(floors | dict(units[:length]), orders, layout)
        assert (levels <= length).sum() == costs_of(architecture, plan).params
        inside = entry_levels(architecture, levels_of(orders, floors, units), plan)
        assert inside.max() <= length
        assert np.array_equal(np.sort(inside), np.sort(levels[levels <= length]))


def test_what_has_no_list_or_is_damaged_is_one_line(trained: TrainedModel, tmp_path: Path) -> None:
    other = trained.prepared.setup.experiment.model_copy(
        update={"extraction": trained.prepared.setup.experiment.extraction.model_copy(update={"kind": "common_rate"})}
    )
    prepared = replace(trained.prepared, setup=replace(trained.prepared.setup, experiment=other))
    with pytest.raises(UserError, match="no ranked list"):
        write_supernet(TrainedModel(prepared, trained.state, ""), tmp_path)
    with pytest.raises(UserError, match="no supernet"):
        open_supernet(tmp_path)
    path = write_supernet(trained, tmp_path)
    with pytest.raises(TooSmallError):
        open_supernet(tmp_path).read({"params": 0.01})
    described = json.loads((tmp_path / "elastic.json").read_text())
    for change, told in (
        ({"units": [["0/ffn", 1000]]}, "0/ffn"),
        ({"floors": {}}, "not of its model"),
        ({"schema": 7}, "schema"),
        ({"units": 3}, "no supernet"),
    ):
        (tmp_path / "elastic.json").write_text(json.dumps({**described, **change}))
        with pytest.raises(UserError, match=told):
            open_supernet(tmp_path)
    (tmp_path / "elastic.json").write_text(json.dumps(described))
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for damaged in (
        b"",
        whole[:7],
        whole[: 8 + header // 2],
        b"\xff" * 8 + whole[8:],
        whole[: 8 + header + 16],
        whole.replace(b"F32", b"F16"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="no supernet"):
            open_supernet(tmp_path)
    assert path.name == FILE


def test_a_device_fetches_its_part_alone(trained: TrainedModel, tmp_path: Path) -> None:
    whole = write_supernet(trained, tmp_path).read_bytes()
    front = json.loads((tmp_path / "elastic.json").read_text())["front_bytes"]
    expected = open_supernet(tmp_path).read({"params": 0.5})[0].state_dict()
    (tmp_path / FILE).write_bytes(whole[:front])
    supernet = open_supernet(tmp_path)
    needed = supernet.file_bytes({"params": 0.5})
    assert front < needed < 0.7 * len(whole)
    assert supernet.file_bytes({"params": 1.0}) == len(whole)
    for size in (front, needed - 1):  # controls
        (tmp_path / FILE).write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"ends after {size:,} bytes, and {needed:,} are needed"):
            supernet.read({"params": 0.5})
    (tmp_path / FILE).write_bytes(whole[:needed])
    found = open_supernet(tmp_path).read({"params": 0.5})[0].state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in found.items())


def test_what_is_read_is_saved_and_loaded_again(trained: TrainedModel, tmp_path: Path) -> None:
    path = write_supernet(trained, tmp_path)
    assert path.stat().st_mode == (tmp_path / "elastic.json").stat().st_mode
    module, _ = open_supernet(tmp_path).read({"params": 0.5})
    module.save_pretrained(tmp_path / "saved")
    again = load_standalone(tmp_path / "saved", trained.prepared.task.head).state_dict()
    assert all(torch.equal(values, again[name]) for name, values in module.state_dict().items())
