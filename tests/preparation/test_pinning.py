"""Data and models from the hub are those of one commit, which is written down; local ones are known by their content."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import datasets
import huggingface_hub
import pytest
from conftest import TINY, tiny_experiment
from text_data import glue_folder

from raffm_ray.basics.errors import UserError
from raffm_ray.data.sources import content_key, open_splits
from raffm_ray.models import foundation
from raffm_ray.preparation.pinning import commit_of, pinned
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import dump, parse

FIRST, SECOND = "a" * 40, "b" * 40
CONFIG = {name: value for name, value in TINY["bert"].items() if name != "num_labels"}


class Hub:
    """Answers as the hub does: two branches of everything."""

    commits: ClassVar[dict[str | None, str]] = {None: FIRST, "main": FIRST, "new": SECOND}

    def model_info(self, name: str, revision: str | None) -> SimpleNamespace:
        return SimpleNamespace(sha=self.commits[revision])

    dataset_info = model_info


class NoHub:
    def model_info(self, name: str, revision: str | None) -> None:
        raise ConnectionError("no network")

    dataset_info = model_info


def experiment(**changes) -> Experiment:
    return parse(
        {"model": {"pretrained": "some/model", **changes.get("model", {})}, "task": {"name": "sst2", **changes.get("task", {})}}
    )


def test_the_commits_that_names_are_at_are_written_down(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    found = pinned(experiment())
    assert (found.model.revision, found.task.revision) == (FIRST, FIRST)
    assert dump(found).count(f"revision: {FIRST}") == 2
    other = pinned(experiment(model={"revision": "new"}))
    assert (other.model.revision, other.task.revision) == (SECOND, FIRST)
    monkeypatch.setattr(huggingface_hub, "HfApi", NoHub)
    assert pinned(found) == found  # a commit needs nobody's answer


def test_what_is_local_has_none(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert pinned(tiny_experiment()) == tiny_experiment()
    glue_folder(tmp_path, "sst2")
    here = experiment(task={"data": str(tmp_path)}, model={"pretrained": None, "config": CONFIG})
    assert pinned(here) == here
    with pytest.raises(UserError, match=r"task.revision: new: .* is not on the hub, and has no revisions"):
        pinned(experiment(task={"data": str(tmp_path), "revision": "new"}))
    with pytest.raises(UserError, match=r"model.revision: new: a new model is not on the hub"):
        pinned(experiment(model={"pretrained": None, "config": CONFIG, "revision": "new"}))


def test_without_a_network_it_is_what_is_stored_here(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", NoHub)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "snapshots" / SECOND / "config.json")
    )
    assert commit_of("some/model", None, "model") == SECOND
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert commit_of("some/model", None, "model") is None


def test_what_is_loaded_is_of_that_commit(monkeypatch, tmp_path) -> None:
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, revision, allow_patterns: asked.append((name, revision)) or str(tmp_path),
    )
    assert foundation.locate("some/model", "model.pretrained", FIRST) == str(tmp_path)
    assert foundation.locate("some/model", "model.pretrained") == "some/model"
    assert asked == [("some/model", FIRST)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **more: asked.append((given, more)) or {"train": [1]})
    _, key = open_splits("some/data", None, FIRST)
    assert asked[-1] == (("some/data", None), {"revision": FIRST})
    assert key != open_splits("some/data", None, SECOND)[1]


def test_a_local_file_is_known_by_its_content(tmp_path) -> None:
    """Whenever it was written, and wherever it lies; control: other content of the same length at the same time."""
    first, moved = tmp_path / "one" / "data.csv", tmp_path / "two" / "data.csv"
    for path in (first, moved):
        path.parent.mkdir()
        path.write_text("text,label\na,0\n")
    key = content_key(first)
    assert content_key(moved) == key == content_key(Path(first))
    assert content_key(first.parent) == content_key(moved.parent)
    os.utime(first, (1, 1))
    assert content_key(first) == key
    moved.write_text("text,label\na,1\n")
    os.utime(moved, (2, 2))
    assert content_key(moved) != key
