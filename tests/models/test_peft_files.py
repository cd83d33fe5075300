"""Adapters in the files of `peft`: with the library itself on the other side."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, TINY, architecture_case, outputs, tiny_experiment
from cut_models import logits, named, shaken
from plans import random_cut
from torch import Tensor, nn

import raffm_ray
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.errors import UserError
from raffm_ray.models.adapters.lora import factors
from raffm_ray.models.adapters.peft_files import CONFIG, WEIGHTS, read_adapters, write_adapters
from raffm_ray.models.architecture import Architecture, adapted, build, new_model
from raffm_ray.settings.adapters import AdapterSettings

peft = pytest.importorskip("peft", reason="the library peft is not installed")
SETTINGS = AdapterSettings(rank=4, alpha=6.0)


@pytest.fixture(params=CASES, ids="-".join)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return adapted(architecture_case(*request.param), SETTINGS)


@pytest.fixture
def model(architecture: Architecture) -> nn.Module:
    return shaken(architecture)


def stock(architecture: Architecture, tensors: dict[str, Tensor]) -> nn.Module:
    """The model without adapters, with the frozen parameters and a head of zeros."""
    full = new_model(architecture_case(*_case(architecture)), 0).eval()
    frozen = {name: values for name, values in tensors.items() if name in architecture.frozen_shapes}
    missing = full.load_state_dict(frozen, strict=False)
    assert not missing.unexpected_keys
    return full


def _case(architecture: Architecture) -> tuple[str, str]:
    return next(case for case in CASES if architecture_case(*case).config is architecture.config)


def is_transposed(architecture: Architecture) -> bool:
    return architecture.config.model_type == "gpt2"


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "unequal ranks"])
def test_peft_computes_what_is_computed_here(architecture, model, inputs, cut, rng, tmp_path) -> None:
    plan = random_cut(architecture.layout, rng, ("rank",) if cut else ())
    tensors = take_all(named(model), architecture.layout, plan)
    kept = {name: values for name, values in tensors.items() if name in architecture.trained_shapes}
    write_adapters(tmp_path, kept, architecture.adapters, "base", is_transposed(architecture))
    opened = peft.PeftModel.from_pretrained(stock(architecture, named(model)), str(tmp_path)).eval()
    expected = logits(build(architecture, tensors, plan).eval(), inputs)
    found = outputs(opened, inputs).detach()
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    # Control: the same files with another alpha.
    described = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**described, "lora_alpha": 1.0, "alpha_pattern": {}}))
    other = peft.PeftModel.from_pretrained(stock(architecture, named(model)), str(tmp_path)).eval()
    assert (outputs(other, inputs).detach() - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"value": 5, "v_proj": 5}, "alpha_pattern": {"value": 12}}], ids=str
)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_what_peft_saved_is_what_begins(name, options, tmp_path) -> None:
    plain = architecture_case(name, "sequence_classification")
    targets = ["query", "value"] if name == "bert" else ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=targets, modules_to_save=["classifier" if name == "bert" else "score"], **options
    )
    theirs = peft.get_peft_model(new_model(plain, 0).eval(), config)
    with torch.no_grad():
        for key, values in theirs.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                values.normal_(std=0.3)
    theirs.eval().save_pretrained(str(tmp_path))
    folder = read_adapters(str(tmp_path))
    architecture = adapted(plain, folder.settings)
    tensors = {**named(new_model(plain, 0)), **folder.tensors}
    assert {key: tuple(values.shape) for key, values in tensors.items()} == dict(architecture.shapes)
    ours = build(architecture, {key: tensors[key] for key in architecture.shapes}, Plan()).eval()
    words = {"input_ids": torch.randint(2, 50, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    assert torch.allclose(logits(ours, words), outputs(theirs, words).detach(), atol=1e-5)
    for module in architecture.adapters.modules:  # ranks that were filled up can still be trained
        down, up = factors(module)
        assert bool((tensors[down].abs().sum(1) + tensors[up].abs().sum(0) > 0).all())
        assert len(tensors[down].unique(dim=0)) == len(tensors[down])  # and no two of them alike


def experiment(model: Path, **adapters: Any) -> Any:
    return tiny_experiment(
        rounds=2,
        model={"pretrained": str(model), "config": {}, "adapters": adapters, "pretrain": {"epochs": 0}},
        fleet={"budgets": {name: {"adapter_params": 1.0} for name in tiny_experiment().fleet.budgets}},
        evaluation={"sizes": 0},
        extraction={"steps": {"rank": 1}},
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    ViTForImageClassification(
        ViTConfig(**{key: value for key, value in TINY["vit"].items() if key != "model_type"})
    ).save_pretrained(folder)
    return folder


def test_a_folder_of_peft_goes_in_and_comes_out_better(base, tmp_path) -> None:
    from transformers import ViTForImageClassification

    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        ViTForImageClassification.from_pretrained(base),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]),
    )
    theirs.save_pretrained(str(tmp_path / "in"))
    found = raffm_ray.simulate(experiment(base, pretrained=str(tmp_path / "in")), tmp_path / "run")
    assert found["global"] > found["start"]
    told = raffm_ray.deploy(
        tmp_path / "run", tmp_path / "out", {"adapter_params": 1.0}, formats=raffm_ray.ExportFormats(adapter=True)
    )
    assert told["plain"]  # merged, it is a model of transformers
    assert "least_trained" not in told  # as large as what was trained, which is counted without adapters too
    opened = peft.PeftModel.from_pretrained(
        ViTForImageClassification.from_pretrained(base), str(tmp_path / "out" / "adapter")
    ).eval()
    merged = ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    images = {"pixel_values": torch.randn(5, 1, 8, 8)}
    assert torch.allclose(logits(opened, images), logits(merged, images), atol=1e-5)
    assert not torch.allclose(
        logits(merged, images), logits(ViTForImageClassification.from_pretrained(base).eval(), images), atol=1e-2
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA': only LORA can be read"),
        ({"use_dora": True}, "use_dora True: only False, None can be read"),
        ({"bias": "all"}, "bias 'all': only none can be read"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights 'pissa': only True, False, gaussian",
        ),  # which changes the model itself
    ],
)
def test_adapters_of_another_kind_are_refused(change, told, tmp_path) -> None:
    architecture = adapted(architecture_case("bert", "sequence_classification"), SETTINGS)
    kept = {name: values for name, values in named(new_model(architecture, 0)).items() if name in architecture.trained_shapes}
    write_adapters(tmp_path, kept, architecture.adapters, "base", False)
    described = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(described | change))
    with pytest.raises(UserError, match=told):
        read_adapters(str(tmp_path))


def test_a_folder_that_holds_none_or_a_damaged_one_is_refused(base, tmp_path) -> None:
    with pytest.raises(UserError, match="no adapters of peft"):
        read_adapters(str(base))
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(UserError, match="no adapters of peft"):
        read_adapters(str(tmp_path))
    with pytest.raises(UserError, match=r"model.adapters.rank: is what the folder"):
        raffm_ray.simulate(experiment(base, pretrained=str(tmp_path), rank=8), tmp_path / "run")


def test_adapters_alone_need_the_pretrained_model_as_it_was(base, tmp_path, monkeypatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("tuned before it was refused")

    monkeypatch.setattr("raffm_ray.deployment.model_folder.tuned", never)
    run, formats = tmp_path / "run", raffm_ray.ExportFormats(adapter=True, tune=3)
    raffm_ray.simulate(experiment(base, rank=4).with_settings(salience={"rotation": "weights"}), run)
    with pytest.raises(UserError, match="--adapter: .* is not that of .* any more"):
        raffm_ray.deploy(run, tmp_path / "out", {"adapter_params": 1.0}, formats=formats)


def test_a_subnetwork_that_cuts_the_frozen_model_has_no_adapters_for_others(base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("raffm_ray.deployment.model_folder.tuned", None)
    wide = experiment(base, rank=4).with_settings(extraction={"steps": {"rank": 1, "ffn": 4}})
    raffm_ray.simulate(wide, tmp_path / "run")
    formats = raffm_ray.ExportFormats(adapter=True, tune=3)
    with pytest.raises(UserError, match="--adapter: the subnetwork cuts the frozen model"):
        raffm_ray.deploy(tmp_path / "run", tmp_path / "out", {"params": 0.8}, formats=formats)
