"""Studies: what is searched is checked first; the same seed gives the same study, also when it was killed; what comes out can be run."""

import ast
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import yaml
from conftest import TINY, tiny_experiment
from html_pages import data_of, lacks, rows_of
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raffm_ray.basics.cache import writable_cache
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import in_turn
from raffm_ray.cli.main import main
from raffm_ray.data.metrics import METRICS
from raffm_ray.preparation import prepare as prepare_module
from raffm_ray.preparation import pretraining as pretrain
from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.starting_parameters import pretraining_of
from raffm_ray.runs.reader import read_rounds, read_summary
from raffm_ray.runs.simulation import resume, simulate
from raffm_ray.settings.loading import load
from raffm_ray.studies import samplers as search
from raffm_ray.studies import study as studies
from raffm_ray.studies import study_picture, study_report
from raffm_ray.studies.study import run_study
from raffm_ray.studies.study_settings import load_study
from raffm_ray.studies.study_text import notes
from raffm_ray.studies.trial import CHOSEN_BY, Outcome

RATE, METRIC = "local.learning_rate", "salience.metric"
SPACE = {METRIC: ["outputs", "fisher"], RATE: {"low": 1e-4, "high": 1e-2, "log": True}}


def small(**changes):
    """A run of a second: two device types, one layer."""
    config = {key: value for key, value in TINY["vit"].items() if key != "num_labels"} | {"num_hidden_layers": 1}
    values = {
        "model": {"config": config, "pretrain": {"epochs": 1}},
        "clients": {"count": 6, "per_round": 2},
        "fleet": {
            "shares": {"raspberry_pi_4": 0.5, "v100": 0.5},
            "budgets": {"raspberry_pi_4": {"params": 0.6}, "v100": {"params": 1.0}},
        },
        "local": {"steps": 1},
        "evaluation": {"every": 1, "sizes": 0},
        "salience": {"every": 2, "clients": 1, "examples": 8},
        **changes,
    }
    return tiny_experiment(**values)


def written(folder: Path, **changes) -> Path:
    """A study's file."""
    folder.mkdir(exist_ok=True)
    values = {"experiment": small().model_dump(mode="json"), "space": SPACE, "objectives": ["full_model"], "trials": 4, **changes}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture
def quick(monkeypatch):
    """Trials whose values follow from the learning rate; no training. What each of them was given is appended."""
    given = []

    def run(work, report):
        given.append(work)
        experiment = work.experiments[0]
        rate = experiment.local.learning_rate
        for number in range(1, experiment.rounds + 1):
            if work.watched and report(number, 1 - 50 * rate * number / experiment.rounds):
                return Outcome(pruned=True)
        if experiment.salience.metric == "l1":
            return Outcome(reason="l1 does not work here")
        values = {"full_model": 1 - 50 * rate, "bytes": 1 / rate, "worst_device_type": 1 - 60 * rate}
        return Outcome({name: [values.get(name, 1.0) + one.seed / 1000 for one in work.experiments] for name in CHOSEN_BY})

    monkeypatch.setattr(studies, "run_trial", run)
    monkeypatch.setattr(study_report, "draw_study", lambda content, path: {})
    return given


def settings_and_values(content):
    return [(row["settings"], row["values"], row["state"]) for row in content["trials"]]


def test_a_study_runs_and_its_best_configuration_is_a_run(tmp_path) -> None:
    changes = {
        "objectives": ["full_model", "bytes"],
        "trials": 3,
        "enqueue": [{}],
        "space": {**SPACE, "local.steps": {"low": 1, "high": 3}},
    }
    assert main(["study", str(written(tmp_path, **changes)), "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    first = content["trials"][0]
    assert first["settings"] == {METRIC: "outputs", RATE: 1e-3, "local.steps": 1}
    assert content["best"] in content["front"]
    for row in content["trials"]:
        summary = read_summary(tmp_path / "out" / row["folder"] / "seed-0")
        assert row["values"] == {
            "full_model": summary["validation"]["full_model"],
            "bytes": summary["bytes_down"] + summary["bytes_up"],
        }
        assert not list((tmp_path / "out" / row["folder"]).glob("seed-0/checkpoints/round-*"))  # too many runs to keep them
        assert bool(row["held_out"]) == (row["number"] in content["front"])
        if row["held_out"]:
            assert row["held_out"]["full_model"]["values"] == [summary["full_model"]]
    best = next(row for row in content["trials"] if row["number"] == content["best"])
    again = simulate(load(tmp_path / "out" / "best.yaml"), tmp_path / "again")
    assert list((tmp_path / "again").glob("checkpoints/round-*"))  # control
    assert again["params_sha256"] == read_summary(tmp_path / "out" / best["folder"] / "seed-0")["params_sha256"]
    ordered = sorted(content["front"], key=lambda number: -content["trials"][number]["values"]["full_model"])
    assert [content["trials"][number]["file"] for number in ordered] == [f"front/{at + 1:03d}.yaml" for at in range(len(ordered))]
    assert {path.name for path in (tmp_path / "out" / "front").iterdir()} == {f"{at + 1:03d}.yaml" for at in range(len(ordered))}
    assert load(tmp_path / "out" / best["file"]) == load(tmp_path / "out" / "best.yaml")
    assert (tmp_path / "out" / "study.png").stat().st_size > 10_000
    page = (tmp_path / "out" / "study.html").read_text()
    assert lacks(page) == []
    told = {int(row[0]): row for row in rows_of(page)[1:]}
    assert list(told) == sorted(content["front"], key=lambda number: content["trials"][number]["file"])
    assert [number for number, row in told.items() if row[-1] == "best.yaml"] == [content["best"]]
    assert told[content["best"]][1] == best["file"]
    assert f"trial {content['best']}: full model" in page
    assert len(data_of(page)["pair_1.csv"]) == 1 + len(content["trials"])


def test_nothing_is_chosen_on_what_it_is_judged_by(tmp_path, monkeypatch) -> None:
    """Objectives, constraints and pruners see the validation part alone: other held-out labels change no choice; control: other
    validation labels do."""
    values = {
        "enqueue": [{RATE: 1e-3}, {RATE: 1e-2}, {RATE: 1e-4}],
        "trials": 3,
        "pruner": {"name": "MedianPruner", "n_startup_trials": 0},
    }
    values |= {"constraints": ["worst_device_type >= 0.01"], "settings": {"evaluation": {"sizes": 1}, "rounds": 3}}
    real = prepare_module.load_task
    told = {}
    for name in ("plain", "held_out", "validation"):

        def shuffled(*given, part=name, **more):
            task = real(*given, **more)
            if part == "plain" or getattr(task, part) is None:
                return task
            labels = np.roll(getattr(task, part).labels, 1)
            changed = replace(getattr(task, part), labels=labels)
            score = lambda answers: METRICS["accuracy"].score(answers, labels)  # noqa: E731
            return replace(task, **{part: changed, {"held_out": "score", "validation": "validation_score"}[part]: score})

        monkeypatch.setattr(prepare_module, "load_task", shuffled)
        study, base = load_study(written(tmp_path / name, **values))
        content = run_study(study, base, tmp_path / name / "out")
        told[name] = [(row["values"], row["state"], row["excess"], row["by_round"]) for row in content["trials"]], content["best"]
    assert told["plain"] == told["held_out"]
    assert told["plain"] != told["validation"]


def test_a_study_without_a_validation_part_takes_one_off_the_clients_data(tmp_path, quick) -> None:
    from io import StringIO

    from rich.console import Console

    study, base = load_study(written(tmp_path, trials=1))
    assert base.task.validation == 0
    out = StringIO()
    run_study(study, base, tmp_path / "out", Console(file=out, width=400))
    (work,) = quick
    examples = len(prepare(base).task.clients)
    assert work.experiments[0].task.validation == round(0.1 * examples)
    assert (
        f"task.validation was 0: {round(0.1 * examples)} of the clients' {examples:,} examples are the validation part"
        in out.getvalue()
    )
    given, base = load_study(written(tmp_path / "given", trials=1, settings={"task": {"validation": 33}}))
    run_study(given, base, tmp_path / "given" / "out")
    assert quick[-1].experiments[0].task.validation == 33


def test_the_same_seed_gives_the_same_study_and_another_one_does_not(tmp_path, quick) -> None:
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        study, base = load_study(written(tmp_path, seed=seed, trials=7, sampler={"name": "TPESampler", "n_startup_trials": 3}))
        contents.append(run_study(study, base, tmp_path / name))
    assert settings_and_values(contents[0]) == settings_and_values(contents[1])
    assert settings_and_values(contents[0]) != settings_and_values(contents[2])


@pytest.mark.parametrize(
    "sampler",
    [{"name": "TPESampler", "n_startup_trials": 2}, {"name": "NSGAIISampler", "population_size": 3}, {"name": "QMCSampler"}],
    ids=lambda sampler: sampler["name"],
)
def test_an_interrupted_study_is_the_same_study(tmp_path, quick, monkeypatch, sampler) -> None:
    study, base = load_study(written(tmp_path, trials=7, sampler=sampler, objectives=["full_model", "bytes"]))
    whole = run_study(study, base, tmp_path / "whole")
    run = studies.run_trial
    for stop in (2, 6):

        def stopped(work, report, stop=stop):
            if len(list((tmp_path / "cut").glob("stop*"))) < (stop > 2) + 1 and work.number >= stop:
                (tmp_path / "cut" / f"stop{stop}").touch()
                raise KeyboardInterrupt
            return run(work, report)

        monkeypatch.setattr(studies, "run_trial", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, base, tmp_path / "cut")
    with (tmp_path / "cut" / "journal.log").open("a") as journal:
        journal.write('{"op_code":')
    monkeypatch.setattr(studies, "run_trial", run)
    cut = run_study(study, base, tmp_path / "cut")
    assert settings_and_values(cut) == settings_and_values(whole)
    folders = [row["folder"] for row in cut["trials"]]
    assert len(set(folders)) == 7
    assert "trials/0002" in folders


def test_a_killed_study_goes_on_with_its_trial(tmp_path) -> None:
    path = written(tmp_path, experiment=small(rounds=6).model_dump(mode="json"), trials=3, sampler={"name": "RandomSampler"})
    process = subprocess.Popen(
        [sys.executable, "-m", "raffm_ray.cli", "study", str(path), "--out", str(tmp_path / "cut")], stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    rounds = tmp_path / "cut" / "trials" / "0001" / "seed-0" / "rounds"
    while time.monotonic() < until and process.poll() is None and len(list(rounds.glob("*.parquet"))) < 3:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = [file.stat().st_mtime_ns for file in sorted(rounds.glob("*.parquet"))[:2]]
    assert not (rounds.parent / "summary.json").exists()
    study, base = load_study(path)
    cut, whole = run_study(study, base, tmp_path / "cut"), run_study(study, base, tmp_path / "whole")
    assert settings_and_values(cut) == settings_and_values(whole)
    assert [file.stat().st_mtime_ns for file in sorted(rounds.glob("*.parquet"))[:2]] == before
    kept = optuna.load_study(
        study_name="small", storage=JournalStorage(JournalFileBackend(str(tmp_path / "cut" / "journal.log")))
    )
    assert [trial.state.name for trial in kept.trials].count("FAIL") == 1
    assert len(kept.trials) == 4


def test_trials_side_by_side_are_the_same_trials_and_can_be_pruned(tmp_path, four_cores) -> None:
    changes = {
        "sampler": {"name": "RandomSampler"},
        "pruner": {"name": "ThresholdPruner", "upper": 0.0, "n_warmup_steps": 2},
        "experiment": small(rounds=4).model_dump(mode="json"),
        "trials": 2,
    }
    for name, parallel in (("one", 1), ("two", 2)):
        study, base = load_study(written(tmp_path, parallel=parallel, **changes))
        content = run_study(study, base, tmp_path / name)
        assert [row["state"] for row in content["trials"]] == ["pruned", "pruned"]
        for row in content["trials"]:
            folder = tmp_path / name / row["folder"] / "seed-0"
            by_round = {one["round"]: one["validation_metric"] for one in read_rounds(folder)[1:3]}
            assert row["by_round"] == {str(number): metric for number, metric in by_round.items()}
            assert not (folder / "summary.json").exists()
    free, _ = load_study(written(tmp_path, parallel=2, **{**changes, "pruner": None}))
    beside = run_study(free, base, tmp_path / "free")
    assert [row["state"] for row in beside["trials"]] == ["complete", "complete"]
    assert [row["settings"] for row in beside["trials"]] == [row["settings"] for row in content["trials"]]


def test_more_trials_at_a_time_than_cores_are_refused(tmp_path, four_cores) -> None:
    study, base = load_study(written(tmp_path, parallel=5))
    with pytest.raises(UserError, match="parallel: 5 trials at a time need 5 cores; Ray has 4"):
        run_study(study, base, tmp_path / "out")


def test_hopeless_trials_are_pruned_and_the_best_is_not(tmp_path, quick) -> None:
    pruner = {"name": "MedianPruner", "n_startup_trials": 3}
    study, base = load_study(written(tmp_path, trials=9, pruner=pruner, sampler={"name": "RandomSampler"}))
    content = run_study(study, base, tmp_path / "out")
    states = [row["state"] for row in content["trials"]]
    assert "pruned" in states
    rates = {row["number"]: row["settings"][RATE] for row in content["trials"]}
    assert content["best"] == min(rates, key=rates.__getitem__)
    free = run_study(study.model_copy(update={"pruner": None}), base, tmp_path / "free")
    assert {row["state"] for row in free["trials"]} == {"complete"}


def test_a_constraint_keeps_trials_from_being_best(tmp_path, quick) -> None:
    study, base = load_study(written(tmp_path, trials=6, constraints=["bytes <= 1000"]))
    content = run_study(study, base, tmp_path / "out")
    rates = {row["number"]: row["settings"][RATE] for row in content["trials"] if row["feasible"]}
    assert {row["feasible"] for row in content["trials"]} == {True, False}
    assert all(row["feasible"] == (row["settings"][RATE] >= 1e-3) for row in content["trials"])
    assert content["best"] == min(rates, key=rates.__getitem__)
    free = run_study(study.model_copy(update={"constraints": ()}), base, tmp_path / "free")
    best = next(row for row in free["trials"] if row["number"] == free["best"])
    assert best["settings"][RATE] < 1e-3
    none = run_study(study.model_copy(update={"constraints": ("full_model >= 2",)}), base, tmp_path / "none")
    assert none["best"] is None
    assert not (tmp_path / "none" / "best.yaml").exists()


def test_seeds_are_averaged_with_their_error(tmp_path, quick) -> None:
    study, base = load_study(written(tmp_path, trials=1, seeds=[0, 1, 2]))
    (row,) = run_study(study, base, tmp_path / "out")["trials"]
    assert [one.seed for one in quick[0].experiments] == [0, 1, 2]
    full = row["measures"]["full_model"]
    assert row["values"]["full_model"] == full["mean"] == pytest.approx(full["values"][0] + 0.001)
    assert full["standard_error"] == pytest.approx(3**-0.5 / 1000)


def test_a_failed_trial_is_recorded_and_the_study_goes_on(tmp_path, quick) -> None:
    space = {**SPACE, METRIC: ["l1", "fisher"]}
    study, base = load_study(written(tmp_path, trials=8, space=space))
    rows = run_study(study, base, tmp_path / "out")["trials"]
    assert {row["reason"] for row in rows} == {"", "l1 does not work here"}
    assert all((row["state"] == "failed") == (row["settings"][METRIC] == "l1") for row in rows)
    only = load_study(written(tmp_path, trials=2, enqueue=[{METRIC: "l1", RATE: 1e-3}, {METRIC: "l1", RATE: 2e-3}], space=space))
    with pytest.raises(UserError, match="all 2 trials failed: l1 does not work here"):
        run_study(*only, tmp_path / "failed")


def test_a_study_whose_trials_all_learn_nothing_says_so(tmp_path) -> None:
    still = small(model={"seed": 0, "pretrain": {"epochs": 0}}).model_dump(mode="json")
    space = {RATE: {"low": 1e-13, "high": 1e-12, "log": True}}
    study, base = load_study(written(tmp_path / "still", experiment=still, space=space, trials=2))
    content = run_study(study, base, tmp_path / "out")
    (line,) = [line for line in notes(content) if "the run ends no better than it began" in line]
    assert f"; the numbers are of trial {content['best']})" in line or line.endswith("(all 2 runs)")
    assert "the run ends no better than it began" in (tmp_path / "out" / "study.html").read_text()


def test_another_study_in_the_folder_is_refused_and_more_trials_are_not(tmp_path, quick) -> None:
    study, base = load_study(written(tmp_path, trials=2))
    run_study(study, base, tmp_path / "out")
    with pytest.raises(UserError, match="holds another study: its objectives is not this one's"):
        run_study(study.model_copy(update={"objectives": ("bytes",)}), base, tmp_path / "out")
    assert main(["study", str(tmp_path / "out"), "--trials", "5"]) == 0
    assert len(quick) == 5
    assert main(["study", str(tmp_path / "out"), "--trials", "5", "--metric_share", "0.9"]) == 0
    assert len(quick) == 5
    again, _ = load_study(tmp_path / "out" / "study.yaml")
    assert again.name == "small"


BAD = [
    ({"space": {"salience.metrik": ["l1", "outputs"]}}, r"space.salience.metrik: unknown key \(did you mean 'metric'\?\)"),
    (
        {"space": {"salienc.metric": ["l1", "outputs"]}},
        r"space.salienc.metric: salienc: unknown key \(did you mean 'salience'\?\)",
    ),
    (
        {"space": {METRIC: ["l1", "outputz"]}},
        r"space.salience.metric: salience.metric 'outputz' is not known \(did you mean 'outputs'\?\)",
    ),
    ({"space": {METRIC: ["l1"]}}, "expected two choices or more"),
    ({"space": {METRIC: {"low": 1, "high": 2}}}, "space.salience.metric: input should be a valid string, got 1"),
    ({"space": {RATE: {"low": -1, "high": 1}}}, "space.local.learning_rate: input should be greater than 0, got -1"),
    ({"space": {"local.epochs": {"low": 1, "high": 2.5}}}, "space.local.epochs: input should be a valid integer.*got 2.5"),
    ({"space": {"local.epochs": {"low": 3, "high": 2}}}, "low 3 must be below high 2"),
    ({"space": {RATE: {"low": 0.1, "hihg": 1}}}, r"space.local.learning_rate.hihg: unknown key \(did you mean 'high'\?\)"),
    (
        {"settings": {"task": {"validation": 9}}, "space": {"evaluation.keep_best": {"low": 0, "high": 1}}},
        "a range is of numbers",
    ),
    ({"space": {"extraction.floors.fnn": {"low": 0.1, "high": 0.5}}}, r"'fnn' is not a kind of axis.*did you mean 'ffn'"),
    (
        {"space": {"fleet.budgets.v100.parms": {"low": 0.1, "high": 0.5}}},
        r"budget kind 'parms' is not known \(did you mean 'params'",
    ),
    (
        {"space": {"fleet.budgets.v10.params": {"low": 0.1, "high": 0.5}}},
        r"device type 'v10' is not known \(did you mean 'v100'",
    ),
    ({"space": {"rounds.x": [1, 2]}}, "'rounds' has no keys below it"),
    ({"space": {"seed": [1, 2]}}, "space.seed: is not searched"),
    ({"space": {RATE: 3}}, "expected a list of choices or a range"),
    ({"objectives": ["full_modl"]}, r"objectives: measure 'full_modl' is not known \(did you mean 'full_model'\?\)"),
    ({"objectives": ["curve_area"]}, "curve_area: evaluation.sizes is 0"),
    ({"constraints": ["bytes < 3"]}, "constraints: expected 'measure >= number'"),
    ({"constraints": ["byte <= 3"]}, "constraints: measure 'byte' is not known"),
    ({"sampler": {"name": "TPESample"}}, r"sampler.name 'TPESample' is not known \(did you mean 'TPESampler'\?\)"),
    ({"sampler": {"name": "TPESampler", "n_startup": 3}}, r"sampler.n_startup: .*did you mean 'n_startup_trials'"),
    (
        {"sampler": {"name": "TPESampler", "n_startup_trials": "3"}},
        "sampler.n_startup_trials: input should be a valid integer, got '3'",
    ),
    (
        {"sampler": {"name": "CmaEsSampler"}},
        "sampler.name: CmaEsSampler needs a package that is not installed: pip install cmaes",
    ),
    ({"sampler": {"name": "BruteForceSampler"}}, "sampler BruteForceSampler: .*step must be given"),
    ({"sampler": {"name": "GridSampler"}}, "sampler.name 'GridSampler' is not known"),
    ({"pruner": {"name": "PercentilePruner"}}, "pruner PercentilePruner: .*missing.*'percentile'"),
    ({"pruner": {"name": "MedianPruna"}}, "pruner.name 'MedianPruna' is not known"),
    ({"pruner": {"name": "PercentilePruner", "percentile": 120.0}}, "pruner PercentilePruner: "),
    ({"pruner": {"name": "MedianPruner"}, "objectives": ["full_model", "bytes"]}, "pruner: prunes by one objective"),
    ({"pruner": {"name": "MedianPruner"}, "objectives": ["bytes"]}, "pruner: prunes by one objective"),
    ({"enqueue": [{RATE: 5.0}]}, "enqueue: local.learning_rate: 5.0 is not in its space"),
    ({"enqueue": [{"local.rate": 5.0}]}, "enqueue: local.rate is not in the space"),
    ({"metric_share": 0}, "metric_share: input should be greater than 0, got 0"),
    ({"metric_share": 1.5}, "metric_share: input should be less than or equal to 1, got 1.5"),
    ({"trails": 3}, r"trails: unknown key \(did you mean 'trials'\?\)"),
    ({"settings": {"local": {"epohcs": 3}}}, r"local.epohcs: unknown key \(did you mean 'epochs'\?\)"),
]


@pytest.fixture
def no_cmaes(monkeypatch) -> None:
    """As where the package is not installed, which is no dependency."""
    monkeypatch.setattr(search, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_cmaes")
@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda one: "" if isinstance(one, str) else str(one)[:50])
def test_a_mistake_is_one_line_before_any_work(tmp_path, quick, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        run_study(*load_study(written(tmp_path, **changes)), tmp_path / "out")
    assert not quick
    assert not (tmp_path / "out").exists()


def test_a_callback_hears_every_round_once_and_what_it_raises_ends_the_run(tmp_path) -> None:
    class StopError(Exception):
        pass

    heard = []

    def hear(row) -> None:
        heard.append(replace(row, wall_seconds=0.0, phase_seconds={}))
        if row.round == 1 and len(heard) == 2:
            raise StopError

    with pytest.raises(StopError):
        simulate(small(rounds=3), tmp_path / "run", on_round=hear)
    resume(tmp_path / "run", on_round=hear)
    assert [row.round for row in heard] == [0, 1, 2, 3]
    assert [row.metric for row in heard] == [row["metric"] for row in read_rounds(tmp_path / "run")]


def own_processes(command: str) -> list[int]:
    """Numbers of the processes below this one that are at a command."""
    parents, commands = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[int(place.name)] = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            commands[int(place.name)] = (place / "cmdline").read_bytes().split(b"\0")[0].decode()

    def below(number: int) -> bool:
        return number in parents and (parents[number] == os.getpid() or below(parents[number]))

    return [number for number, words in commands.items() if words == command and below(number)]


def test_a_trial_whose_process_is_killed_goes_on(tmp_path, four_cores, monkeypatch) -> None:
    changes = {"sampler": {"name": "RandomSampler"}, "trials": 1, "experiment": small(rounds=4).model_dump(mode="json")}
    pruner = {"name": "ThresholdPruner", "lower": 0.0}
    study, base = load_study(written(tmp_path, parallel=2, pruner=pruner, **changes))
    killed, report = [], studies._Driver.report

    def kill(driver, number, round_number, value):
        if round_number == 2 and not killed:
            killed.extend(own_processes("ray::_run"))
            os.kill(killed[0], signal.SIGKILL)
        return report(driver, number, round_number, value)

    monkeypatch.setattr(studies._Driver, "report", kill)
    (row,) = run_study(study, base, tmp_path / "killed")["trials"]
    assert killed
    assert list(row["by_round"]) == ["1", "2", "3", "4"]
    monkeypatch.setattr(studies._Driver, "report", report)
    (whole,) = run_study(load_study(written(tmp_path, **changes))[0], base, tmp_path / "whole")["trials"]
    assert (row["settings"], row["values"]) == (whole["settings"], whole["values"])


def test_ctrl_c_ends_all_trials_and_the_study_goes_on_with_them(tmp_path, four_cores, monkeypatch) -> None:
    changes = {"sampler": {"name": "RandomSampler"}, "trials": 2, "experiment": small(rounds=6).model_dump(mode="json")}
    study, base = load_study(written(tmp_path, parallel=2, pruner={"name": "ThresholdPruner", "lower": 0.0}, **changes))
    at_work, report = [], studies._Driver.report

    def interrupt(driver, number, round_number, value):
        if round_number == 2:
            patience = time.monotonic() + 60  # one trial's process may take longer to start than the other's
            while len(own_processes("ray::_run")) < 2 and time.monotonic() < patience:
                time.sleep(0.1)
            at_work.extend(own_processes("ray::_run"))
            raise KeyboardInterrupt
        return report(driver, number, round_number, value)

    monkeypatch.setattr(studies._Driver, "report", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, base, tmp_path / "out")
    assert len(at_work) == 2
    patience = time.monotonic() + 60
    while set(at_work) & set(own_processes("ray::_run")):
        assert time.monotonic() < patience, "trials go on after the study's end"
        time.sleep(0.1)
    monkeypatch.setattr(studies._Driver, "report", report)
    again = run_study(study.model_copy(update={"parallel": 1}), base, tmp_path / "out")["trials"]
    told = {row["folder"]: (row["state"], row["reason"]) for row in again}
    assert told == {"trials/0000": ("complete", ""), "trials/0001": ("complete", "")}
    assert all(len(read_rounds(tmp_path / "out" / row["folder"] / "seed-0")) == 7 for row in again)


class BothError(Exception):
    pass


def pretrain_twice_at_once(monkeypatch) -> int:
    """How often a model is pretrained. Raises BothError where two do it at the same time."""
    prepared, count, train = prepare(small()), [], pretrain.pretrain
    both = threading.Barrier(2)

    def counted(*arguments):
        count.append(threading.get_ident())
        try:
            both.wait(1.0)
        except threading.BrokenBarrierError:
            return train(*arguments)
        raise BothError

    monkeypatch.setattr(pretrain, "pretrain", counted)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: pretrain.pretrained(pretraining_of(prepared), lambda *_: None).flat, range(2))
    assert torch.equal(first, second)
    return len(count)


def test_runs_that_start_at_once_pretrain_a_model_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path))
    assert pretrain_twice_at_once(monkeypatch) == 1


def test_the_cache_is_found_writable_by_threads_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: writable_cache(), range(800))) == {tmp_path / "cache"}
    assert not list((tmp_path / "cache").iterdir())


def test_control_without_a_lock_both_pretrain(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrain, "in_turn", lambda path: contextlib.nullcontext())
    with pytest.raises(BothError):
        pretrain_twice_at_once(monkeypatch)


def test_a_lock_of_a_killed_process_is_free(tmp_path) -> None:
    held = f"import sys, time; from pathlib import Path; from raffm_ray.basics.files import in_turn\nwith in_turn(Path({str(tmp_path / 'lock')!r})):\n print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE)
    process.stdout.readline()
    with (tmp_path / "lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.wait()
    with in_turn(tmp_path / "lock"):
        pass


def test_what_is_far_off_leaves_the_picture_to_the_others() -> None:
    values = [90.0, 91.0, 92.0, 93.0, 94.0, 20.0]
    low, high = study_picture._view(values, [94.0])
    assert 85 < low < 90
    assert 94 < high < 95
    assert study_picture._view(values, [20.0])[0] < 20
    assert study_picture._view([5.0], [5.0]) == (2.5, 7.5)


@pytest.mark.parametrize("objectives", [["bytes"], ["full_model", "bytes"], ["full_model", "bytes", "energy_joules"]], ids=len)
def test_a_study_of_any_number_of_objectives_is_drawn(tmp_path, quick, objectives, monkeypatch) -> None:
    drawn = []
    study, base = load_study(written(tmp_path, objectives=objectives, trials=12))
    content = run_study(study, base, tmp_path / "out")
    monkeypatch.setattr(study_picture.plt, "close", drawn.append)
    panels = study_picture.draw_study(content, tmp_path / "study.png")
    (figure,) = drawn
    pairs = {1: 1, 2: 1, 3: 3}[len(objectives)]
    assert len(figure.axes) == pairs + 1
    assert [bool(axes.get_legend()) for axes in figure.axes] == [True] * pairs + [False]
    assert len(panels) == pairs + 1


def top_level_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        found |= {node.module} if isinstance(node, ast.ImportFrom) and node.module else set()
    return found


def module_of(path: Path, package: Path) -> str:
    return ".".join(path.relative_to(package.parent).with_suffix("").parts)


def test_only_studies_import_optuna() -> None:
    package = Path(studies.__file__).parents[1]
    users = {
        module_of(path, package)
        for path in package.rglob("*.py")
        if any(name.split(".")[0] == "optuna" for name in top_level_imports(path))
    }
    assert users == {f"raffm_ray.studies.{name}" for name in ("samplers", "search_space", "storage", "study", "study_report")}
    loading = users | {module_of(path, package) for path in (package / "studies").glob("*.py") if users & top_level_imports(path)}
    assert "raffm_ray.studies.checked_study" in loading
    for path in package.rglob("*.py"):
        assert path.parent.name == "studies" or not loading & top_level_imports(path), path.stem


FORMER = {"full_model": "full", "worst_device_type": "worst_class"}


def renamed(text: str) -> str:
    """With the words of an earlier version."""
    for now, before in FORMER.items():
        text = text.replace(now, before)
    return text


@pytest.mark.parametrize("asked", ["former", "present"])
def test_a_study_of_an_earlier_version_goes_on(tmp_path, quick, asked) -> None:
    """Its file, its constraints and its journal call measures otherwise; the same trials follow as in one that never did."""
    settings = {"evaluation": {"watch": "full_model", "sizes": 0}}
    values = {"objectives": ["full_model", "bytes"], "constraints": ["worst_device_type >= 0.5"], "settings": settings}
    values |= {"sampler": {"name": "TPESampler", "n_startup_trials": 2}}
    path, out = written(tmp_path, trials=5, **values), tmp_path / "out"
    wanted = run_study(*load_study(path), tmp_path / "undisturbed")
    run_study(*load_study(path, ["--trials", "3"]), out)
    text = renamed((out / "study.yaml").read_text()).replace("watch: full", "watch: global")
    (out / "study.yaml").write_text(text)
    (out / "journal.log").write_text(renamed((out / "journal.log").read_text()))
    assert "worst_class" in (out / "journal.log").read_text()  # control
    if asked == "former":
        path = out / "study.yaml"
    content = run_study(*load_study(path, ["--trials", "5"]), out)
    assert content == wanted
    assert list(content["trials"][0]["measures"])[:2] == ["full_model", "worst_device_type"]
    assert content["trials"][0]["excess"].keys() == {"worst_device_type >= 0.5"}
    with pytest.raises(UserError, match="holds another study: its objectives"):
        run_study(*load_study(path, ["--objectives", "[worst_class, bytes]"]), out)


def test_the_former_names_of_measures_are_accepted(tmp_path) -> None:
    study, _ = load_study(
        written(tmp_path, objectives=["full", "worst_class"], constraints=[" worst_class>=0.5", "bytes <= 1e9"])
    )
    assert study.objectives == ("full_model", "worst_device_type")
    assert study.constraints == (" worst_device_type>=0.5", "bytes <= 1e9")
    with pytest.raises(UserError, match="every one once"):
        load_study(written(tmp_path, objectives=["full", "full_model"]))
