"""The last layer of a classifier that looks at one position: the same answers and gradients, with less computed."""

import numpy as np
import pytest
import torch
from conftest import CASES, architecture_case, outputs
from plans import random_cut
from torch.utils.flop_counter import FlopCounterMode

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.models import attention
from raffm_ray.models.architecture import skeleton
from raffm_ray.models.first_position import compute_first_position, reads_first_position
from raffm_ray.models.modules import install

READERS = [case for case in CASES if reads_first_position(architecture_case(*case))]


def answered(architecture, model, inputs, plan: Plan, kind: str, first: bool):
    """(outputs, gradients by name, FLOPs of the forward pass)."""
    module = skeleton(architecture, plan, kind)
    if first:
        compute_first_position(architecture, plan, module)
    values = {name: one.detach() for name, one in model.named_parameters()}
    module = install(module, {name: one.clone() for name, one in take_all(values, architecture.layout, plan).items()}).eval()
    with FlopCounterMode(display=False) as counter:
        answer = outputs(module, inputs)
    (answer * torch.linspace(-1, 1, answer.numel()).view(answer.shape)).sum().backward()
    return answer.detach(), {name: one.grad for name, one in module.named_parameters()}, counter.get_total_flops()


def test_classifiers_of_whole_examples_are_the_ones_that_look_at_one_position() -> None:
    assert {name for name, _ in READERS} >= {"vit", "bert", "roberta", "distilbert"}
    assert {head for _, head in READERS} == {"image_classification", "sequence_classification"}
    assert not {"gpt2", "llama", "t5"} & {name for name, _ in READERS}


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_it_answers_and_learns_the_same_and_computes_less(architecture, model, inputs, kind) -> None:
    kinds = ("heads", "qk", "vo", "ffn", "residual")
    for plan in (Plan(), random_cut(architecture.layout, np.random.default_rng(3), kinds, layers=True)):
        whole, first = (answered(architecture, model, inputs, plan, kind, one) for one in (False, True))
        torch.testing.assert_close(first[0], whole[0], rtol=0, atol=1e-5)
        largest = max(float(one.abs().max()) for one in whole[1].values() if one is not None)
        for name, gradient in whole[1].items():
            if gradient is not None:
                torch.testing.assert_close(first[1][name] / largest, gradient / largest, rtol=0, atol=2e-6)
        if kind == "eager":  # which has its products counted
            assert (first[2] < whole[2]) == reads_first_position(architecture)


def test_control_of_another_position_the_answers_differ(monkeypatch) -> None:
    from conftest import _random_model

    case = architecture_case("bert", "sequence_classification")
    inputs = {"input_ids": torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(0))}
    model = _random_model(case)
    whole = answered(case, model, inputs, Plan(), "eager", False)[0]
    monkeypatch.setattr(attention, "_asked", lambda module, query, mask: (query[:, :, 1:2], mask))
    assert float((answered(case, model, inputs, Plan(), "eager", True)[0] - whole).abs().max()) > 1e-3
