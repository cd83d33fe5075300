"""A new head trained alone: on inputs that were computed once it is the full model, and cross-validation says for how long."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TOKENS, architecture_case

from raffm_ray.data.examples import Examples, Ragged, ragged
from raffm_ray.models.freezing import freeze
from raffm_ray.models.objectives import objective_of
from raffm_ray.preparation import head_training
from raffm_ray.preparation.head_training import HeadWork, head_examples, head_parameters, readers, train_head
from raffm_ray.settings.task_and_model import PretrainSettings

ROWS = np.array([3, 1, 4])


def settings(**changes: object) -> PretrainSettings:
    return PretrainSettings(**{"head_epochs": "auto", "head_learning_rate": 2e-3, "batch_size": 4, **changes})


def examples_of(architecture, inputs) -> Examples:
    """The fixture's inputs as examples with labels of the architecture's head; texts are as long as they are."""
    columns: dict[str, np.ndarray | Ragged] = {}
    for name, values in inputs.items():
        mask = inputs.get(name.replace("input_ids", "attention_mask"))
        if name.endswith("input_ids"):
            columns[name] = ragged([row[real.bool()].tolist() for row, real in zip(values, mask, strict=True)], 1)
        elif not name.endswith("mask"):
            columns[name] = values.numpy()
    labels: np.ndarray | Ragged = np.arange(6) % 2
    if architecture.head == "question_answering":
        labels = np.tile(np.array([1, 0, 0, 1]), (6, 1))
    elif "language" in architecture.head or "sequence_to" in architecture.head:
        labels = columns["decoder_input_ids" if "decoder_input_ids" in columns else "input_ids"]
    return Examples(columns, labels)


def loss(architecture, model, examples: Examples, rows: np.ndarray) -> float:
    batch = examples.batch(rows)
    with torch.no_grad():
        output = model(**{name: values for name, values in batch.items() if name != "labels"})
        return float(objective_of(architecture).loss(output, batch["labels"], "mean"))


def test_a_head_on_inputs_computed_once_is_the_full_model(architecture, model, inputs) -> None:
    found = readers(architecture.layout)
    if not found:
        pytest.skip("its output layer is its table of words: it is never new")
    examples = examples_of(architecture, inputs)
    work = HeadWork(architecture=architecture, names=frozenset(found), examples=examples, settings=settings())
    seen = head_training._inputs(model, work, np.random.default_rng(0), lambda _: None)
    head = head_training._Head(dict(model.named_parameters()), work, seen)
    assert head.loss(ROWS) == pytest.approx(loss(architecture, model, examples, ROWS), rel=1e-5)
    others = {name: values.flip(0) for name, values in seen.items()}
    control = head_training._Head(dict(model.named_parameters()), work, others)
    assert control.loss(ROWS) != pytest.approx(loss(architecture, model, examples, ROWS), rel=1e-3)


@pytest.mark.parametrize(
    ("family", "before"), [("bert", "bert.pooler.dense"), ("roberta", "classifier.dense"), ("distilbert", "pre_classifier")]
)
def test_what_stands_before_a_head_is_trained_with_it(family: str, before: str) -> None:
    layout = architecture_case(family, "sequence_classification").layout
    last = {name for name in layout.parameters if name.startswith("classifier") and not name.startswith(f"{before}.")}
    own = {f"{before}.weight", f"{before}.bias"}
    assert head_parameters(layout, last) == last | own
    assert head_parameters(freeze(layout, [f"{before}*"]), last) == last
    assert head_parameters(layout, set()) == set()
    assert head_parameters(freeze(layout, [f"{name}" for name in last]), last) == set()


@pytest.mark.parametrize("family", ["bert"])
def test_cross_validation_says_for_how_long_and_nothing_else_moves(family: str, monkeypatch) -> None:
    architecture = architecture_case(family, "sequence_classification")
    rng = np.random.default_rng(5)
    words = rng.integers(4, 50, (60, TOKENS))
    words[:, 0] = 2 + np.arange(60) % 2  # what the class is, at the place that the head reads
    examples = Examples({"input_ids": ragged(words.tolist(), 1)}, np.arange(60) % 2)
    names = head_parameters(architecture.layout, {"classifier.weight", "classifier.bias"})
    work = HeadWork(architecture=architecture, names=names, examples=examples, settings=settings())
    torch.manual_seed(0)
    start = head_training.build(
        architecture, {name: 0.3 * torch.randn(shape) for name, shape in architecture.shapes.items()}, head_training.Plan()
    ).eval()

    def trained(work: HeadWork) -> tuple[torch.nn.Module, int, list[int]]:
        model, told = copy.deepcopy(start), []
        passes = train_head(model, work, np.random.default_rng(0), lambda step, _: told.append(step))
        return model.eval(), passes, told

    model, passes, told = trained(work)
    again, *_ = trained(work)
    everything = np.arange(60)
    assert 1 <= passes <= head_training.MOST_PASSES
    assert told == sorted(told)
    assert told[-1] == work.steps()
    assert loss(architecture, model, examples, everything) < loss(architecture, start, examples, everything)
    own, other, first = (dict(one.named_parameters()) for one in (model, again, start))
    assert {name for name in own if not torch.equal(own[name], first[name])} == names
    assert all(torch.equal(own[name], other[name]) for name in own)
    fixed, count, _ = trained(replace(work, settings=settings(head_epochs=passes)))
    assert count == passes
    assert any(not torch.equal(own[name], values) for name, values in fixed.named_parameters())  # control: its rate falls
    noise = Examples(examples.inputs, rng.integers(0, 2, 60))
    monkeypatch.setattr(head_training, "PATIENCE", 2)
    _, few, _ = trained(replace(work, examples=noise))
    assert few < passes  # labels that nothing tells are learnt for a shorter time


def test_inputs_that_would_take_too_much_are_of_fewer_examples(monkeypatch) -> None:
    architecture = architecture_case("bert", "question_answering")
    assert head_examples(architecture, 1000) == 1000
    monkeypatch.setattr(head_training, "FEATURE_BYTES", 10 * head_training.feature_bytes(architecture))
    assert head_training.feature_bytes(architecture) == TOKENS * 24 * 4
    assert head_examples(architecture, 1000) == 10
    assert head_examples(architecture, 4) == 4
