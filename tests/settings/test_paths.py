"""Paths in a file are relative to the file, paths in flags to the working directory; names stay names."""

import os
from pathlib import Path

import pytest
import yaml
from conftest import TINY

from raffm_ray.basics.errors import UserError
from raffm_ray.models.foundation import PACKAGED
from raffm_ray.settings.base import DATA, FILE, MODEL
from raffm_ray.settings.description import groups
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import load, load_recorded, parse
from raffm_ray.settings.paths import place
from raffm_ray.studies.study_settings import load_study

MODEL_CONFIG = {"config": {key: value for key, value in TINY["vit"].items() if key != "num_labels"}}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `mine` with an experiment and what it names; the working directory is another one beside it."""
    for folder in ("mine/model", "mine/pictures", "mine/owner/data", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("mine/data.csv", "mine/fleet.yaml", "mine/awake.parquet", "elsewhere/other.csv", "elsewhere/fleet.yaml"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "mine"


def written(folder: Path, **sections: object) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL_CONFIG, **sections}))
    return path


def test_every_kind_of_path_is_absolute_wherever_the_command_is(places, monkeypatch) -> None:
    path = written(
        places,
        task={"name": "text_classification", "data": "data.csv"},
        model={"pretrained": "./model", "tokenizer": "model"},
        fleet={"profiles": "fleet.yaml"},
        clock={"availability": "trace", "trace": "../mine/awake.parquet"},
    )
    expected = [str(places / name) for name in ("data.csv", "model", "model", "fleet.yaml", "awake.parquet")]
    for where, given in (
        (places.parent / "elsewhere", path),
        (places.parent, "mine/experiment.yaml"),
        (places, "experiment.yaml"),
    ):
        monkeypatch.chdir(where)
        found = load(given)
        assert [
            found.task.data,
            found.model.pretrained,
            found.model.tokenizer,
            found.fleet.profiles,
            found.clock.trace,
        ] == expected
    as_it_stands = load_recorded(path)  # control
    assert (as_it_stands.task.data, as_it_stands.model.tokenizer, as_it_stands.fleet.profiles) == (
        "data.csv",
        "model",
        "fleet.yaml",
    )


def test_flags_are_relative_to_the_working_directory(places) -> None:
    path = written(places, task={"name": "text_classification", "data": "data.csv"})
    here = Path.cwd()
    assert load(path, ["--task.data", "other.csv"]).task.data == str(here / "other.csv")
    assert load(path, ["--fleet={profiles: fleet.yaml}"]).fleet.profiles == str(here / "fleet.yaml")
    assert load(path, ["--fleet.profiles", str(places / "fleet.yaml")]).fleet.profiles == str(places / "fleet.yaml")
    assert parse({"model": MODEL_CONFIG, "fleet": {"profiles": "fleet.yaml"}}).fleet.profiles == str(here / "fleet.yaml")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("nyu-mll/glue", DATA),
        ("$RAFFM_DATA/sst2", DATA),
        ("s3://bucket/data", DATA),
        ("bert-base-uncased", MODEL),
        ("google/flan-t5-small", MODEL),
        ("all-MiniLM-L6-v2", MODEL),
    ],
)
def test_names_stay_names(places, text, kind) -> None:
    (places / "all-MiniLM-L6-v2").mkdir()
    assert place(text, places, kind, "x") == text
    assert place("fleet.yaml", places, FILE, "x") != "fleet.yaml"  # control


def test_a_folder_goes_before_a_name_on_the_hub(places) -> None:
    assert place("owner/data", places, DATA, "x") == str(places / "owner" / "data")
    assert place("owner/other", places, DATA, "x") == "owner/other"
    assert place("owner/missing.csv", places, DATA, "x") == str(places / "owner" / "missing.csv")


@pytest.mark.parametrize("text", ["missing.csv", "./owner/missing", "a/b/c", "../missing"])
def test_what_means_a_path_is_one_though_nothing_is_there(places, text) -> None:
    assert place(text, places, DATA, "x") == os.path.normpath(places / text)


def test_what_lies_in_the_working_directory_only_is_told(places) -> None:
    path = written(places, task={"name": "text_classification", "data": "other.csv"})
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value) == (
        f"task.data: other.csv is not in {places}, where this setting was read, but in the working directory: "
        "write ../elsewhere/other.csv there, or give it as --task.data other.csv"
    )
    (places / "other.csv").touch()
    assert load(path).task.data == str(places / "other.csv")  # control


def test_a_home_is_expanded(places, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(places))
    assert place("~/data.csv", Path.cwd(), DATA, "x") == str(places / "data.csv")
    assert place("~", Path.cwd(), FILE, "x") == str(places)


def test_a_study_s_paths_are_relative_to_it(places) -> None:
    written(places, task={"name": "text_classification", "data": "data.csv"})
    study = places.parent / "study.yaml"
    content = {
        "experiment": "mine/experiment.yaml",
        "settings": {"fleet": {"profiles": "mine/fleet.yaml"}},
        "space": {"task.data": ["mine/data.csv", "owner/name"], "local.learning_rate": {"low": 0.1, "high": 0.2}},
        "objectives": ["full_model"],
        "enqueue": [{"task.data": "mine/data.csv"}],
    }
    study.write_text(yaml.safe_dump(content))
    found, base = load_study(study)
    assert base.task.data == str(places / "data.csv")
    assert base.fleet.profiles == str(places / "fleet.yaml")
    assert found.space["task.data"] == [str(places / "data.csv"), "owner/name"]
    assert found.enqueue == ({"task.data": str(places / "data.csv")},)
    found, base = load_study(study, ["--experiment", "../mine/experiment.yaml", "--settings.fleet.profiles", "fleet.yaml"])
    assert base.fleet.profiles == str(Path.cwd() / "fleet.yaml")
    assert found.experiment == str(places / "experiment.yaml")


def test_every_setting_that_is_a_path_is_marked() -> None:
    marked = {
        f"{path}.{name}": field.json_schema_extra["place"]
        for path, group, _ in groups(Experiment)
        for name, field in group.model_fields.items()
        if isinstance(field.json_schema_extra, dict)
    }
    assert marked == {
        ".plugins": "file",
        "task.data": "data",
        "model.pretrained": "model",
        "model.tokenizer": "model",
        "model.adapters.pretrained": "file",
        "fleet.profiles": "file",
        "clock.trace": "file",
    }
    assert set(MODEL["names"]) == set(PACKAGED)
