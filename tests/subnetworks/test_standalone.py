"""A deployed subnetwork is a model of its own: transformers loads it, in every family, and it answers as it did before, to the bit."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import architecture_case, outputs
from plans import random_cut
from transformers import AutoModel

import raffm_ray
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.errors import UserError
from raffm_ray.models.architecture import HEADS, Architecture, build, new_model
from raffm_ray.subnetworks.standalone import kept_of, load_standalone, plan_from, save_standalone
from raffm_ray.subnetworks.standalone_config import MODEL_TYPE

PACKAGE = Path(raffm_ray.__file__).parent
KINDS = ("groups", "heads", "qk", "vo", "ffn", "residual")


def test_a_round_trip_is_exact_in_every_family(
    architecture: Architecture, model: torch.nn.Module, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    parameters = {name: values.detach() for name, values in model.named_parameters()}
    for seed in range(3):
        plan = random_cut(architecture.layout, np.random.default_rng(seed), KINDS, layers=seed > 0) if seed < 2 else Plan()
        cut = take_all(parameters, architecture.layout, plan)
        expected = outputs(build(architecture, {name: values.clone() for name, values in cut.items()}, plan).eval(), inputs)
        first, second = tmp_path / f"{seed}", tmp_path / f"{seed}-again"
        first.mkdir()
        save_standalone(first, architecture, plan, cut)
        loaded = load_standalone(first, architecture.head)
        for module in loaded.modules():
            if hasattr(module, "config"):
                module.config.use_cache = False  # what has been through a cache is laid out otherwise, and rounds otherwise
        torch.testing.assert_close(outputs(loaded, inputs), expected, rtol=0, atol=0)
        loaded.save_pretrained(second)
        again = load_standalone(second, architecture.head)
        assert all(torch.equal(one, other) for one, other in zip(loaded.parameters(), again.parameters(), strict=True))
        torch.testing.assert_close(outputs(again, inputs), expected, rtol=0, atol=1e-5)


def test_control_another_plan_of_the_same_widths_answers_otherwise(tmp_path: Path) -> None:
    architecture = architecture_case("bert", "sequence_classification")
    model = new_model(architecture, 0).eval()
    inputs = {"input_ids": torch.arange(2, 14)[None]}
    answers = []
    for kept in (np.arange(20), np.arange(20, 40)):
        plan = Plan({"0/ffn": kept})
        folder = tmp_path / str(kept[0])
        folder.mkdir()
        save_standalone(folder, architecture, plan, take_all(dict(model.named_parameters()), architecture.layout, plan))
        answers.append(outputs(load_standalone(folder, architecture.head), inputs))
    assert not torch.equal(*answers)


@pytest.mark.parametrize(("name", "head"), [("qwen3", "causal_language_modelling"), ("t5", "sequence_to_sequence")])
def test_a_loaded_model_writes_as_before(name: str, head: str, tmp_path: Path) -> None:
    architecture = architecture_case(name, head)
    plan = random_cut(architecture.layout, np.random.default_rng(5), KINDS)
    cut = take_all(dict(new_model(architecture, 3).named_parameters()), architecture.layout, plan)
    save_standalone(tmp_path, architecture, plan, cut)
    words = torch.tensor([[5, 9, 17, 2]])
    built = build(architecture, {name: values.detach().clone() for name, values in cut.items()}, plan).eval()
    loaded = load_standalone(tmp_path, head)
    written = [one.generate(words, max_new_tokens=6, do_sample=False) for one in (built, loaded)]
    assert torch.equal(*written)


def saved_vit(folder: Path) -> None:
    """A subnetwork that transformers alone cannot load."""
    architecture = architecture_case("vit", "image_classification")
    plan = Plan({"0/ffn": np.arange(8), "layers": np.array([0, 2])})
    cut = take_all(dict(new_model(architecture, 0).named_parameters()), architecture.layout, plan)
    assert not save_standalone(folder, architecture, plan, cut)


LOAD = "model = transformers.AutoModelForImageClassification.from_pretrained(FOLDER)\nprint(type(model).__name__)\n"
SIMULATOR = sorted(
    {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    - {"__pycache__", "axes", "basics", "data", "models", "settings", "subnetworks"}
)
ABSENT = [
    "datasets",
    "jinja2",
    "matplotlib",
    "optuna",
    "pandas",
    "pyarrow",
    "pydantic",
    "ray",
    "rich",
    "scipy",
    "sklearn",
    "tensorboard",
    "tyro",
]
"""Libraries of the simulator that torch, transformers and safetensors run without."""


def test_importing_the_package_is_all_that_a_stranger_does(tmp_path: Path) -> None:
    saved_vit(tmp_path)
    told = f"import raffm_ray, transformers\nFOLDER = {str(tmp_path)!r}\n{LOAD}"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["ViTForImageClassification"], done.stderr


def test_a_model_is_loaded_where_the_simulator_and_its_libraries_are_not_installed(tmp_path: Path) -> None:
    """And transformers alone says what is missing, however the model is asked for."""
    saved_vit(tmp_path)
    absent = [*ABSENT, *(f"raffm_ray.{name}" for name in SIMULATOR)]
    told = f"""
import sys
sys.modules |= dict.fromkeys({absent!r})  # an import of such a name fails, and it is not found
import transformers
FOLDER = {str(tmp_path)!r}
for one in (transformers.AutoModelForImageClassification, transformers.ViTForImageClassification):
    try:
        one.from_pretrained(FOLDER)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
import raffm_ray
{LOAD}
try:
    raffm_ray.simulate
except ModuleNotFoundError as error:
    print(error)
import ray
"""
    shown = {**os.environ, "TRANSFORMERS_VERBOSITY": "warning"}  # other tests have turned warnings off
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=False, env=shown)
    first, second = done.stdout.splitlines()
    assert first == "ViTForImageClassification", done.stderr
    assert second.startswith("raffm_ray.simulate: ")
    assert second.endswith("install raffm-ray with all that it depends on")
    assert done.stderr.count(f"model type `{MODEL_TYPE}`") == done.stderr.count(f"model of type `{MODEL_TYPE}`") == 1
    assert "import of ray halted" in done.stderr.splitlines()[-1]  # control: what is said to be absent is


def test_folders_of_earlier_versions_are_loaded(tmp_path: Path) -> None:
    saved_vit(tmp_path)
    expected = load_standalone(tmp_path, "image_classification").state_dict()
    path = tmp_path / "config.json"
    for name, known in (("raffm_subnetwork", True), ("raffm_other", False)):
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": name}))
        if known:
            found = load_standalone(tmp_path, "image_classification").state_dict()
            assert all(torch.equal(values, expected[key]) for key, values in found.items())
        else:
            with pytest.raises(UserError, match="raffm_other"):  # control
                load_standalone(tmp_path, "image_classification")


@pytest.mark.parametrize(
    ("name", "head"), [("vit", "image_classification"), ("llama", "sequence_classification"), ("t5", "sequence_to_sequence")]
)
def test_a_loaded_model_travels_to_other_processes(name: str, head: str, tmp_path: Path) -> None:
    architecture = architecture_case(name, head)
    plan = random_cut(architecture.layout, np.random.default_rng(5), KINDS)
    save_standalone(
        tmp_path, architecture, plan, take_all(dict(new_model(architecture, 3).named_parameters()), architecture.layout, plan)
    )
    model = load_standalone(tmp_path, head)
    (tmp_path / "pickled").write_bytes(pickle.dumps(model))
    told = f"import pickle\nmodel = pickle.load(open({str(tmp_path / 'pickled')!r}, 'rb'))\nprint(type(model).__name__, sum(one.numel() for one in model.parameters()))"
    again = pickle.loads((tmp_path / "pickled").read_bytes())
    assert type(again) is type(model)
    assert all(torch.equal(values, model.state_dict()[key]) for key, values in again.state_dict().items())
    if name == "llama":  # its hooks, and the model inside it, travel too
        done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=False)
        assert done.stdout.split() == [type(model).__name__, str(sum(one.numel() for one in model.parameters()))], done.stderr
    with pytest.raises(UserError, match=f"a subnetwork with its task head: load it with {HEADS[head].__name__}"):
        AutoModel.from_pretrained(tmp_path)


def test_importing_the_package_imports_no_transformers() -> None:
    told = "import sys, raffm_ray, raffm_ray.cli.main; print('transformers' in sys.modules, 'torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.split() == ["False"] * 2
    )


def test_what_is_kept_is_enough_for_the_module() -> None:
    for name, head in (("llama", "causal_language_modelling"), ("t5", "sequence_to_sequence"), ("bert", "question_answering")):
        architecture = architecture_case(name, head)
        plan = random_cut(architecture.layout, np.random.default_rng(1), KINDS, layers=True)
        kept = json.loads(json.dumps(kept_of(architecture, plan)))
        assert kept_of(architecture, plan_from(architecture, kept)) == kept


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"subnetwork": {"0/fnn": 4}}, "0/fnn"),
        ({"subnetwork": {"0/ffn": 400}}, "0..39"),
        ({"subnetwork": {"layers": "all"}}, "configuration"),
        ({"base_model_type": "brt"}, "did you mean 'bert'"),
        ({"subnetwork": {"0/ffn": 9}}, "read"),
    ],
)
def test_a_foreign_configuration_is_refused_in_one_line(change: dict[str, object], told: str, tmp_path: Path) -> None:
    architecture = architecture_case("bert", "sequence_classification")
    plan = Plan({"0/ffn": np.arange(8)})
    save_standalone(
        tmp_path, architecture, plan, take_all(dict(new_model(architecture, 0).named_parameters()), architecture.layout, plan)
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=told):
        load_standalone(tmp_path, architecture.head)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model"):
        load_standalone(tmp_path, "sequence_classification")


def test_what_the_stock_configuration_can_say_is_a_plain_checkpoint(
    architecture: Architecture, model: torch.nn.Module, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    layout, rng = architecture.layout, np.random.default_rng(0)
    narrow = {name: rng.permutation(axis.size)[:24] for name, axis in layout.axes.items() if name.endswith("/ffn")}
    fewer = {name: np.array([0, *range(2, layout.axes[name].size)]) for name in layout.layer_axes}
    for number, (kept, plain) in enumerate(((narrow, True), (fewer, True), (narrow | {"0/ffn": np.arange(8)}, False))):
        if not kept or ("0/ffn" not in layout.axes and not plain):
            continue
        plan = Plan(kept)
        cut = take_all({name: values.detach() for name, values in model.named_parameters()}, layout, plan)
        expected = outputs(build(architecture, {name: values.clone() for name, values in cut.items()}, plan).eval(), inputs)
        folder = tmp_path / str(number)
        folder.mkdir()
        assert save_standalone(folder, architecture, plan, cut) is plain
        assert (json.loads((folder / "config.json").read_text())["model_type"] == architecture.config.model_type) is plain
        loaded = HEADS[architecture.head].from_pretrained(folder).eval()
        torch.testing.assert_close(outputs(loaded, inputs), expected, rtol=0, atol=1e-5)
