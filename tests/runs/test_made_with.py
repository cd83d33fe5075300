"""What a run was made with is recorded at every start, and tells nothing of who made it, or where."""

import json
import os
import platform
import sys
from pathlib import Path

import pytest
from conftest import tiny_experiment

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.machine import processor
from raffm_ray.cli.main import main
from raffm_ray.runs.made_with import MADE_WITH, command_line, read_starts, record_start
from raffm_ray.settings.loading import dump


def private_in(text: str, machine: str = platform.node(), home: str = str(Path.home())) -> list[str]:
    """What of this machine a text names: its network name, its user's folder, and the one that this runs in."""
    return [word for word in (machine, home, os.getcwd()) if len(word) > 1 and word in text]


def test_every_start_of_a_run_is_recorded(tmp_path, monkeypatch) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump(tiny_experiment(rounds=1, baselines=("full",), model={"pretrain": {"epochs": 1}})))
    words = ["run", str(config), "--local.steps", "1", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/raffm-ray", *words])
    assert main(words) == 0
    (start,) = read_starts(tmp_path / "run")
    assert start["command"] == "raffm-ray run tiny.yaml --local.steps 1 --out run"
    assert (start["done"], start["processor"], start["gpus"]) == (0, processor(), [])
    assert start["version"].startswith("raffm-ray ")
    assert start["python"] == platform.python_version()
    assert list(start["libraries"]) == ["torch", "transformers", "numpy", "ray"]
    assert start["cores"] >= 1
    assert len(read_starts(tmp_path / "run" / "baselines" / "full")) == 1
    kept = (tmp_path / "run" / MADE_WITH).read_text()
    assert not private_in(kept)
    assert str(tmp_path) not in kept
    assert main(["resume", str(tmp_path / "run")]) == 0, "it is finished: nothing is started"
    assert len(read_starts(tmp_path / "run")) == 1
    record_start(tmp_path / "run", 7, "cpu")
    assert [one["done"] for one in read_starts(tmp_path / "run")] == [0, 7]


def test_control_a_text_that_names_the_machine_is_found() -> None:
    assert private_in("made on thebox", machine="thebox") == ["thebox"]
    assert private_in("--out /disk/ann/x", home="/disk/ann") == ["/disk/ann"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "experiments/digits.yaml", "--rounds", "5"], "raffm-ray run experiments/digits.yaml --rounds 5"),
        (["run", "/disk/ann/a b.yaml", "--out=/disk/ann/x"], "raffm-ray run '.../a b.yaml' --out=.../x"),
        (
            ["run", "x.yaml", "--task.data", '{"a": "/disk/ann/a.csv"}'],
            """raffm-ray run x.yaml --task.data '{"a": ".../a.csv"}'""",
        ),
        (["run", "x.yaml", "--out", "s3://bucket/runs/a"], "raffm-ray run x.yaml --out s3://bucket/runs/a"),
        (["resume", "https://ann:secret@host/run"], "raffm-ray resume https://***@host/run"),
        (["run", "~/x.yaml", "--fleet.shares", "{v100: 1/2}"], "raffm-ray run .../x.yaml --fleet.shares '{v100: 1/2}'"),
    ],
)
def test_a_command_is_told_without_folders_of_the_machine(words, told) -> None:
    for program in ("/usr/bin/raffm-ray", "/lib/raffm_ray/cli/__main__.py"):
        assert command_line([program, *words]) == told
    assert command_line(["/usr/bin/pytest", *words]) == ""
    assert command_line([]) == ""


def test_a_damaged_record_is_named_and_a_missing_one_is_none(tmp_path) -> None:
    assert read_starts(tmp_path) == []
    for content in ("{", "[]", '{"starts": 3}', '{"starts": [{}]}', json.dumps({"starts": [{"libraries": 3}]})):
        (tmp_path / MADE_WITH).write_text(content)
        with pytest.raises(UserError, match="not what a run was made with"):
            read_starts(tmp_path)
