"""A few of the kills of `make chaos`; and that what compares runs would notice."""

import subprocess
import sys
from pathlib import Path

import chaos
import pytest
from outcomes import digest

from raffm_ray.runs import checkpoint
from raffm_ray.runs.checkpoint import Checkpoint
from raffm_ray.runs.simulation import simulate


def test_a_raylet_and_an_actor_are_killed_and_no_bit_changes() -> None:
    """The driver's kill is in test_resume.py, hung actors are in test_hung.py."""
    command = [sys.executable, str(Path(chaos.__file__)), "--kills", "2", "--rounds", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    assert "2 of 2 kills with equal bits (1 actor, 1 raylet)" in done.stdout


def test_control_another_run_differs_before_its_end_and_after(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(chaos, "experiment_of", lambda rounds, _: chaos.tiny_experiment(rounds=rounds, checkpoint={"keep": 9}))
    undisturbed = chaos.Undisturbed(tmp_path / "undisturbed", 2)
    other = tmp_path / "other"
    same = tmp_path / "same"
    for folder, seed in ((same, 0), (other, 1)):
        with monkeypatch.context() as patched:
            patched.setattr("raffm_ray.runs.recorder.Recorder.finish", lambda *_: pytest.fail("not to its end"))
            with pytest.raises(pytest.fail.Exception):
                simulate(chaos.tiny_experiment(rounds=2, seed=seed, checkpoint={"keep": 9}), folder)
    assert chaos.differing(undisturbed, same) == []
    assert chaos.differing(undisturbed, other) == ["round-000000", "round-000001", "round-000002"]
    for folder, seed in ((tmp_path / "same-whole", 0), (tmp_path / "other-whole", 1)):
        simulate(chaos.tiny_experiment(rounds=2, seed=seed, checkpoint={"keep": 9}), folder)
    assert chaos.differing(undisturbed, tmp_path / "same-whole") == []
    assert {"model.safetensors", "summary", "rounds/round-000001.parquet"} <= set(
        chaos.differing(undisturbed, tmp_path / "other-whole")
    )


def test_a_digest_is_of_values_not_of_objects(tmp_path) -> None:
    states: list[Checkpoint] = []
    real = checkpoint.write
    try:
        checkpoint.write = lambda place, kept, *others: (states.append(kept), real(place, kept, *others))[1]
        simulate(chaos.tiny_experiment(rounds=2, checkpoint={"keep": 9}), tmp_path / "run")
    finally:
        checkpoint.write = real
    assert len({digest(one.state) for one in states}) == 3
    (tmp_path / "again").mkdir()
    checkpoint.write(tmp_path / "again", states[-1], 1)
    again = checkpoint.read(tmp_path / "again" / "round-000002").state
    assert again is not states[-1].state
    assert digest(again) == digest(states[-1].state)
    again.parameters.view(-1)[0].add_(1e-7 + float(again.parameters[0]) * 1e-6)
    assert digest(again) != digest(states[-1].state)
