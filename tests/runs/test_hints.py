"""A run that learns nothing says so, with the likely cause; one that learns says nothing."""

from dataclasses import replace

import pytest
from conftest import small_tokenizer, tiny_experiment

from raffm_ray.models.foundation import load_foundation
from raffm_ray.preparation.prepare import prepare
from raffm_ray.reports.run_report import write_report
from raffm_ray.runs.hints import hint_at_end, hint_at_start, unused_rows
from raffm_ray.runs.reader import read_rounds
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.task_and_model import ModelSettings


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[RoundRow]:
    folder = tmp_path_factory.mktemp("run")
    simulate(tiny_experiment(evaluation={"every": 1, "sizes": 0}), folder / "run")
    return [RoundRow(**row) for row in read_rounds(folder / "run")]


def test_a_start_at_chance_is_said(rows) -> None:
    prepared = prepare(tiny_experiment())
    experiment, task = prepared.setup.experiment, prepared.task
    told = hint_at_start(experiment, task, replace(rows[0], metric=0.11))
    assert told is not None
    assert told.startswith("note: the full model starts at chance, accuracy 11.0% where always answering ")
    assert "200 public examples was not enough" in told
    assert hint_at_start(experiment, task, replace(rows[0], metric=0.2)) is None
    untrained = prepare(tiny_experiment(model={"pretrain": {"epochs": 0}}))
    told = hint_at_start(untrained.setup.experiment, task, replace(rows[0], metric=0.11))
    assert told is not None
    assert "model.pretrain.epochs: 0" in told


def test_the_report_says_what_the_terminal_said(tmp_path, rows) -> None:
    lazy = {
        "evaluation": {"every": 1, "sizes": 0},
        "rounds": 1,
        "local": {"learning_rate": 1e-12},
        "model": {"pretrain": {"epochs": 0}},
    }
    summary = simulate(tiny_experiment(**lazy), tmp_path / "run")
    start, end = summary["hints"]
    assert (start[:5], end[:8]) == ("note:", "warning:")
    _, page = write_report(tmp_path / "run")
    assert "Warning: the run ends no better than it began" in page.read_text()


def test_an_end_no_better_than_the_start_is_said(rows) -> None:
    experiment = prepare(tiny_experiment()).setup.experiment
    first, last = replace(rows[0], metric=0.5, loss=1.0), replace(rows[-1], metric=0.5, loss=0.9)
    told = hint_at_end(experiment, "accuracy", first, last)
    assert told is not None
    assert "accuracy 50.0% -> 50.0%" in told
    assert "may be too low, or 2 rounds too few" in told
    told = hint_at_end(experiment, "accuracy", first, replace(last, loss=1.5))
    assert told is not None
    assert "rose from 1.000 to 1.500: local.learning_rate 0.001 may be too high" in told
    for loss in (0.99, 1.01):  # within noise: it is no sign of a rate that is too high
        told = hint_at_end(experiment, "accuracy", first, replace(last, loss=loss))
        assert told is not None
        assert f"hardly changed, from 1.000 to {loss:.3f}: 2 rounds may be too few" in told
        assert "too high" not in told
    assert hint_at_end(experiment, "accuracy", first, replace(last, metric=0.51)) is None
    assert hint_at_end(experiment, "accuracy", first, first) is None


def test_rows_of_an_embedding_that_no_word_has_are_told(tmp_path) -> None:
    tokenizer = small_tokenizer(["a", "b"])
    tokenizer.save_pretrained(tmp_path)

    def told(**size: int) -> str | None:
        settings = ModelSettings(tokenizer=str(tmp_path), config={"model_type": "llama", **size})
        return unused_rows(load_foundation(settings, "causal_language_modelling", True, 16), settings)

    words = len(tokenizer)
    line = told(vocab_size=words + 1000)
    assert (
        line == f"model.config.vocab_size: the tokenizer has {words} words, so 1,000 of the {words + 1000:,} rows are never used"
    )
    assert told(vocab_size=words) is None
    assert told() is None
