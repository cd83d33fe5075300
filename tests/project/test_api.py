"""The public names: few, all there, lazy, and enough for what the README shows."""

import subprocess
import sys

import pytest
from conftest import tiny_experiment

import raffm_ray


def test_every_public_name_is_there_and_no_other() -> None:
    for name in raffm_ray.__all__:
        assert getattr(raffm_ray, name) is not None
    assert set(raffm_ray.__all__) <= set(dir(raffm_ray))
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        raffm_ray.simulat  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    told = "import sys, raffm_ray; print([name for name in ('torch', 'ray', 'transformers', 'optuna') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_is_heard_round_by_round_from_a_path_that_is_a_text(tmp_path) -> None:
    heard = []
    summary = raffm_ray.simulate(tiny_experiment(), str(tmp_path / "run"), on_round=heard.append)
    assert [row.round for row in heard] == [0, 1, 2]
    assert heard[-1].metric == summary["full_model"]
    assert raffm_ray.resume(str(tmp_path / "run")) == summary
    image, page = raffm_ray.write_report(str(tmp_path / "run"))
    assert image.is_file()
    assert page.is_file()
