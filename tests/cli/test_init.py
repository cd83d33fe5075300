"""`raffm-ray init`: what it sees, what it chooses, and that what it writes runs."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY, small_tokenizer
from PIL import Image
from transformers import AutoModel

from raffm_ray.cli.main import main as cli
from raffm_ray.cli.starter import _length
from raffm_ray.data.inspection import columns_of, roles_of, task_of
from raffm_ray.data.sources import open_splits, split_of
from raffm_ray.models.model_config import parse_config
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.loading import load

QUICK = [
    "--rounds",
    "1",
    "--pool.backend",
    "in_process",
    "--evaluation.sizes",
    "0",
    "--salience.clients",
    "1",
    "--model.pretrain.epochs",
    "1",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def reviews(path: Path, rows: int = 120, ending: str = "csv") -> None:
    rng = random.Random(0)
    table = [
        {
            "id": row,
            "review": f"the {rng.choice(['bread', 'soup'])} of day {row} was {opinion}",
            "opinion": opinion,
            "shop": f"shop {row % 6}",
        }
        for row, opinion in enumerate(rng.choices(["good", "bad"], k=rows))
    ]
    if ending == "csv":
        lines = [",".join(table[0]), *(",".join(map(str, row.values())) for row in table)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("\n".join(json.dumps(row) for row in table) + "\n")


def pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, grey in (("light", 200), ("dark", 50)):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(rng.normal(grey, 20, (18, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def small_model(folder: Path) -> None:
    config = TINY["bert"] | {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    AutoModel.from_config(parse_config(config)).save_pretrained(folder)
    small_tokenizer(["the", "bread", "soup", "of", "day", "was", "good", "bad"]).save_pretrained(folder)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_texts_with_names_of_classes_and_a_group_run(here, ending, capsys) -> None:
    (here / "data").mkdir()
    reviews(here / "data" / f"reviews.{ending}", ending=ending)
    small_model(here / "small")
    assert cli(["init", f"data/reviews.{ending}", "--model", "small", "--out", "data/mine.yaml"]) == 0
    told = capsys.readouterr().out
    assert "2 different: " in told
    assert "text_classification" in told
    values = yaml.safe_load((here / "data" / "mine.yaml").read_text())
    assert values["task"]["data"] == f"reviews.{ending}"
    assert values["task"]["columns"] == {"text": "review", "label": "opinion", "group": "shop"}
    assert values["model"]["pretrained"] == "../small"
    assert (values["clients"]["count"], values["clients"]["partition"]) == (6, "natural")
    if ending == "csv":
        assert cli(["run", "data/mine.yaml", *QUICK, "--out", "run"]) == 0
        config = yaml.safe_load((here / "run" / "config.yaml").read_text())
        assert config["task"]["data"] == str(here / "data" / "reviews.csv")
        assert config["model"]["pretrained"] == str(here / "small")


def test_a_folder_of_images_runs(here, capsys) -> None:
    pictures(here / "pictures")
    assert cli(["init", "pictures"]) == 0
    assert "16 pixels" in capsys.readouterr().out
    text = (here / "experiment.yaml").read_text()
    values = yaml.safe_load(text)
    assert values["task"] | {"public": 0} == {
        "name": "image_classification",
        "data": "pictures",
        "columns": {"image": "image", "label": "label"},
        "held_out": 0.25,
        "public": 0,
    }
    assert "vit-base" in text
    assert simulate(load("experiment.yaml", QUICK), here / "run")["rounds"] == 1


def test_nothing_is_overwritten(here, capsys) -> None:
    reviews(here / "reviews.csv")
    (here / "experiment.yaml").write_text("mine")
    assert cli(["init", "reviews.csv"]) == 2
    assert "--out experiment.yaml: exists; nothing is overwritten" in capsys.readouterr().err
    assert (here / "experiment.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.csv"], "task.data: nowhere.csv: no such file or folder"),
        (["reviews.csv", "--task", "text_clasification"], "(did you mean 'text_classification'?)"),
        (["reviews.csv", "--task", "question_answering"], "no column looks like the question of question_answering"),
        (["reviews.csv", "--out", "nowhere/mine.yaml"], "--out nowhere/mine.yaml: its folder is not there"),
        (["reviews.csv", "--model", "./nothing"], "model.pretrained: "),
        (["numbers.csv"], "no kind of task fits its columns: a (number), b (number)"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(here, words, told, capsys) -> None:
    reviews(here / "reviews.csv")
    (here / "numbers.csv").write_text("a,b\n" + "".join(f"{row / 7},{row / 3}\n" for row in range(50)))
    (here / "nothing").mkdir()
    assert cli(["init", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
    assert not list(here.rglob("*.yaml"))


@pytest.mark.parametrize(
    ("heading", "row", "roles", "task"),
    [
        (
            "sentence1,sentence2,label",
            "one text {n},another text {n},{c}",
            {"text": "sentence1", "text_pair": "sentence2", "label": "label"},
            "text_classification",
        ),
        ("comment,score", "some words {n} and more,{f}", {"text": "comment", "label": "score"}, "text_regression"),
        (
            "text,user_id,topic",
            "some words {n} and more,{g},{c}",
            {"text": "text", "label": "topic", "group": "user_id"},
            "text_classification",
        ),
        (
            "remark,sentiment",
            "one of {c} texts that repeat,very much of {c}",
            {"text": "remark", "label": "sentiment"},
            "text_classification",
        ),
        ("body", "some words {n} and more", {"text": "body"}, "language_modelling"),
        ("source,target", "some words {n},other words {n}", {"source": "source", "target": "target"}, "sequence_to_sequence"),
    ],
)
def test_columns_are_taken_for_what_they_look_like(here, heading, row, roles, task) -> None:
    lines = [row.format(n=n, c=n % 3, f=n / 7 + 0.01, g=n % 11) for n in range(60)]
    (here / "data.csv").write_text("\n".join([heading, *lines]) + "\n")
    splits, key = open_splits("data.csv", None)
    columns = columns_of(split_of(splits, key, "train", "task.train"))
    assert roles_of(columns) == roles
    assert task_of(roles, columns) == task


def test_texts_without_a_model_get_one_that_is_here_or_the_name_of_one(here, monkeypatch) -> None:
    reviews(here / "reviews.csv")
    monkeypatch.setattr("raffm_ray.cli.starter.find_spec", lambda _: None)
    assert cli(["init", "reviews.csv"]) == 0
    text = (here / "experiment.yaml").read_text()
    assert yaml.safe_load(text)["model"]["pretrained"] == "distilbert-base-uncased"
    assert "fetched from the hub" in text
    assert "roberta-base" in text


def test_a_split_without_labels_does_not_evaluate(here) -> None:
    """A folder as competitions give it. Control: with labels it does."""
    for labels, held_out in ((False, 0.25), (True, "test")):
        folder = here / str(labels)
        folder.mkdir()
        reviews(folder / "train.csv")
        lines = (folder / "train.csv").read_text().splitlines()
        (folder / "test.csv").write_text("\n".join(lines if labels else [line.split(",")[0] for line in lines]) + "\n")
        assert cli(["init", str(folder), "--out", f"{labels}.yaml"]) == 0
        written = yaml.safe_load((here / f"{labels}.yaml").read_text())
        assert written["task"]["held_out"] == held_out
        assert written["name"] == str(labels), "a name that YAML would read as a truth value is in quotes"


def test_a_language_model_keeps_the_groups_and_has_comments_of_its_own(here) -> None:
    reviews(here / "reviews.csv")
    small_model(here / "small")
    for task, others in (("language_modelling", "gpt2, Qwen/Qwen2.5-0.5B, or the folder"), ("text_classification", "small")):
        assert (
            cli(["init", "reviews.csv", "--task", task, "--out", f"{task}.yaml", *(["--model", "small"] * (others == "small"))])
            == 0
        )
        text = (here / f"{task}.yaml").read_text()
        values = yaml.safe_load(text)
        assert values["task"]["columns"]["group"] == "shop"
        assert values["clients"]["partition"] == "natural"
        assert ("new head" in text) is (task == "text_classification")  # control
        assert ("tokens of a block" in text) is (task == "language_modelling")
        assert others in text
    text = (here / "language_modelling.yaml").read_text()
    assert "pretrained: distilgpt2 " in text
    assert "others: gpt2" in text


def test_a_label_is_no_group(here) -> None:
    lines = [f"some words {n} and more,{'abcdef'[n % 6]}" for n in range(60)]
    for name, roles in (("category", {"text": "text"}), ("store", {"text": "text", "group": "store"})):
        (here / f"{name}.csv").write_text("\n".join([f"text,{name}", *lines]) + "\n")
        splits, key = open_splits(f"{name}.csv", None)
        assert roles_of(columns_of(split_of(splits, key, "train", "task.train")), labelled=False) == roles


@pytest.mark.parametrize(
    ("texts", "length"), [([[97] * 19 + [900]], 128), ([[10] * 20], 32), ([[4000] * 9], 512), ([[20] * 9, [20] * 9], 64)]
)
def test_most_texts_are_kept_whole_and_no_more(texts, length) -> None:
    assert _length(texts, 512) == length
    assert _length(texts, 96) == min(96, length)
