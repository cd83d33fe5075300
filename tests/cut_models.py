"""A cut model, and the full model in which masks hide what the cut removes."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from conftest import outputs
from plans import masks
from torch import Tensor, nn

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import is_kept, take_all
from raffm_ray.models.architecture import Architecture, build, new_model


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return outputs(model, inputs)


def cut(architecture: Architecture, model: nn.Module, plan: Plan, attention: str = "sdpa") -> nn.Module:
    tensors = take_all({name: p.detach().clone() for name, p in model.named_parameters()}, architecture.layout, plan)
    return build(architecture, tensors, plan, attention).eval()


def masked_model(architecture: Architecture, model: nn.Module, plan: Plan) -> nn.Module:
    """The full model with every entry that the plan drops at zero, and dropped layers passing on what they get.

    A layer may answer more than that (position biases for the next one), which stays.
    """

    def pass_on(_: nn.Module, arguments: tuple[Any, ...], answer: Any) -> Any:
        return (arguments[0], *answer[1:]) if isinstance(answer, tuple) else arguments[0]

    full = build(architecture, {name: p.detach().clone() for name, p in model.named_parameters()}, Plan()).eval()
    keep = masks(architecture.layout, architecture.shapes, plan)
    with torch.no_grad():
        for name, parameter in full.named_parameters():
            parameter.mul_(keep[name])
    for site in architecture.layout.attentions:
        if not is_kept(site.layer, plan):
            layer = re.match(r".*?\.\d+(?=\.)", site.module)
            assert layer
            full.get_submodule(layer.group()).register_forward_hook(pass_on)
    return full


def masked(architecture: Architecture, model: nn.Module, plan: Plan, inputs: Mapping[str, Tensor]) -> Tensor:
    return logits(masked_model(architecture, model, plan), inputs)


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in model.named_parameters()}


def shaken(architecture: Architecture) -> nn.Module:
    """A full model of which no parameter is at its initial zeros and ones, adapters neither."""
    full, generator = new_model(architecture, 1).eval(), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return full
