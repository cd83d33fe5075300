"""The validation part: nobody trains on it, it is not the held-out part, and it alone stops a run or chooses its round."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import tiny_experiment
from rich.console import Console
from round_states import state_of
from text_data import load_texts, sentences, write

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.seeding import generator
from raffm_ray.data.examples import Examples
from raffm_ray.data.tasks import load_task
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs.evaluation import evaluate
from raffm_ray.runs.loop import Environment, train
from raffm_ray.runs.recorder import Recorder, parameters_sha256
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.early_stopping import chosen_state, is_finished, watched_metric, with_best_round
from raffm_ray.server.state import new_state
from raffm_ray.settings.task_and_model import TaskSettings


def digits(validation: int) -> dict[str, list[bytes]]:
    """Every part of the digits, an image as its bytes."""
    task = load_task(TaskSettings(validation=validation), generator(0, "split"))
    return {name: [image.tobytes() for image in part.inputs["pixel_values"]] for name, part in task.parts.items()}


def test_validation_examples_come_out_of_the_clients_only() -> None:
    without, with_them = digits(0), digits(100)
    assert list(without) == ["public", "clients", "held-out"]
    assert (with_them["public"], with_them["held-out"]) == (without["public"], without["held-out"])
    assert len(with_them["validation"]) == 100
    assert sorted(with_them["validation"] + with_them["clients"]) == sorted(without["clients"])
    assert digits(100) == with_them


@pytest.mark.parametrize("limit", [None, 25])
@pytest.mark.parametrize("held_out", [0.25, "test"])
def test_rows_are_divided_the_same_way(words, tmp_path, held_out, limit) -> None:
    texts = [f"{text} {'a' * at}" for at, text in enumerate(sentences(60))]
    for split, part in (("train", slice(0, 40)), ("test", slice(40, 60))):
        write(tmp_path, split, {"text": texts[part], "label": np.arange(60)[part] % 2})
    settings = {"name": "text_classification", "data": str(tmp_path), "held_out": held_out, "examples": limit}
    parts = {
        count: {name: len(part) for name, part in load_texts(words, validation=count, **settings).parts.items()}
        for count in (0, 8)
    }
    left = (limit or (30 if held_out == 0.25 else 40)) - 5
    held = 10 if held_out == 0.25 else 20
    assert parts[0] == {"public": 5, "clients": left, "held-out": held}
    assert parts[8] == {"public": 5, "clients": left - 8, "held-out": held, "validation": 8}
    task = load_texts(words, validation=8, **settings)
    assert task.validation is not None
    assert task.validation_score is not None
    truth = task.validation.labels
    assert task.validation_score(truth[:, None].astype(float)) == 1
    assert task.validation_score(1.0 - truth[:, None]) == 0
    with pytest.raises(UserError, match=r"5 public, 100 validation and \d+ held-out examples leave none of"):
        load_texts(words, validation=100, **settings)


def test_what_is_watched() -> None:
    assert watched_metric("full_model", "accuracy", 0.9, [0.3, 0.6]) == 0.9
    assert watched_metric("worst", "accuracy", 0.9, [0.3, 0.6]) == 0.3
    assert watched_metric("worst", "perplexity", 9.0, [3.0, 6.0]) == 6.0
    assert watched_metric("mean", "accuracy", 0.9, [0.3, 0.6]) == pytest.approx(0.6)


def history(values: list[float], metric: str = "accuracy", **evaluation: Any) -> Any:
    """The state after evaluations in rounds 0, 1, 2 and so on; a round's parameters are its number."""
    setup = prepare(tiny_experiment(rounds=50, task={"validation": 20}, evaluation=evaluation)).setup
    state = new_state(torch.zeros(1))
    for number, value in enumerate(values):
        state = replace(state, round=number, parameters=torch.full((1,), float(number)), moments={"mean": torch.ones(1)})
        state = with_best_round(setup, state, metric, value)
        if is_finished(setup, state):
            break
    return setup, state


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("accuracy", [0.1, 0.5, 0.4, 0.5, 0.2], 1),
        ("perplexity", [9.0, 5.0, 4.0, 4.0, 6.0], 2),
        ("accuracy", [0.9, 0.5], 0),
        ("accuracy", [float("nan"), 0.1, float("nan"), 0.2], 3),
        ("perplexity", [float("inf"), float("inf"), 5.0, float("nan")], 2),
    ],
)
def test_the_first_of_the_best_rounds_is_the_best(metric, values, best) -> None:
    setup, state = history(values, metric, keep_best=True)
    assert (state.best.round, state.best.validation, state.best.since) == (best, values[best], len(values) - 1 - best)
    kept = chosen_state(setup, state)
    assert kept.round == best
    assert float(kept.parameters) == best
    assert kept.best is state.best
    assert chosen_state(*history(values, metric)).round == len(values) - 1
    assert history(values, metric)[1].best.state is None


def test_patience_counts_evaluations_without_improvement() -> None:
    falling = [0.1, 0.5, 0.4, 0.3, 0.2, 0.9]
    assert history(falling, patience=3)[1].round == 4
    assert history(falling, patience=4)[1].round == 5
    assert history(falling)[1].round == 5
    assert history([0.1, 0.2, 0.3, 0.4], patience=1)[1].round == 3


@pytest.mark.parametrize(("key", "value"), [("patience", 2), ("keep_best", True)])
def test_without_validation_examples_it_is_refused(key, value) -> None:
    with pytest.raises(UserError, match=f"evaluation.{key}: {value} needs examples to validate on: set task.validation"):
        prepare(tiny_experiment(evaluation={key: value}))
    assert prepare(tiny_experiment(evaluation={key: value}, task={"validation": 10})).task.validation is not None


RUINED: dict[str, Any] = {
    "rounds": 3,
    "model": {"pretrain": {"epochs": 12, "learning_rate": 5e-3}},
    "local": {"learning_rate": 1.0},
    "salience": {"metric": "l1"},
    "task": {"validation": 60},
    "clients": {"per_round": 2},
}
"""Training that makes everything worse, so that the start is the best round."""


def test_a_run_stops_and_keeps_the_best_validated_round(tmp_path) -> None:
    experiment = tiny_experiment(**RUINED, evaluation={"every": 1, "patience": 1, "keep_best": True})
    summary = simulate(experiment, tmp_path / "kept")
    prepared = prepare(experiment)
    start = starting_parameters(prepared, lambda *_: None, lambda *_: None)
    assert (summary["rounds"], summary["best_round"]) == (1, 0)
    assert summary["params_sha256"] == parameters_sha256(start, prepared.setup.architecture)
    assert summary["full_model"] == summary["start"]
    assert all(device_type["metric"] == device_type["start"] for device_type in summary["device_types"].values())
    rounds = pq.read_table(tmp_path / "kept" / "rounds").to_pylist()
    assert len(rounds) == 2
    assert rounds[1]["validation"] < rounds[0]["validation"]
    later = tiny_experiment(**RUINED, evaluation={"every": 2})
    summary = simulate(later, tmp_path / "last")
    assert (summary["rounds"], summary["best_round"]) == (3, 0)
    assert summary["params_sha256"] != parameters_sha256(start, prepared.setup.architecture)
    validated = [row["validation"] is not None for row in pq.read_table(tmp_path / "last" / "rounds").to_pylist()]
    assert validated == [True, False, True, True]


def test_without_a_validation_part_there_is_no_best_round(tmp_path) -> None:
    summary = simulate(tiny_experiment(rounds=1, salience={"metric": "l1"}), tmp_path / "run")
    assert (summary["rounds"], summary["best_round"]) == (1, None)
    assert pq.read_table(tmp_path / "run" / "rounds").to_pylist()[0]["validation"] is None


@pytest.mark.parametrize("watch", ["full_model", "worst"])
def test_it_is_measured_on_the_validation_part(watch) -> None:
    prepared = prepare(tiny_experiment(task={"validation": 70}, evaluation={"watch": watch, "batch_size": 32}))
    start = starting_parameters(prepared, lambda *_: None, lambda *_: None)
    state, task, runner = replace(state_of(prepared), parameters=start), prepared.task, prepared.runner()
    found = evaluate(prepared.setup, state, InProcessPool(prepared.runner()), task)
    parts = {"validation": task.validation, "held_out": task.held_out}
    right = {
        name: {
            device: np.mean(_classes(runner, state, plan, part) == part.labels)
            for device, plan in {"full": Plan(), **found.device_type_plans}.items()
        }
        for name, part in parts.items()
    }
    full = right["validation"].pop("full")
    assert found.validation == pytest.approx(full if watch == "full_model" else min(right["validation"].values()))
    assert found.metric == pytest.approx(right["held_out"].pop("full"))
    assert found.device_type_metrics == pytest.approx(right["held_out"])


def _classes(runner: Any, state: Any, plan: Plan, part: Examples) -> np.ndarray:
    module = runner.module_factory.module(views(state.parameters, runner.architecture.shapes), plan, {}).eval()
    with torch.no_grad():
        classes = module(pixel_values=part.batch(slice(None))["pixel_values"]).logits.argmax(-1).numpy()
    runner.module_factory.release()
    return classes


def test_the_held_out_part_decides_nothing(tmp_path) -> None:
    experiment = tiny_experiment(**RUINED, evaluation={"every": 1, "keep_best": True})
    prepared = prepare(experiment)
    start = starting_parameters(prepared, lambda *_: None, lambda *_: None)
    best = {}
    for name, part in (("plain", None), ("held_out", "score"), ("validation", "validation_score")):
        # Every later answer counts for more than the start's.
        asked = iter(range(1000))
        task = prepared.task if part is None else replace(prepared.task, **{part: lambda _, asked=asked: next(asked) / 1000})
        changed = replace(prepared, task=task)
        recorder = Recorder(tmp_path / name, experiment)
        best[name] = train(changed, start, recorder, Environment(InProcessPool(prepared.runner()), Console(quiet=True)))[
            "best_round"
        ]
    assert best == {"plain": 0, "held_out": 0, "validation": 3}


def test_a_state_that_is_compared_is_otherwise_as_it_was() -> None:
    prepared = prepare(tiny_experiment(task={"validation": 20}))
    state = replace(state_of(prepared), moments={"mean": torch.ones(3)}, ranked_at=4)
    after = with_best_round(prepared.setup, state, "accuracy", 0.5)
    assert replace(after, best=None) == state
    assert with_best_round(prepared.setup, state, "accuracy", None) is state
