"""A run from Python: examples of docstrings run, and what the object says is what the run left."""

import doctest
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, small_tokenizer
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForSequenceClassification

import raffm_ray
from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs.callbacks import Callback
from raffm_ray.runs.reader import read_rounds, read_summary
from raffm_ray.settings.loading import parse, resolved
from raffm_ray.subnetworks.costs import costs_of

SHOWN = [raffm_ray.run, raffm_ray.Run, raffm_ray.Experiment, raffm_ray.ModelSettings, Callback]
"""In an order in which the first makes the run that others show."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples of docstrings ran."""
    place, before = tmp_path_factory.mktemp("examples"), Path.cwd()
    runner, finder, told = doctest.DocTestRunner(), doctest.DocTestFinder(), list[str]()
    os.chdir(place)
    try:
        for shown in SHOWN:
            for example in finder.find(shown, globs={}):
                runner.run(example, out=told.append)
    finally:
        os.chdir(before)
    assert not runner.failures, "".join(told)
    assert runner.tries >= 20
    return place / "runs" / "example"


def test_control_an_example_that_is_wrong_is_seen() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(example, out=lambda _: None).failed == 1


def test_tables_hold_what_was_recorded(folder: Path) -> None:
    run = raffm_ray.Run(str(folder))
    assert run.summary == read_summary(folder)
    rows = read_rounds(folder)
    assert list(run.rounds["round"]) == [0, 1, 2]
    for device, value in rows[-1]["device_type_metrics"]:
        assert run.rounds[f"device_type_metrics.{device}"].iloc[-1] == value
        assert np.isnan(run.rounds[f"device_type_metrics.{device}"].iloc[1])
    assert run.clients["bytes_up"].sum() == run.summary["bytes_up"]
    assert run.baselines == {}
    assert repr(run).startswith(f"Run({str(folder)!r}): After 2 rounds")


def test_a_notebook_shows_the_result_as_text_alone(folder: Path) -> None:
    run = raffm_ray.Run(folder)
    page = run._repr_html_()
    assert "<th>parameters</th>" in page
    assert f"<td>{run.summary['params']:,}</td>" in page
    run.summary = {**run.summary, "strategy": "<script>"}
    assert "<script>" not in run._repr_html_()
    assert "&lt;script&gt;" in run._repr_html_()


def test_a_model_of_a_budget_is_the_one_that_deploying_gives(folder: Path) -> None:
    run = raffm_ray.Run(folder)
    small, images = run.model(budget={"layer_params": 0.5}), torch.rand(3, 1, 8, 8)
    full = run.model()
    assert full.num_parameters() == run.summary["params"]
    final = type(full).from_pretrained(folder / "checkpoints" / "final").eval()
    with torch.inference_mode():
        assert torch.equal(full(images).logits, final(images).logits)
        assert not torch.allclose(small(images).logits, full(images).logits)
    architecture = prepare(raffm_ray.load(folder / "config.yaml")).setup.architecture
    whole = costs_of(architecture, Plan()).layer_params
    outside = full.num_parameters() - whole
    assert small.num_parameters() - outside <= 0.5 * whole
    with pytest.raises(UserError, match=r"^budget: expected a mapping such as \{'params': 0.5\}, got 0.5$"):
        run.model(budget=0.5)
    with pytest.raises(UserError, match="no finished run here"):
        raffm_ray.Run(folder / "rounds")


def bert() -> AutoModelForSequenceClassification:
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**{**TINY["bert"], "num_labels": 2}))


def test_a_fitted_model_is_what_the_run_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [f"a {'good' if number % 2 else 'bad'} shop,{number % 2}" for number in range(60)]
    Path("reviews.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    fitted, tokenizer = bert(), small_tokenizer(["a", "bad", "good", "shop"])
    none = raffm_ray.PretrainSettings(epochs=0, head_epochs=0)
    experiment = raffm_ray.Experiment(
        task=raffm_ray.TaskSettings(name="text_classification", data="reviews.csv", public=10, max_length=16),
        model=raffm_ray.ModelSettings.of(fitted, tokenizer, pretrain=none),
        clients=raffm_ray.ClientSettings(count=4, per_round=2, partition="iid"),
        pool=raffm_ray.PoolSettings(backend="in_process"),
    )
    known = resolved(experiment)
    assert known.task.data == str(tmp_path / "reviews.csv")
    prepared = prepare(known)
    start = views(starting_parameters(prepared, lambda *_: None, lambda _: None), prepared.setup.architecture.shapes)
    given = dict(fitted.named_parameters())
    assert all(torch.equal(values, given[name]) for name, values in start.items())
    again = raffm_ray.ModelSettings.of(fitted, tokenizer)
    assert again.pretrained == experiment.model.pretrained
    with torch.no_grad():
        fitted.classifier.bias.add_(1)
    assert raffm_ray.ModelSettings.of(fitted, tokenizer).pretrained != again.pretrained  # control
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 2
    assert raffm_ray.ModelSettings(pretrained=Path(again.pretrained)) == raffm_ray.ModelSettings(pretrained=again.pretrained)
    with pytest.raises(UserError, match=r"^model: expected one of transformers, which has save_pretrained, got Linear$"):
        raffm_ray.ModelSettings.of(torch.nn.Linear(2, 2))


def test_an_experiment_of_keyword_arguments_is_the_one_of_nested_values(tmp_path: Path) -> None:
    values = {
        "model": {"config": {"model_type": "vit"}},
        "rounds": 3,
        "local": {"epochs": 2},
        "fleet": {"budgets": {"laptop": {"params": 1.0}}},
    }
    built = raffm_ray.Experiment(
        model=raffm_ray.ModelSettings(config={"model_type": "vit"}),
        rounds=3,
        local=raffm_ray.LocalSettings(epochs=2),
        fleet=raffm_ray.FleetSettings(budgets={"laptop": {"params": 1.0}}),
    )
    assert built == parse(values)
    changed = built.with_settings(local={"batch_size": 4}, fleet={"budgets": {"v100": {"params": 0.5}}})
    assert (changed.local.epochs, changed.local.batch_size, changed.rounds) == (2, 4, 3)
    assert changed.fleet.budgets == {"v100": {"params": 0.5}}
    with pytest.raises(ValidationError, match="per_round 10 must not exceed count 2"):
        built.with_settings(clients={"count": 2})
