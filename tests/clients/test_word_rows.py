"""A client trains the rows of the table of words that its texts use: what it learns is what it learns with the whole table."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.benchmarks.rounds import numpy_of, starting_flat
from raffm_ray.benchmarks.synthetic_data import synthetic
from raffm_ray.clients import single_training
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.data.examples import Examples, ragged
from raffm_ray.models.architecture import architecture_of
from raffm_ray.models.model_config import parse_config
from raffm_ray.models.word_rows import WordRows, word_rows, word_table, words_read
from raffm_ray.preparation.prepare import Prepared

LOCAL = {"batch_size": 4, "steps": 3, "learning_rate": 1e-2}
SMALLER = Plan({"residual": np.arange(12), "0/ffn": np.arange(8)})


def made(name: str = "bert", **local: Any) -> Prepared:
    config = {
        **{key: value for key, value in TINY[name].items() if key != "num_labels"},
        "vocab_size": 2500,
        "max_position_embeddings": 40,
    }
    return synthetic(config, "texts", clients=2, per_round=2, local={**LOCAL, **local}, examples=8)


def learned(prepared: Prepared, flat: np.ndarray, job: Job) -> np.ndarray:
    local = prepared.setup.experiment.local
    context = RoundContext(seed=0, round=1, plans=(SMALLER, Plan()), local=local, learning_rate=local.learning_rate)
    runner = prepared.runner()
    once, again = (runner.block(context, flat, [job])[1] for _ in range(2))
    assert once.tobytes() == again.tobytes()
    return once


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("job", [Job(1, 1), Job(1, 1, (0,), "smallest"), Job(1, 0)], ids=["whole", "prefix", "smaller"])
@pytest.mark.parametrize(
    "local", [{}, {"optimizer": "momentum", "proximal": 0.1, "precision": "bfloat16"}], ids=["adamw", "momentum"]
)
def test_a_client_learns_what_it_learns_with_the_whole_table(name, job, local, monkeypatch) -> None:
    prepared, used = made(name, **local), []
    flat, real = numpy_of(starting_flat(prepared)), single_training.word_rows
    monkeypatch.setattr(single_training, "word_rows", lambda *given: used.append(real(*given)) or used[-1])
    rows = learned(prepared, flat, job)
    monkeypatch.setattr(single_training, "word_rows", lambda *given: None)
    whole = learned(prepared, flat, job)
    assert isinstance(used[0], WordRows)
    assert len(used[0].rows) < 400
    np.testing.assert_allclose(rows, whole, rtol=0, atol=1e-5 * np.abs(whole).max() if not local else 1e-3 * np.abs(whole).max())
    table = word_table(prepared.setup.architecture)
    (changed,) = np.nonzero(views(torch.from_numpy(rows), prepared.setup.architecture.shapes)[table].abs().sum(1).numpy())
    assert set(changed) <= set(used[0].rows.tolist())
    assert len(changed) > 100

    def misplaced(*given: Any) -> WordRows | None:  # control: words that read each other's rows
        found = real(*given)
        return found and WordRows(found.table, found.rows, found.places.roll(1))

    monkeypatch.setattr(single_training, "word_rows", misplaced)
    assert np.abs(learned(prepared, flat, job) - whole).max() > 0.02 * np.abs(whole).max()


def test_with_weight_decay_all_rows_are_trained(monkeypatch) -> None:
    prepared = made(weight_decay=0.1)
    monkeypatch.setattr(single_training, "words_read", None)  # nobody asks
    flat = numpy_of(starting_flat(prepared))
    change = torch.from_numpy(learned(prepared, flat, Job(0, 1)))
    table = views(change, prepared.setup.architecture.shapes)["bert.embeddings.word_embeddings.weight"]
    assert (table.abs().sum(1) > 0).sum() >= len(table) - 1  # the row of padding is all zeros


def test_tables_that_are_multiplied_too_and_small_ones_stay_whole() -> None:
    def table(name: str, head: str) -> str | None:
        return word_table(architecture_of(parse_config(TINY[name]), head, 12, 7))

    assert table("bert", "sequence_classification") == "bert.embeddings.word_embeddings.weight"
    assert table("gpt2", "causal_language_modelling") is None  # tied to what the model says
    assert table("t5", "sequence_to_sequence") is None
    assert table("vit", "image_classification") is None
    architecture = architecture_of(parse_config(TINY["bert"]), "sequence_classification", 12)
    count = TINY["bert"]["vocab_size"]

    def rows(*words: int) -> WordRows | None:
        texts = Examples({"input_ids": ragged([[4], words], 1)}, np.zeros(2, dtype=np.int64))
        return word_rows(architecture, words_read(architecture, texts, np.array([1])), "cpu")

    assert rows(*range(count)) is None
    few = rows(5, 6)
    assert few is not None
    assert few.rows.tolist()[-2:] == [5, 6]
    assert rows(count) is None  # no word: the model says so itself
