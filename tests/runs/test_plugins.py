"""A file of one's own through every command: it is part of what a run is made from, and nothing else brings code."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import tiny_experiment

import raffm_ray
from raffm_ray.basics import plugins
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.plugins import use
from raffm_ray.basics.registry import TABLES
from raffm_ray.cli.main import main as cli
from raffm_ray.cli.submit import plugin_there
from raffm_ray.data.metrics import METRICS
from raffm_ray.server.strategies import STRATEGIES

METHODS = """
import torch
import raffm_ray
from pydantic import BaseModel
from raffm_ray.data.metrics import accuracy
from raffm_ray.server.aggregation import damped_by_coverage
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.subnetworks.salience import METRICS

@raffm_ray.plugin_settings("mine")
class Mine(BaseModel):
    other: str = "fedrolex"
    step: float = 1.0
    part: float = 1.0

@raffm_ray.strategy("alternate", like="raffm", nested=False, prefix="none", settings=Mine)
def alternate(settings):
    def train(view, budget, client):
        return STRATEGIES[settings.other if view.round % 2 else "raffm"].train(view, budget, client)
    return train

@raffm_ray.salience("upside_down")
def upside_down(layout, parameters, statistics, rng):
    return {axis: -score for axis, score in METRICS["l1"].score(layout, parameters, statistics, rng).items()}

@raffm_ray.aggregation("shorter", settings=Mine)
def shorter(settings):
    return lambda old, *rest: old + settings.step * (damped_by_coverage(old, *rest) - old)

@raffm_ray.metric("right", kinds=("image_classification",))
def right(answers, truth):
    return accuracy(answers, truth)

@raffm_ray.client_optimizer("plain", floats=0)
def plain(groups, rate):
    return torch.optim.SGD(groups, lr=rate)

@raffm_ray.objective("smoothed", like="image_classification")
def smoothed(output, labels):
    return torch.nn.functional.cross_entropy(output.logits, labels, reduction="none", label_smoothing=0.1)

@raffm_ray.client_update("in_part", passes=2, settings=Mine)
def in_part(settings):
    def train(module, batches, given, training, rng, state):
        parameters = [one for one in module.parameters() if one.requires_grad]
        optimizer, losses = training.optimizer(parameters), []
        for batch in batches:
            loss = training.objective.loss(module(pixel_values=batch["pixel_values"]), batch["labels"], "mean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        now = dict(module.named_parameters())
        return sum(losses) / len(losses), {name: settings.part * (now[name].detach() - old) for name, old in given.items()}
    return train

@raffm_ray.task("shifted", kind="image_classification", ready=True)
def shifted(settings, rng):
    labels = rng.integers(10, size=400)
    images = rng.normal(size=(400, 1, 8, 8)) + labels[:, None, None, None] / 5
    return {"pixel_values": images, "labels": labels}
"""
MINE = {
    "strategy": {"name": "alternate", "aggregation": "shorter"},
    "salience": {"metric": "upside_down", "every": 1},
    "evaluation": {"sizes": 0},
    "plugin_settings": {"mine": {"step": 0.5}},
}


@pytest.fixture(autouse=True)
def _no_plug_ins_are_left():
    yield
    use([])


@pytest.fixture
def methods(tmp_path) -> Path:
    path = tmp_path / "home" / "methods.py"
    path.parent.mkdir()
    path.write_text(METHODS)
    return path


def as_in_a_new_process() -> None:
    """Nothing is imported yet."""
    use([])
    plugins._READ.clear()
    for table in TABLES.values():
        table.shelf.clear()
    for name in [name for name in sys.modules if name.startswith("raffm_ray_plugin_")]:
        del sys.modules[name]


def written(methods: Path, **changes) -> Path:
    """A YAML file beside the plug-in that names it."""
    values = tiny_experiment().model_dump(mode="json")
    for key, value in {**MINE, **changes}.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path = methods.with_name("mine.yaml")
    path.write_text(yaml.safe_dump({**values, "plugins": ["methods.py"]}))
    return path


class _StopError(Exception):
    pass


def stop(row) -> None:
    if row.round == 1:
        raise _StopError


def test_a_file_through_run_resume_report_and_deploy(methods, tmp_path, capsys) -> None:
    experiment = raffm_ray.load(written(methods))
    assert experiment.plugin_settings == {"mine": {"other": "fedrolex", "step": 0.5, "part": 1.0}}
    whole = raffm_ray.simulate(experiment, tmp_path / "whole")
    other = raffm_ray.load(written(methods), ["--plugin_settings.mine.step", "0.25"])
    assert raffm_ray.simulate(other, tmp_path / "other")["params_sha256"] != whole["params_sha256"]  # its settings count

    run = tmp_path / "run"
    with pytest.raises(_StopError):
        raffm_ray.simulate(experiment, run, on_round=stop)
    as_in_a_new_process()
    assert "alternate" not in STRATEGIES
    (entry,) = yaml.safe_load((run / "config.yaml").read_text())["plugins"]
    assert entry["name"] == str(methods)
    methods.write_text(METHODS + "\n")
    with pytest.raises(UserError, match=r"plugins: .*methods.py: is not what it was when the run began"):
        raffm_ray.resume(run)
    methods.unlink()
    with pytest.raises(UserError, match=r"was made with the plug-in methods.py, which was .*home/methods.py and is not there"):
        raffm_ray.resume(run)
    inside = run / "methods.py"
    inside.write_text(METHODS)
    with pytest.raises(UserError, match="nothing in a run's folder is imported"):
        raffm_ray.resume(run, plugins=[str(inside)])
    inside.unlink()
    moved = tmp_path / "elsewhere" / "methods.py"
    moved.parent.mkdir()
    moved.write_text(METHODS)
    assert raffm_ray.resume(run, plugins=[str(moved)])["params_sha256"] == whole["params_sha256"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["made_from"]["plugins.methods.py"] == entry["sha256"]

    as_in_a_new_process()
    assert cli(["report", str(run)]) == 0  # it needs no code
    assert cli(["deploy", str(run), "--budget", "layer_params=0.5", "--out", str(tmp_path / "small")]) == 2
    assert "--plugin methods.py says where it is now" in capsys.readouterr().err
    words = ["deploy", str(run), "--budget", "layer_params=0.5", "--out", str(tmp_path / "small"), "--plugin", str(moved)]
    assert cli(words) == 0


def test_a_folder_that_somebody_sent_brings_no_code(methods, tmp_path) -> None:
    raffm_ray.simulate(raffm_ray.load(written(methods), ["--rounds", "1"]), tmp_path / "run")
    shutil.move(methods, tmp_path / "run" / "methods.py")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(methods), str(tmp_path / "run" / "methods.py")))
    as_in_a_new_process()
    for what in (raffm_ray.resume, lambda folder: raffm_ray.deploy(folder, tmp_path / "small", {"layer_params": 0.5})):
        with pytest.raises(UserError, match="the plug-in methods.py is inside: nothing in a run's folder is imported"):
            what(tmp_path / "run")
    assert "alternate" not in STRATEGIES
    config.write_text("\n".join(line for line in config.read_text().splitlines() if "sha256:" not in line))
    with pytest.raises(UserError, match="says no digest of the plug-in methods.py"):
        raffm_ray.resume(tmp_path / "run")


def test_a_report_imports_a_plug_in_for_its_metric_alone(methods, tmp_path, capsys) -> None:
    raffm_ray.simulate(
        raffm_ray.load(written(methods, task={"name": "shifted", "metric": "right", "public": 40}), ["--rounds", "1"]),
        tmp_path / "run",
    )
    as_in_a_new_process()
    assert "right" not in METRICS
    assert cli(["report", str(tmp_path / "run")]) == 0
    as_in_a_new_process()
    methods.rename(methods.with_name("away.py"))
    assert cli(["report", str(tmp_path / "run")]) == 2
    assert "which was" in capsys.readouterr().err


def test_compare_and_a_study_know_a_plug_in(methods, tmp_path, capsys) -> None:
    path = str(written(methods))
    short = ["--rounds", "1", "--local.steps", "1"]
    words = ["compare", path, *short, "--baselines", "[heterofl]", "--out", str(tmp_path / "compared")]
    assert cli(words) == 0
    assert (tmp_path / "compared" / "alternate" / "seed-0" / "summary.json").is_file()
    study = methods.with_name("study.yaml")
    space = {"plugin_settings.mine.step": {"low": 0.1, "high": 1.0}, "strategy.aggregation": ["shorter", "damped"]}
    given = {"experiment": "mine.yaml", "settings": {"rounds": 1, "task": {"validation": 50}}, "space": space}
    study.write_text(yaml.safe_dump({**given, "objectives": ["full"], "trials": 2}))
    assert cli(["study", str(study), "--out", str(tmp_path / "study")]) == 0
    as_in_a_new_process()
    assert cli(["study", str(tmp_path / "study"), "--trials", "3"]) == 0
    methods.write_text(METHODS + "\n")
    assert cli(["study", str(tmp_path / "study"), "--trials", "4"]) == 2
    assert "is not what it was" in capsys.readouterr().err


OWN_TRAINING = {
    "local": {"client_update": "in_part", "optimizer": "plain", "learning_rate": 0.1, "steps": 2},
    "task": {"name": "shifted", "objective": "smoothed", "public": 40},
    "rounds": 1,
}


def test_own_training_is_what_it_says(methods, tmp_path) -> None:
    """What it returns is what is sent, its own settings reach it, and devices are charged what it says."""
    path = written(methods, **OWN_TRAINING)
    own = raffm_ray.simulate(raffm_ray.load(path), tmp_path / "own")
    assert own["full_model"] != own["start"]  # control
    nothing = raffm_ray.simulate(raffm_ray.load(path, ["--plugin_settings.mine.part", "0"]), tmp_path / "nothing")
    assert nothing["full_model"] == nothing["start"] == own["start"]
    flags = ["--local.client_update", "standard", "--local.clip", "null"]
    plain = raffm_ray.simulate(raffm_ray.load(path, flags), tmp_path / "plain")
    assert plain["full_model"] == pytest.approx(own["full_model"], abs=0.02)
    assert own["flops"] == pytest.approx(2 * plain["flops"])
    with pytest.raises(UserError, match=r"strategy.prefix: must be none with local.client_update 'in_part'"):
        raffm_ray.simulate(raffm_ray.load(written(methods, **OWN_TRAINING), ["--strategy.prefix", "random"]), tmp_path / "no")
    with pytest.raises(UserError, match="local.learning_rate: is required: the optimizer 'plain' names no rates"):
        raffm_ray.simulate(raffm_ray.load(written(methods, **OWN_TRAINING), ["--local.learning_rate", "null"]), tmp_path / "no")
    with pytest.raises(UserError, match="task.objective: 'question_answering' does not take what this model answers"):
        raffm_ray.simulate(
            raffm_ray.load(written(methods, **OWN_TRAINING), ["--task.objective", "question_answering"]), tmp_path / "no"
        )


def test_workers_have_the_plug_ins(methods, tmp_path, four_cores) -> None:
    experiment = raffm_ray.load(written(methods, **OWN_TRAINING))
    here = raffm_ray.simulate(experiment, tmp_path / "here")
    there = raffm_ray.load(written(methods, **OWN_TRAINING), ["--pool.backend", "ray", "--pool.workers", "2"])
    methods.unlink()  # workers on other machines would not have it
    assert raffm_ray.simulate(there, tmp_path / "there")["params_sha256"] == here["params_sha256"]


def test_what_a_job_needs_is_in_the_folder_that_is_sent(methods, tmp_path) -> None:
    files = {methods.resolve(): 1}
    assert plugin_there(str(methods), tmp_path, files) == "home/methods.py"
    assert plugin_there("a_package.rules", tmp_path, files) == "a_package.rules"
    with pytest.raises(UserError, match="left out by a .gitignore"):
        plugin_there(str(methods), tmp_path, {})
    with pytest.raises(UserError, match="outside of"):
        plugin_there(str(methods), tmp_path / "other", {})


def test_the_command_line_names_a_plug_in_and_says_what_it_has(methods, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli(["settings", "plugin_settings", "--plugin", str(methods)]) == 0
    assert "--plugin_settings.mine.step  number; default: 1.0" in capsys.readouterr().out
    assert cli(["settings", "strategy.name", "--plugin", str(methods)]) == 0
    assert "alternate" in capsys.readouterr().out
    path = written(methods)
    for flags, told in {
        ("--strategy.aggregation", "shortr"): "strategy.aggregation: rule 'shortr' is not known (did you mean 'shorter'?)",
        ("--local.optimizer", "adamv"): "local.optimizer 'adamv' is not known (did you mean 'adamw'?)",
        ("--plugin_settings.mine.stp", "1"): "plugin_settings: mine.stp: unknown key (did you mean 'step'?)",
        ("--plugin_settings.mine.step", "x"): "plugin_settings: mine.step: Input should be a valid number",
        ("--plugin_settings.his.step", "1"): "plugin_settings: 'his' is declared by no plug-in",
        ("--plugins", "[not_there.py]"): "not_there.py: cannot be read: No such file or directory",
        ("--plugins", "[not.there]"): "no module of that name is installed here",
        ("--plugins", "3"): "plugins: expected a list",
    }.items():
        assert cli(["run", str(path), *flags, "--out", str(tmp_path / "out")]) == 2
        assert told in capsys.readouterr().err
    as_in_a_new_process()
    path.write_text(path.read_text().replace("plugins:\n- methods.py\n", ""))
    assert cli(["run", str(path), "--out", str(tmp_path / "out")]) == 2  # control: nobody names the file
    assert "plugin_settings: 'mine' is declared by no plug-in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
