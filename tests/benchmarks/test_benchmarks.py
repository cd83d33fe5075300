"""The benchmarks run, on something small, and compare what they say they compare."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from rich.console import Console

from raffm_ray.basics.errors import UserError
from raffm_ray.benchmarks.extraction import FRACTIONS, REFERENCE, budget_of, extraction, has_reference, reference_cut
from raffm_ray.cli.main import main as cli
from raffm_ray.models.architecture import FAMILIES, architecture_of, new_model
from raffm_ray.models.model_config import parse_config
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import Cutting, longest_prefix, ranked_list
from raffm_ray.subnetworks.salience import METRICS, rank

SMALL = {key: value for key, value in TINY["vit"].items() if key != "num_labels"}
FLAGS = [
    "--task",
    "{name: digits, public: 300}",
    "--model",
    json.dumps({"config": SMALL, "pretrain": {"epochs": 8}}),
    "--pool.backend",
    "in_process",
    "--extraction.steps",
    "{heads: 1, qk: 2, vo: 2, ffn: 4}",
]


@pytest.mark.drawn
def test_extraction_measures_every_metric_both_cuts_and_both_bases(out) -> None:
    table = extraction(FLAGS, out, Console(quiet=True))
    content = json.loads((out / "extraction.json").read_text())
    rows = {(row["cut"], row["salience"], row["basis"]): row["values"] for row in content["rows"]}
    expected = {(cut, name, basis) for cut in ("ranked list", "one rate") for name in METRICS for basis in ("as trained", "SVD")}
    expected |= {("one rate", "prefix", basis) for basis in ("as trained", "SVD")} | {
        (cut, "l1", "as trained") for cut in REFERENCE
    }
    assert set(rows) == expected
    assert table.row_count == len(expected)
    assert all(len(values) == len(FRACTIONS) for values in rows.values())
    assert content["full"] > 0.5
    assert (out / "extraction.png").stat().st_size > 10_000


def reference(fraction: float) -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    architecture = architecture_of(parse_config(TINY["vit"]), "image_classification")
    model = new_model(architecture, 0).eval()
    cut = reference_cut(architecture, {name: p.detach() for name, p in model.named_parameters()}, fraction)
    return model, cut, torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_reference_s_cut_is_the_model_itself_at_full_size() -> None:
    model, cut, images = reference(1.0)
    with torch.no_grad():
        torch.testing.assert_close(cut(pixel_values=images).logits, model(pixel_values=images).logits, atol=1e-5, rtol=0)


def test_the_reference_s_cut_takes_rows_across_heads() -> None:
    model, cut, _ = reference(0.5)
    value = "vit.layers.0.attention.v_proj.weight"
    assert torch.equal(cut.get_parameter(value), model.get_parameter(value)[:12])
    assert cut.get_submodule("vit.layers.0.attention").scaling == 4**-0.5
    query = model.get_parameter("vit.layers.0.attention.q_proj.weight").view(3, 8, 24)
    assert all((row == query[0]).all(1).any() for row in cut.get_parameter("vit.layers.0.attention.q_proj.weight")[:8])


def test_fractions_are_of_the_parameters_in_layers(rng) -> None:
    architecture = architecture_of(parse_config(TINY["bert"]), "sequence_classification", 12)
    scores = METRICS["random"].score(architecture.layout, {}, {}, rng)
    cutting = Cutting({"heads": 1, "qk": 1, "vo": 1, "ffn": 1}, {})
    full = costs_of(architecture, longest_prefix(architecture, [], rank(scores), Cutting({}, {}), budget_of(architecture, 1.0)))
    inside = sum(p for name, p in sizes(architecture).items() if architecture.layout.parameters[name].layer)
    assert full.layer_params == inside
    plan = longest_prefix(
        architecture, ranked_list(architecture, scores, cutting), rank(scores), cutting, budget_of(architecture, 0.5)
    )
    assert 0.45 * inside < costs_of(architecture, plan).layer_params <= 0.5 * inside


def sizes(architecture) -> dict[str, int]:
    return {name: torch.Size(shape).numel() for name, shape in architecture.shapes.items()}


def test_a_model_that_is_too_small_for_the_smallest_fraction_is_refused_before_training(out, monkeypatch) -> None:
    monkeypatch.setattr("raffm_ray.preparation.starting_parameters.pretrained", lambda *_: pytest.fail("training started"))
    with pytest.raises(UserError, match="the budget is below the smallest subnetwork: layer_params"):
        extraction([*FLAGS, "--extraction.floors", "{ffn: 0.9, qk: 0.9, vo: 0.9, heads: 0.9}"], out, Console(quiet=True))
    assert not out.exists()


def test_help_lists_the_benchmark_s_own_defaults(capsys) -> None:
    assert cli(["bench", "extraction", "--help"]) == 0
    assert "all-MiniLM-L6-v2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama", "t5"])
def test_the_reference_s_cut_is_of_separate_projections_and_heads(name) -> None:
    head = FAMILIES[TINY[name]["model_type"]].heads[0]
    layout = architecture_of(parse_config(TINY[name]), head, 12).layout
    assert has_reference(layout) == (name in ("bert", "vit", "t5"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["extration"], "bench: 'extration' is not one of them .did you mean 'extraction'"),
        (["extraction", "--task.nmae", "x"], "task.nmae: unknown key .did you mean 'name'"),
    ],
)
def test_a_wrong_benchmark_is_one_line(words, told, capsys, tmp_path, monkeypatch) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    assert cli(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(told, error)
    assert len(error.splitlines()) == 1


def test_cuts_without_training_know_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(prepared: Any, *_: Any) -> None:
        seen.append(prepared.setup.size_specific)
        raise UserError("seen enough")

    monkeypatch.setattr("raffm_ray.benchmarks.extraction.trained", stop)
    with pytest.raises(UserError, match="seen enough"):
        extraction([*FLAGS, "--strategy.own", "[norms]"], tmp_path / "out", Console(quiet=True))
    assert seen == [()]
