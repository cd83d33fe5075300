"""A run of more rounds than it began with: to the bit that of so many rounds from the beginning, or refused."""

import io
import itertools
import json
import pkgutil
import re
import shutil
from math import floor
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_experiment
from outcomes import outcome, without_real
from quick import RICH, quick
from rich.console import Console

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main as cli
from raffm_ray.reports.run_report import write_report
from raffm_ray.reports.run_story import summary_table
from raffm_ray.runs import checkpoint, extending
from raffm_ray.runs.extending import EXTENSIONS, _same_until
from raffm_ray.runs.mirror import Mirror
from raffm_ray.runs.recorder import Recorder
from raffm_ray.runs.resuming import experiment_in
from raffm_ray.runs.simulation import resume, simulate

FLEET = {
    "shares": {"raspberry_pi_4": 0.5, "v100": 0.5},
    "budgets": {"raspberry_pi_4": {"params": 0.6}, "v100": {"params": 1.0}},
}
EVALUATION = {"every": 1, "keep_best": False, "sizes": 0, "clients": "all"}
FOUR, SIX = ({**RICH, "fleet": FLEET, "evaluation": EVALUATION, "rounds": rounds} for rounds in (4, 6))


class Interrupted(BaseException):
    """Raised inside a run; like KeyboardInterrupt, nobody takes it for an error."""


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    prepared, _, pool = quick(**changes)
    return simulate(prepared.setup.experiment, folder, pool=pool)


def go_on(folder: Path, *flags: str, **named: Any) -> dict[str, Any]:
    return resume(folder, flags, pool=quick(**FOUR)[2], **named)


def left(folder: Path) -> dict[str, str]:
    """What a run leaves, but for the record that it was extended."""
    found = outcome(folder)
    summary = without_real(json.loads((folder / "summary.json").read_text()))
    return {**found, "summary": repr(summary | {"extensions": []})}


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("round-*"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four") / "run"
    run(folder, **FOUR)
    return folder


@pytest.fixture
def short(four, out) -> Path:
    """A finished run of four rounds."""
    return Path(shutil.copytree(four, out))


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("six") / "run"
    run(folder, **SIX)
    return folder


def test_a_finished_run_keeps_one_checkpoint(four) -> None:
    assert checkpoints(four) == ["round-000004"]


def test_an_extended_run_is_one_of_so_many_rounds(four, short, six) -> None:
    (short / "report.html").write_text("of four rounds")
    summary = go_on(short, "--rounds", "6")
    assert summary["params_sha256"] == json.loads((six / "summary.json").read_text())["params_sha256"]
    assert left(short) == left(six)
    assert (short / "config.yaml").read_text() == (six / "config.yaml").read_text()
    assert checkpoints(short) == ["round-000006"]
    (recorded,) = json.loads((short / EXTENSIONS).read_text())
    assert summary["extensions"] == [recorded]
    assert (recorded["from_rounds"], recorded["to_rounds"], recorded["after_round"]) == (4, 6, 4)
    assert not (short / "report.html").exists()
    different = {name for name, content in left(four).items() if left(short)[name] != content}
    assert {"summary", "tensorboard", "model.safetensors"} <= different  # control


def test_it_says_so_even_twice(short, six) -> None:
    go_on(short, "--rounds", "6")
    assert left(short) == left(six)
    summary = go_on(short, "--rounds", "8")
    told = "extended from 4 to 6 and to 8 rounds"
    console = Console(record=True, file=io.StringIO(), width=100)
    console.print(summary_table(summary))
    assert told in console.export_text()
    write_report(short)
    assert told in (short / "report.html").read_text()
    console.print(summary_table(summary | {"extensions": []}))
    assert "extended" not in console.export_text()  # control


def test_control_another_checkpoint_leaves_something_else(short, six) -> None:
    (place,) = (short / "checkpoints").glob("round-*")
    kept = checkpoint.read(place)
    kept.state.parameters[0] += 1e-3
    checkpoint.write(place.parent, kept, keep=1)
    go_on(short, "--rounds", "6")
    assert left(short) != left(six)


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("raffm_ray.runs.extending.checkpoint.remove", 1),  # after the summary is gone
        ("raffm_ray.runs.extending.sync", 1),  # just after
        ("raffm_ray.runs.recorder.Recorder.add", 2),
        ("raffm_ray.runs.recorder.Recorder.finish", 1),
    ],
)
def test_interrupted_while_it_is_extended(short, four, six, place, call, monkeypatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        if next(calls) == call:
            raise Interrupted
        real(*_, **__)

    calls, name = itertools.count(1), place.rsplit(".", 1)
    real = getattr(pkgutil.resolve_name(name[0]), name[1])
    with monkeypatch.context() as patched:
        patched.setattr(place, interrupted)
        with pytest.raises(Interrupted):
            go_on(short, "--rounds", "6")
    long = experiment_in(short).rounds == 6
    summary = go_on(short)
    assert left(short) == left(six if long else four)
    assert len(summary["extensions"]) == long
    assert left(short) != left(four if long else six)  # control
    if not long:
        go_on(short, "--rounds", "6")
        assert left(short) == left(six)


def test_an_interrupted_run_is_extended(out, six, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "finish", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            run(out, **FOUR)
    go_on(out, "--rounds", "6")
    assert left(out) == left(six)


def test_a_last_round_evaluated_out_of_turn_is_run_again(out, tmp_path) -> None:
    """Round 3 is evaluated only because it is the last, which decides what is kept."""
    turns = {"evaluation": {**EVALUATION, "keep_best": True, "every": 2}}
    run(out, **{**FOUR, **turns, "rounds": 3, "checkpoint": {"keep": 1}})
    assert checkpoints(out) == ["round-000002"]
    run(tmp_path / "whole", **{**FOUR, **turns})
    go_on(out, "--rounds", "4")
    assert left(out) == left(tmp_path / "whole")


REFUSED = {
    "a learning rate that falls": ({"local": {"schedule": "cosine"}}, "local.schedule would have to be constant, and is cosine"),
    "a ranking that ends": (
        {"salience": {**RICH["salience"], "until": 0.75}},
        "salience.until would have to be 0.5, and is 0.75 (--salience.until 0.5 ends the ranking after round 3, as before)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_spread_over_all_rounds_is_refused(out, what, capsys) -> None:
    changes, told = REFUSED[what]
    run(out, **{**FOUR, **changes})
    before = files(out)
    assert cli(["resume", str(out), "--rounds", "6"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "cannot be extended from 4 to 6 rounds" in line]
    assert error.endswith(told)
    assert files(out) == before


def test_a_ranking_may_end_where_it_ended(out, tmp_path, six) -> None:
    ends = {**RICH["salience"], "until": 0.75}
    run(out, **{**FOUR, "salience": ends})
    run(tmp_path / "whole", **{**SIX, "salience": ends | {"until": 0.5}})
    go_on(out, "--rounds", "6", "--salience.until", "0.5")
    assert left(out) == left(tmp_path / "whole")
    assert left(out) != left(six)  # control: its ranking never ends


def test_the_fraction_that_is_named_means_the_same_round() -> None:
    for begun, rounds in itertools.product((1, 4, 7, 29, 40, 100), (41, 100, 101, 200, 1000)):
        if begun < rounds:
            experiment = tiny_experiment(rounds=begun, salience={"until": 1.0})
            assert floor(_same_until(experiment, rounds) * rounds) == begun


def test_nothing_that_reads_rounds_is_forgotten() -> None:
    """Who reads `rounds`, besides the end of the loop and what is printed, must be in the table, so that longer runs are not lies."""
    known = {
        "server/rounds.py": 1,  # local.schedule
        "server/ranking.py": 1,  # salience.until
        "server/early_stopping.py": 4,  # evaluation.every, and the end
    }
    package = Path(extending.__file__).parents[1]
    for folder in ("server", "clients", "subnetworks", "models", "devices", "data"):
        for path in (package / folder).rglob("*.py"):
            found = path.read_text().count("experiment.rounds")
            assert found == known.get(path.relative_to(package).as_posix(), 0), path
    assert set(extending.SCHEDULED) == {"local.schedule", "salience.until", "evaluation.every"}


def test_mistakes_are_one_line_and_change_nothing(short, capsys) -> None:
    before = files(short)
    for flags, told in (
        (["--rounds", "3"], f"resume: --rounds 3: {short} is a run of 4; only more rounds are possible"),
        (["--salience.until", "0.5"], "--salience.until 0.5: .* has 1.0, and only with more rounds"),
        (["--rounds", "6", "--seed", "1"], "--seed: a run goes on as it began"),
        (["--rounds", "none"], "rounds: "),
    ):
        assert cli(["resume", str(short), *flags]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(told, line), line
    go_on(short, "--rounds", "4")  # as many: it is finished
    assert files(short) == before
    (short / EXTENSIONS).write_text("[{}]")
    with pytest.raises(UserError, match=r"extensions.json: not a record of extensions"):
        go_on(short, "--rounds", "6")
    shutil.rmtree(short / "checkpoints" / "round-000004")
    with pytest.raises(UserError, match="from 4 to 6 rounds: it has no checkpoint"):
        go_on(short, "--rounds", "6")


def test_another_config_without_an_extension_does_not_go_on(short) -> None:
    config = short / "config.yaml"
    config.write_text(config.read_text().replace("rounds: 4", "rounds: 6", 1))
    (short / "summary.json").unlink()
    with pytest.raises(UserError, match=r"config.yaml is not what it was when the run began"):
        go_on(short)


def test_a_run_that_stopped_early_does_not_go_on(out) -> None:
    stops = {"evaluation": {**EVALUATION, "patience": 1}}
    summary = run(out, **{**SIX, **stops})
    assert summary["rounds"] < 6
    with pytest.raises(
        UserError, match=rf"stopped after round {summary['rounds']} by evaluation.patience 1, and would not go on"
    ):
        go_on(out, "--rounds", "9")


def test_baselines_are_extended_as_well(out, tmp_path) -> None:
    others: dict[str, Any] = {"baselines": ("full",)}
    run(out, **{**FOUR, **others, "rounds": 2})
    run(tmp_path / "whole", **{**FOUR, **others, "rounds": 3})
    go_on(out, "--rounds", "3")
    here, there = left(out), left(tmp_path / "whole")
    assert {name for name in here if here[name] != there[name]} == {
        "summary",
        "full",
    }  # where the baseline's extension is told of
    assert left(out / "baselines" / "full") == left(tmp_path / "whole" / "baselines" / "full")
    assert json.loads((out / "summary.json").read_text())["baselines"]["full"]["rounds"] == 3


def test_a_copy_is_extended_and_is_a_run_at_every_moment(short, six, tmp_path, monkeypatch) -> None:
    url = (tmp_path / "store").as_uri()
    Mirror(url).save(short)
    seen = []
    real = Mirror.save

    def save(mirror: Mirror, folder: Path, settled: bool = True) -> None:
        real(mirror, folder, settled)
        store = tmp_path / "store"
        seen.append((experiment_in(store).rounds, (store / "summary.json").is_file()))

    monkeypatch.setattr(Mirror, "save", save)
    mirror, folder = Mirror(url), tmp_path / "fetched"
    mirror.fetch(folder)
    go_on(folder, "--rounds", "6", mirror=mirror)
    assert seen[0] == (4, False)
    assert seen[1] == (6, False)
    assert seen[-1] == (6, True)
    Mirror(url).fetch(tmp_path / "again")
    assert left(tmp_path / "again") == left(six)
