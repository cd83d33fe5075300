"""A lone client's round: what the server cuts from its new model is that client's model, norms included."""

import numpy as np
import pytest
import torch
from conftest import CASES, TARGETS, architecture_case
from torch import Tensor

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan
from raffm_ray.clients import block_sums
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.data.examples import IGNORED, Examples
from raffm_ray.models.architecture import Architecture
from raffm_ray.settings.experiment import LocalSettings
from raffm_ray.subnetworks.norm_correction import norm_statistics

FAMILIES = list({name: (name, head) for name, head in reversed(CASES)}.values())
"""One head of each."""


@pytest.fixture(params=FAMILIES, ids="-".join)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return architecture_case(*request.param)


def examples_of(architecture: Architecture, inputs: dict[str, Tensor]) -> Examples:
    columns = {name: values.numpy() for name, values in inputs.items()}
    labels = np.arange(6) % 2
    if architecture.head == "sequence_to_sequence":
        labels = np.where(inputs["decoder_attention_mask"].bool().numpy(), 5 + np.arange(TARGETS) % 7, IGNORED)
    elif architecture.head == "causal_language_modelling":
        labels = np.where(inputs["attention_mask"].bool().numpy(), inputs["input_ids"].numpy(), IGNORED)
    elif architecture.head == "question_answering":
        labels = np.array([[1, 2, 0, 1]] * 6)
    return Examples(columns, labels)


def residual_cut(architecture: Architecture) -> Plan:
    """Two thirds of the residual stream, some of every FFN."""
    axes = architecture.layout.axes
    return Plan(
        {"residual": np.arange(0, axes["residual"].size * 2 // 3)}
        | {name: np.arange(8) for name in axes if name.endswith("/ffn")}
    )


def difference(architecture: Architecture, model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[float, float]:
    """(largest difference between the client's trained parameters and those cut from the server's new model, largest step)."""
    examples, plan = examples_of(architecture, inputs), residual_cut(architecture)
    runner = ClientRunner(architecture=architecture, examples=examples, shares=[np.arange(6)], held_out=examples)
    flat = flatten({name: values.detach() for name, values in model.named_parameters()}, architecture.shapes)
    norms = norm_statistics(model, architecture.layout, [inputs])
    local = LocalSettings(optimizer="adamw", learning_rate=0.01, steps=3, batch_size=4)
    context = RoundContext(seed=0, round=1, plans=(plan,), local=local, learning_rate=0.01, norms=norms)
    job, parameters = Job(0, 0, weight=2.0), views(flat, architecture.shapes)
    given = {name: values.clone() for name, values in runner.module_factory.cut(parameters, plan, norms).items()}
    change = runner._train(parameters, context, job, 0).change
    trained = {
        name: given[name] + values
        for name, values in views(change, {name: tuple(one.shape) for name, one in given.items()}).items()
    }
    runner.module_factory.release()
    update, summed = runner.block(context, flat.numpy(), [job])
    new = views(flat + torch.from_numpy(summed) / update.weights[0], architecture.shapes)
    again = runner.module_factory.cut(new, plan, norms)
    return max(float((again[name] - trained[name]).abs().max()) for name in trained), float(change.abs().max())


def test_the_server_s_new_model_cut_again_is_the_client_s(architecture, model, inputs) -> None:
    away, step = difference(architecture, model, inputs)
    assert step > 0.01
    assert away < 2e-5


def test_control_changes_of_corrected_norms_taken_as_they_are_give_another_model(
    architecture, model, inputs, monkeypatch
) -> None:
    monkeypatch.setattr(block_sums, "undo_correction", lambda *_: None)
    away, _ = difference(architecture, model, inputs)
    assert away > 1e-4
