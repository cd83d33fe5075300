"""A run that is interrupted, wherever it is, ends with the records, the summary and the model of one that is not."""

import io
import itertools
import json
import os
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from conftest import tiny_experiment
from interruptions import MOMENTS, Interrupted, die_writing, go
from outcomes import outcome, without_real
from PIL import Image
from processes import marked, shared_memory, wait_for
from quick import RICH, quick
from rich.console import Console

import raffm_ray.runs.loop
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import locked
from raffm_ray.cli.main import main as cli
from raffm_ray.clients.local_training import one_thread
from raffm_ray.deployment.trained_model import of_run
from raffm_ray.reports.run_picture import runs_of
from raffm_ray.runs import checkpoint
from raffm_ray.runs.checkpoint import ARRAYS, MANIFEST
from raffm_ray.runs.loop import Environment
from raffm_ray.runs.reader import START
from raffm_ray.runs.recorder import Recorder
from raffm_ray.runs.resuming import experiment_digest, experiment_in
from raffm_ray.runs.simulation import completed, resume, simulate
from raffm_ray.settings.loading import dump, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    go(folder, **RICH)
    return outcome(folder)


def test_control_another_seed_leaves_something_else(undisturbed, out) -> None:
    go(out, **RICH, seed=1)
    other = outcome(out)
    assert all(other[name] != undisturbed[name] for name in undisturbed if name not in ("checkpoints", "config.json"))


@pytest.mark.parametrize("seed", range(4))
def test_interrupted_anywhere_again_and_again(undisturbed, seed, out) -> None:
    rng, interruptions = random.Random(seed), 0
    while not (out / "summary.json").is_file():
        MOMENTS.interrupt(out, rng.randint(1, 90))  # going on from the last round to the end takes fewer
        try:
            go(out, **RICH)
        except Interrupted:
            interruptions += 1
        finally:
            MOMENTS.folder = None
    assert interruptions >= 3
    go(out, **RICH)
    assert outcome(out) == undisturbed


def interrupt(monkeypatch: pytest.MonkeyPatch, place: str, call: int, **changes: Any) -> None:
    """Lets a run go until something is called for that time."""
    target, name = place.rsplit(".", 1)
    real, calls = getattr(pkgutil.resolve_name(target), name), itertools.count(1)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise Interrupted
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(place, interrupted)
        with pytest.raises(Interrupted):
            go(**changes)


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("raffm_ray.runs.recorder.Recorder.add", 3),  # before a round's records
        ("raffm_ray.runs.recorder.write_atomically", 7),  # after its own record, before its clients'
        ("raffm_ray.runs.checkpoint.write", 3),  # after its records, before its checkpoint
        ("raffm_ray.runs.checkpoint.write_arrays", 3),  # within the checkpoint
        ("raffm_ray.basics.files.sync", 5),  # before it has its name
        ("raffm_ray.runs.checkpoint._places", 3),  # after it, before the oldest is removed
        ("raffm_ray.runs.recorder.save_file", 1),  # within the final model
        ("raffm_ray.runs.recorder.write_json", 1),  # before the summary
    ],
)
def test_interrupted_at_every_kind_of_moment(undisturbed, place, call, out, monkeypatch) -> None:
    interrupt(monkeypatch, place, call, folder=out, **RICH)
    assert not (out / "summary.json").exists()
    go(out, **RICH)
    assert outcome(out) == undisturbed


@pytest.mark.parametrize("number", [1, 2, 4])
def test_killed_in_the_middle_of_a_checkpoint_while_the_next_round_trains(undisturbed, number, out, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        die_writing(patched, out, number)
        with pytest.raises(Interrupted):
            go(out, **RICH)
        MOMENTS.folder = None
    places = out / "checkpoints"
    assert [path.name for path in places.glob(".round-*")] == [f".round-{number - 1:06d}.tmp"]  # rounds begin with 0
    assert checkpoint.rounds(places) == list(range(number - 2, max(-1, number - 4), -1))
    go(out, **RICH)
    assert outcome(out) == undisturbed


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its third round, after its records."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "raffm_ray.runs.checkpoint.write", 4, folder=folder, **RICH)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["round-000001", "round-000002"]
    return folder


@pytest.fixture
def copy(halfway, out) -> Path:
    shutil.copytree(halfway, out)
    return out


def goes_on(folder: Path, **changes: Any) -> str:
    """Runs on; returns what was said."""
    console = Console(record=True, file=io.StringIO(), width=400)
    with one_thread(), locked(folder):
        prepared, start, pool = quick(**{**RICH, **changes})
        completed(prepared, start, folder, Environment(pool, console))
    return console.export_text()


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("round-*"))


def test_a_damaged_checkpoint_is_not_used_and_that_is_said(undisturbed, copy) -> None:
    (newest(copy) / ARRAYS).write_bytes(b"")
    said = goes_on(copy)
    assert "round-000002: damaged, the one before it is used" in said
    assert "goes on after round 1" in said
    assert outcome(copy) == undisturbed


@pytest.mark.parametrize("part", ["clients", "evaluations"])
def test_a_damaged_record_is_written_again(undisturbed, part, copy) -> None:
    record = copy / part / "round-000002.parquet"
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    assert "records up to round 2 are missing or damaged, the checkpoint before is used" in goes_on(copy)
    assert outcome(copy) == undisturbed


def test_without_any_whole_checkpoint_there_is_one_clear_error(copy) -> None:
    for place in (copy / "checkpoints").iterdir():
        (place / MANIFEST).unlink()
    with pytest.raises(UserError, match="cannot go on: none of its checkpoints is whole with the records that belong to it"):
        goes_on(copy)


def test_control_another_parameter_leaves_something_else(undisturbed, copy) -> None:
    place = newest(copy)
    kept = checkpoint.read(place)
    kept.state.parameters[0] += 1e-3
    checkpoint.write(place.parent, kept, keep=2)
    goes_on(copy)
    other = outcome(copy)
    differing = {name for name in undisturbed if other[name] != undisturbed[name]}
    assert {"model.safetensors", "summary", "tensorboard", "rounds/round-000003.parquet"} <= differing
    assert not differing & {"rounds/round-000002.parquet", "shares"}


def test_without_checkpoints_a_run_begins_again(undisturbed, out, monkeypatch) -> None:
    changes = {**RICH, "checkpoint": {"every": 0}}
    interrupt(monkeypatch, "raffm_ray.runs.recorder.Recorder.complete", 3, folder=out, **changes)
    assert not list((out / "checkpoints").iterdir())
    assert "no checkpoint was written: the run begins again" in goes_on(out, **changes)
    assert outcome(out) == {**undisturbed, "checkpoints": repr(["final"])}


def test_a_checkpoint_every_other_round(undisturbed, out, monkeypatch) -> None:
    changes = {**RICH, "checkpoint": {"every": 2, "keep": 1}}
    interrupt(monkeypatch, "raffm_ray.runs.recorder.Recorder.finish", 1, folder=out, **changes)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["round-000002"]
    assert "goes on after round 2" in goes_on(out, **changes)
    assert outcome(out) == undisturbed


def test_other_versions_are_told(copy, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "versions", lambda: {"torch": "9.9", "numpy": "1"})
    assert " is 9.9 now" in goes_on(copy)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"local": {"learning_rate": 2e-3}}, "config.yaml"),
        ({"task": {"validation": 20, "split_seed": 1}}, "config.yaml"),
        ({"pool": {"block_clients": 2}}, "config.yaml"),
    ],
)
def test_another_experiment_does_not_go_on(copy, changes, what) -> None:
    before = outcome_of_files(copy)
    with pytest.raises(UserError, match=f"{what} is not what it was when the run began"):
        goes_on(copy, **changes)
    assert outcome_of_files(copy) == before


@pytest.mark.parametrize("name", ["task.data", "clients.partition", "fleet.profiles", "clock.trace"])
def test_other_data_does_not_go_on(copy, name, monkeypatch) -> None:
    real = raffm_ray.runs.loop.origin_of
    monkeypatch.setattr("raffm_ray.runs.loop.origin_of", lambda prepared: real(prepared) | {name: "another"})
    with pytest.raises(UserError, match=f"{name} is not what it was when the run began"):
        goes_on(copy)


def test_another_start_does_not_go_on(copy) -> None:
    prepared, start, pool = quick(**RICH)
    with pytest.raises(UserError, match="model is not what it was when the run began"):
        completed(prepared, start + 1, copy, Environment(pool, Console(quiet=True)))


def outcome_of_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REALLY: dict[str, Any] = {
    "clients": {"per_round": 3},
    "local": {"steps": 1},
    "evaluation": {"sizes": 0},
    "baselines": ("full", "heterofl"),
}
"""A run of real training, with baselines."""


@pytest.fixture(scope="module")
def really(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("really") / "run"
    simulate(tiny_experiment(**REALLY), folder)
    return folder


@pytest.mark.parametrize("call", [2, 5, 9])  # of a round's end: in the strategy, in the first baseline, in the last one
def test_a_run_with_baselines_goes_on_where_it_stopped(really, call, out, monkeypatch) -> None:
    real, calls = Recorder.complete, itertools.count(1)

    def interrupted(*arguments: Any) -> None:
        if next(calls) == call:
            raise Interrupted
        real(*arguments)

    monkeypatch.setattr(Recorder, "complete", interrupted)
    with pytest.raises(Interrupted):
        simulate(tiny_experiment(**REALLY), out)
    done = sum(len(list(folder.glob("*.parquet"))) for folder in out.rglob("rounds"))
    assert done == call - 1
    summary = resume(out)
    assert next(calls) == 9 + 2  # every round was completed once, but for the interrupted one
    assert outcome(out) == outcome(really)
    assert without_real(summary) == without_real(json.loads((really / "summary.json").read_text()))


def test_a_finished_run_says_so_and_stays_as_it_is(really, out, monkeypatch, capsys) -> None:
    shutil.copytree(really, out)
    before = outcome_of_files(out)
    monkeypatch.setattr("raffm_ray.runs.simulation.prepare", lambda _: pytest.fail("nothing is left to do"))
    console = Console(record=True, file=io.StringIO())
    assert resume(out, console=console) == json.loads((out / "summary.json").read_text())
    assert "all rounds are done, nothing is trained" in " ".join(console.export_text().split())
    assert outcome_of_files(out) == before
    assert cli(["resume", str(out)]) == 0


def test_baselines_that_are_missing_are_not_run_on_other_data(really, out, tmp_path) -> None:
    shutil.copytree(really, out)
    summary = json.loads((out / "summary.json").read_text())
    del summary["baselines"]["heterofl"]
    (out / "summary.json").write_text(json.dumps(summary | {"made_from": summary["made_from"] | {"task.data": "another"}}))
    with pytest.raises(UserError, match="task.data is not what it was when the run began"):
        resume(out)
    (out / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(out / "baselines" / "heterofl")
    resume(out)
    assert outcome(out) == outcome(really)


def test_data_that_changed_is_refused_before_any_training(tmp_path, out, monkeypatch) -> None:
    profiles = tmp_path / "profiles.yaml"
    text = (ROOT / "raffm_ray" / "devices" / "profiles.yaml").read_text()
    profiles.write_text(text)
    fleet = tiny_experiment().fleet.model_dump() | {"profiles": str(profiles)}
    experiment = tiny_experiment(**{**REALLY, "baselines": (), "fleet": fleet})
    monkeypatch.setattr(Recorder, "finish", lambda *_: (_ for _ in ()).throw(Interrupted))
    with pytest.raises(Interrupted):
        simulate(experiment, out)
    before = outcome_of_files(out)
    laptop = text.index("laptop:")
    speed = text.index("memory_bytes:", laptop)
    profiles.write_text(f"{text[:speed]}memory_bytes: 1.25e+9 #{text[speed:]}")
    monkeypatch.setattr("raffm_ray.runs.simulation.starting", lambda *_: pytest.fail("it must be seen before"))
    with pytest.raises(UserError, match="fleet.profiles is not what it was when the run began"):
        resume(out)
    assert outcome_of_files(out) == before


def pictures(folder: Path, changed: bool = False) -> Path:
    rng = np.random.default_rng(0)
    for row in range(60):
        place = folder / "train" / "ab"[row % 2] / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8) ^ np.uint8(changed and row == 7)).save(place)
    return folder


def test_a_run_goes_on_and_is_deployed_with_its_files_in_another_place(tmp_path, out, monkeypatch) -> None:
    """Its data, of which one bit may not be another, and its profiles."""
    here, there = tmp_path / "profiles.yaml", tmp_path / "moved.yaml"
    text = (ROOT / "raffm_ray" / "devices" / "profiles.yaml").read_text()
    here.write_text(text)
    fleet = tiny_experiment().fleet.model_dump() | {"profiles": str(here)}
    task = {"name": "image_classification", "data": str(pictures(tmp_path / "data")), "public": 10}
    finish = Recorder.finish
    monkeypatch.setattr(Recorder, "finish", lambda *_: (_ for _ in ()).throw(Interrupted))
    with pytest.raises(Interrupted):
        simulate(tiny_experiment(**{**REALLY, "baselines": (), "fleet": fleet, "task": task}), out)
    here.rename(there)
    (tmp_path / "data").rename(tmp_path / "moved")
    profiles, data = ["--fleet.profiles", "moved.yaml"], ["--task.data", str(tmp_path / "moved")]
    changed = ["--task.data", str(pictures(tmp_path / "changed", changed=True))]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="profiles.yaml: no such file"):
        resume(out, data)
    with pytest.raises(UserError, match="data: no such file or folder"):
        resume(out, profiles)
    with pytest.raises(UserError, match="task.data is not what it was when the run began"):
        resume(out, [*profiles, *changed])
    other = tmp_path / "other.yaml"
    laptop = text.index("memory_bytes:", text.index("laptop:"))
    other.write_text(f"{text[:laptop]}memory_bytes: 1.25e+9 #{text[laptop:]}")
    with pytest.raises(UserError, match="fleet.profiles is not what it was when the run began"):
        resume(out, [*data, "--fleet.profiles", str(other)])
    monkeypatch.setattr(Recorder, "finish", finish)
    assert resume(out, [*data, *profiles])["rounds"] == 2
    with pytest.raises(UserError, match="data: no such file or folder"):
        of_run(out, profiles)
    with pytest.raises(UserError, match="task.data is not what it was when the run began"):
        of_run(out, [*profiles, *changed])
    assert of_run(out, [*profiles, *data]).state.round == 2


def test_only_settings_that_change_no_result_may_be_others(copy, capsys) -> None:
    assert cli(["resume", str(copy), "--clients.count", "9"]) == 2
    assert "--clients.count: a run goes on as it began; only pool.backend" in capsys.readouterr().err
    for words in (
        ["--rounds=2"],
        ["--pool.workers", "1", "--rounds=2"],
        ["--pool.workers=1", "--seed", "3"],
        ["--pool.worker=1"],
    ):
        assert cli(["resume", str(copy), *words]) == 2
        assert f"{words[-1] if '=' in words[-1] else words[-2]}".split("=")[0] in capsys.readouterr().err
    assert cli(["resume", str(copy / "nothing")]) == 2
    assert "no run here to go on with (config.yaml is missing)" in capsys.readouterr().err
    assert cli(["resume"]) == 2
    capsys.readouterr()
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1", 1))
    assert cli(["resume", str(copy)]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "config.yaml is not what it was when the run began" in error


def test_a_run_goes_on_elsewhere(undisturbed, copy) -> None:
    """On hardware that is divided or placed otherwise: no result depends on it."""
    elsewhere = {"device": "cpu", "gpu_memory_bytes": 8e9, "gpus_per_worker": 0, "backend": "in_process"}
    go(copy, **{**RICH, "pool": {**RICH.get("pool", {}), **elsewhere}})
    assert outcome(copy) == undisturbed


@pytest.mark.parametrize(
    "before", ["FREE_AT_FIRST", "FREE_WITHOUT_PLACES", "FREE_SINCE_PLUGINS", "FREE_BEFORE_EACH_CLIENT", "FREE_BEFORE_SMALLER"]
)
def test_a_checkpoint_of_a_version_with_fewer_free_settings_goes_on(undisturbed, copy, before, monkeypatch) -> None:
    from raffm_ray.runs import resuming

    text = (copy / "config.yaml").read_text()
    early, now = (experiment_digest(experiment_in(copy), free) for free in (getattr(resuming, before), resuming.FREE))
    assert early != now
    real = checkpoint.read
    monkeypatch.setattr(
        checkpoint, "read", lambda place: replace(real(place), origin={**real(place).origin, "config.yaml": early})
    )
    go(copy, **RICH)
    assert (copy / "config.yaml").read_text() == text
    assert outcome(copy) == undisturbed


def test_a_run_from_before_texts_were_joined_still_cuts_them(tmp_path) -> None:
    """Control: a run of today says what it does, and an experiment that says nothing joins texts."""
    config, text = tmp_path / "config.yaml", dump(tiny_experiment())
    for said, packs in ((text, True), (text.replace("  pack: true\n", ""), False)):
        config.write_text(said)
        assert experiment_in(tmp_path).task.pack == packs
    assert load(config).task.pack


def test_a_run_from_before_words_were_clients_own_goes_on_with_the_whole_table(tmp_path) -> None:
    """Control: a run of today says what it does."""
    config, text = tmp_path / "config.yaml", dump(tiny_experiment())
    assert "vocabulary: default\n" in text
    for said, rows in ((text, "default"), (text.replace("  vocabulary: default\n", ""), "whole")):
        config.write_text(said)
        assert experiment_in(tmp_path).strategy.vocabulary == rows


def test_a_run_from_before_label_skew_was_a_setting_goes_on_without(tmp_path) -> None:
    """Control: a run of today says what it does."""
    config, text = tmp_path / "config.yaml", dump(tiny_experiment(local={"label_skew": "balanced_batches"}))
    assert "  label_skew: balanced_batches\n" in text
    for said, skew in ((text, "balanced_batches"), (text.replace("  label_skew: balanced_batches\n", ""), "ignore")):
        config.write_text(said)
        assert experiment_in(tmp_path).local.label_skew == skew


def test_a_run_that_is_not_finished_has_a_report_so_far_and_a_way_to_go_on(copy, capsys) -> None:
    """But one that did not say when it began what it measures has none."""
    assert runs_of(copy, unfinished=True)["raffm"][1]["unfinished"] == experiment_in(copy).rounds
    config = copy.parent / "tiny.yaml"
    config.write_text(dump(tiny_experiment()))
    assert cli(["run", str(config), "--out", str(copy)]) == 2
    assert f"nothing is overwritten; raffm-ray resume {copy} goes on" in capsys.readouterr().err
    (copy / START).unlink()
    assert cli(["report", str(copy)]) == 2
    told = capsys.readouterr().err
    assert f"{copy}: not finished, and start.json cannot be read" in told
    assert f"raffm-ray resume {copy} goes on" in told


def started(arguments: list[str], mark: str = "") -> subprocess.Popen[str]:
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAFFM_TEST_MARK": mark}
    return subprocess.Popen(
        [sys.executable, "-m", "raffm_ray.cli", *arguments],
        env={**os.environ, **settings},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_killed_terminated_and_interrupted(tmp_path, out, monkeypatch) -> None:
    """On Ray with one worker, then in process, then in this one: a run may go on wherever it is."""
    experiment = tiny_experiment(rounds=40, **{**REALLY, "baselines": ()}, pool={"backend": "ray", "workers": 1})
    config = tmp_path / "tiny.yaml"
    config.write_text(dump(experiment))

    folder = Path(mkdtemp(prefix="r-", dir="/tmp"))  # short: Ray's sockets are in it
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    process = started(["run", str(config), "--out", str(out)], "killed")
    wait_for((out / "checkpoints" / "round-000002").is_dir)
    assert len(list(folder.iterdir())) == 1  # control
    with pytest.raises(UserError, match="another process is at work in it"):
        resume(out)
    assert cli(["resume", str(out)]) == 2
    process.kill()
    process.communicate()
    wait_for(lambda: not any("Worker" in name for name in marked("killed")))  # Ray's own agents take a minute

    for number, code, options in ((signal.SIGTERM, 143, []), (signal.SIGINT, 130, ["--pool.backend", "in_process"])):
        last = max(int(path.name[6:]) for path in (out / "checkpoints").glob("round-*"))
        process = started(["resume", str(out), *options], "ended")
        wait_for((out / "checkpoints" / f"round-{last + 2:06d}").is_dir)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == code, error
        assert error.strip().splitlines()[-1] == f"raffm-ray: interrupted; raffm-ray resume {out} goes on"
        assert "Traceback" not in error
        assert "goes on after round" in error
        wait_for(lambda: not marked("ended"))
        assert not list(folder.iterdir())  # nor what the killed one left
        assert {path.name for path in out.iterdir() if path.name.startswith(".")} == {".lock"}

    folder.rmdir()
    wait_for(lambda: not shared_memory())
    assert not (out / "summary.json").exists()
    resume(out, ["--pool.backend", "in_process"])
    simulate(load(config, ["--pool.backend", "in_process"]), tmp_path / "undisturbed")
    here, there = outcome(out), outcome(tmp_path / "undisturbed")
    assert here == there
