"""Caches where the user's own folder cannot be written to, or nobody knows where it is."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from raffm_ray.basics.cache import LIBRARIES, cache_folder, can_be_made, lend_cache
from raffm_ray.basics.errors import UserError
from raffm_ray.data.sources import open_splits

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nobody(monkeypatch, tmp_path) -> Path:
    """A user whose home is no folder. Returns what `RAFFM_CACHE` names."""
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.write_text("")
    for name in (*LIBRARIES, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that it is as it was, whatever is set meanwhile
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAFFM_CACHE", str(cache))
    return cache


def test_libraries_are_lent_a_cache_where_the_user_s_cannot_be_written_to(nobody, monkeypatch, tmp_path) -> None:
    """unslothai/unsloth-zoo 719. Controls: a home that can be written to, and a place that the user chose."""
    monkeypatch.setenv("MPLCONFIGDIR", "chosen")
    lend_cache()
    assert os.environ["HF_HOME"] == str(nobody / "huggingface")
    assert os.environ["MPLCONFIGDIR"] == "chosen"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    lend_cache()
    assert "HF_HOME" not in os.environ


def test_a_user_without_a_home_is_told_what_names_one(nobody, monkeypatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where HOME is unset, and no entry of passwd has the user
    assert not can_be_made(Path("~/.cache"))
    lend_cache()
    assert os.environ["HF_HOME"] == str(nobody / "huggingface")
    monkeypatch.delenv("RAFFM_CACHE")
    with pytest.raises(UserError, match="HOME: this user has no home folder: RAFFM_CACHE names a folder for all caches"):
        cache_folder()


def test_a_cache_that_a_library_cannot_write_is_told_before_it_tries(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("text,label\na,0\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "~/.cache/huggingface/datasets")
    with pytest.raises(
        UserError,
        match="HF_HOME: the cache folder ~/.cache/huggingface/datasets of the .* cannot be written to: HF_HOME names another",
    ):
        open_splits("data.csv", None)
    assert [one.name for one in tmp_path.iterdir()] == ["data.csv"]


def test_data_is_read_without_a_home(nobody, tmp_path) -> None:
    """In a process of its own: libraries look where their caches are when they are imported."""
    (tmp_path / "data.csv").write_text("text,label\na,0\n")
    code = "from raffm_ray.data.sources import open_splits; print(len(open_splits('data.csv', None)[0]['train'][0]))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.stdout, told.returncode) == ("1\n", 0), told.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cache", "data.csv", "home"]
    assert (nobody / "huggingface" / "datasets").is_dir()
