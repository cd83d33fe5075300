"""Which attention runs: the rule against its measurements, what it depends on, and that either attention is the same function."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import outputs, tiny_experiment
from realistic_models import REALISTIC, cut_module

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics import machine
from raffm_ray.cli.main import main as cli
from raffm_ray.clients.local_training import computing
from raffm_ray.models.architecture import architecture_of
from raffm_ray.models.attention import _rounded_mask
from raffm_ray.models.attention_choice import LONGEST_EAGER, MEASURED, AttentionShape, attention_for, shape_of, with_attention
from raffm_ray.models.model_config import parse_config
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs.hints import slow_precision
from raffm_ray.runs.simulation import simulate
from raffm_ray.subnetworks.costs import costs_of

SLOWER = 1.15
"""How much slower than the other the chosen attention may have been measured: some of it is noise."""


def wrong_rows(rule) -> list[AttentionShape]:
    return [one.shape for one in MEASURED if getattr(one, rule(one.shape)) > SLOWER * min(one.sdpa, one.eager)]


def test_the_rule_takes_what_was_measured_to_be_faster() -> None:
    assert {one.shape.precision for one in MEASURED} == {"float32", "bfloat16"}
    assert wrong_rows(attention_for) == []
    for always in ("sdpa", "eager"):  # control: no single attention would do
        assert wrong_rows(lambda shape, always=always: always)


def test_the_rule_goes_by_precision_positions_and_device() -> None:
    shape = AttentionShape("cpu", "bfloat16", False, 64, 32)
    assert attention_for(shape) == "eager"
    others = ({"precision": "float32"}, {"positions": LONGEST_EAGER + 1}, {"device": "cuda"})
    assert [attention_for(shape._replace(**change)) for change in others] == ["sdpa"] * 3
    assert [attention_for(shape._replace(drops=True, **change)) for change in others] == ["eager", "eager", "sdpa"]


def test_a_shape_is_the_model_s_largest() -> None:
    cifar = architecture_of(parse_config(REALISTIC["cifar"]), "image_classification")
    assert shape_of(cifar, "float32", "cpu") == ("cpu", "float32", False, 65, 32)
    dropping = architecture_of(parse_config(REALISTIC["cifar_dropping"]), "image_classification")
    assert shape_of(dropping, "float32", "cpu").drops
    summed_up = architecture_of(parse_config(REALISTIC["t5"]), "sequence_to_sequence", 64, 32)
    assert shape_of(summed_up, "bfloat16", "cuda") == ("cuda", "bfloat16", False, 64, 16)


def test_memory_knows_the_attention_and_work_does_not() -> None:
    architecture = architecture_of(parse_config(REALISTIC["cifar"]), "image_classification")
    fused, plain = (costs_of(with_attention(architecture, one, "float32", "cpu"), Plan(), 8) for one in ("sdpa", "eager"))
    scores = 8 * 4 * 3 * 3 * 65 * 65  # examples, bytes, layers, heads
    assert plain.memory_bytes - fused.memory_bytes == scores
    assert replace(plain, memory_bytes=0, activation_bytes=0, example_traffic_bytes=0) == replace(
        fused, memory_bytes=0, activation_bytes=0, example_traffic_bytes=0
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_either_attention_is_the_same_function_in_bfloat16(architecture, model, inputs, attention) -> None:
    exact = outputs(model, inputs).detach()
    with computing("bfloat16", "cpu"):
        rounded = outputs(cut_module(architecture, model, Plan(), attention).eval(), inputs).float().detach()
    assert bool(rounded.isfinite().all())
    assert 0 < float((rounded - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_a_mask_of_the_least_number_stays_finite_when_it_is_rounded() -> None:
    mask = torch.tensor([0.0, torch.finfo(torch.float32).min])
    assert _rounded_mask(mask, torch.float32) is mask
    rounded = _rounded_mask(mask, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert rounded.isfinite().all()
    assert not mask.bfloat16().isfinite().all()  # control


def test_a_run_says_which_attention_ran_and_auto_is_the_one_of_the_rule(out) -> None:
    runs, small = {}, {"evaluation": {"sizes": 0}, "model": {"pretrain": {"epochs": 1}}}
    for precision in ("float32", "bfloat16"):
        for attention in ("auto", "sdpa", "eager"):
            local = {"attention": attention, "precision": precision}
            runs[precision, attention] = simulate(
                tiny_experiment(local={**local, "steps": 1}, rounds=1, clients={"count": 4, "per_round": 2}, **small),
                out / f"{precision}-{attention}",
            )
    named = {key: (one["attention"], one["precision"]) for key, one in runs.items()}
    assert named["float32", "auto"] == ("sdpa", "float32")
    assert named["bfloat16", "auto"] == ("eager", "bfloat16")
    assert named["float32", "eager"] == ("eager", "float32")
    bits = {key: one["params_sha256"] for key, one in runs.items()}
    assert bits["float32", "auto"] == bits["float32", "sdpa"] != bits["float32", "eager"]
    assert bits["bfloat16", "auto"] == bits["bfloat16", "eager"] != bits["bfloat16", "sdpa"]


def test_the_attention_does_not_depend_on_the_processor(monkeypatch) -> None:
    found = []
    for fast in (True, False):
        monkeypatch.setattr("raffm_ray.runs.hints.fast_bfloat16", lambda fast=fast: fast)
        experiment = tiny_experiment(local={"precision": "bfloat16"})
        found.append((prepare(experiment).setup.architecture.attention, slow_precision(experiment)))
    (attention, nothing), (same, line) = found
    assert attention == same == "eager"
    assert nothing is None
    assert line is not None
    assert "local.precision: bfloat16 pays on processors with AMX, and on those of AMD with AVX512-BF16" in line
    assert slow_precision(tiny_experiment()) is None
    assert slow_precision(tiny_experiment(local={"precision": "bfloat16"}, pool={"device": "cuda"})) is None


@pytest.mark.parametrize(
    ("line", "fast"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16", True),
        ("flags\t\t: fpu avx512f avx512_bf16", False),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16", True),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16", False),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f", False),
        ("Features\t: fp asimd bf16", False),
    ],
)
def test_instructions_for_bfloat16_are_read_from_the_processor_s_features(line, fast, tmp_path, monkeypatch) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor\t: 0\n{line}\n", encoding="utf-8")
    monkeypatch.setattr(machine, "CPUINFO", str(told))
    assert machine.fast_bfloat16() is fast


def test_bench_attention_measures_both_in_both_precisions(capsys) -> None:
    assert cli(["bench", "attention", "--quick", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {row["precision"] for row in content["rows"]} == {"float32", "bfloat16"}
    assert all(set(row["milliseconds"]) == {"sdpa", "eager"} for row in content["rows"])
    assert all(value > 0 for row in content["rows"] for value in row["milliseconds"].values())
    assert sum(row["what"].startswith("a training step of") for row in content["rows"]) == 6
    assert cli(["bench", "attention", "--jso"]) == 2
    assert "did you mean '--json'" in capsys.readouterr().err
