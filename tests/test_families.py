"""Law 2 and what a cut means, over the table of families: every new family is tested without editing this file."""

import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from conftest import TINY, outputs
from plans import legal_order, masks, random_cut
from safetensors.torch import save_file
from torch import Tensor, nn

from raffm_ray.architectures import FAMILIES, HEADS, Architecture, architecture_of, build, parse_config
from raffm_ray.axes import Axis, Layout, Parameter, Plan, is_kept, take, take_all
from raffm_ray.errors import UserError

KINDS = [("heads",), ("qk",), ("vo",), ("ffn",), ("heads", "qk", "vo", "ffn")]


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return outputs(model, inputs)


def cut(architecture: Architecture, model: nn.Module, plan: Plan, attention: str = "sdpa") -> nn.Module:
    tensors = take_all({name: p.detach().clone() for name, p in model.named_parameters()}, architecture.layout, plan)
    return build(architecture, tensors, plan, attention).eval()


def test_every_family_has_a_small_configuration_here() -> None:
    assert set(FAMILIES) == set(TINY)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_law_2_every_index_in_any_legal_order_gives_the_same_outputs(architecture, model, inputs, rng, attention) -> None:
    plan = legal_order(architecture.layout, rng)
    difference = (logits(cut(architecture, model, plan, attention), inputs) - logits(model, inputs)).abs().max()
    assert difference < 1e-5


def test_law_2_control_an_order_across_heads_changes_the_outputs(architecture, model, inputs, rng) -> None:
    # The same number of indices, but each head's own order is replaced by one over the whole projection.
    layout = architecture.layout
    axes = dict(layout.axes)
    parameters = dict(layout.parameters)
    for name in ("0/qk", "0/vo"):
        size = layout.axes["0/heads"].size * layout.axes[name].size
        axes[f"whole {name}"] = Axis(f"whole {name}", size)
    for key, spec in layout.parameters.items():
        dims = tuple((f"whole {dim[1]}",) if dim in (("0/heads", "0/qk"), ("0/heads", "0/vo")) else dim for dim in spec.dims)
        parameters[key] = Parameter(dims, spec.layer, spec.matmul)
    across = Plan({name: rng.permutation(axis.size) for name, axis in axes.items() if name.startswith("whole")})
    tensors = take_all({name: p.detach() for name, p in model.named_parameters()}, Layout(axes, parameters), across)
    difference = (logits(build(architecture, tensors, Plan()).eval(), inputs) - logits(model, inputs)).abs().max()
    assert difference > 1e-2


def masked_model(architecture: Architecture, model: nn.Module, plan: Plan) -> nn.Module:
    """The full model with every entry that the plan drops at zero, and dropped layers passing on what they get."""
    full = build(architecture, {name: p.detach().clone() for name, p in model.named_parameters()}, Plan()).eval()
    keep = masks(architecture.layout, architecture.shapes, plan)
    with torch.no_grad():
        for name, parameter in full.named_parameters():
            parameter.mul_(keep[name])
    for site in architecture.layout.attentions:
        if not is_kept(site.layer, plan):
            layer = re.match(r".*?\.\d+(?=\.)", site.module)
            assert layer
            full.get_submodule(layer.group()).register_forward_hook(lambda _, inputs, __: inputs[0])
    return full


def masked(architecture: Architecture, model: nn.Module, plan: Plan, inputs: Mapping[str, Tensor]) -> Tensor:
    return logits(masked_model(architecture, model, plan), inputs)


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
@pytest.mark.parametrize("layers", [False, True], ids=["all-layers", "some-layers"])
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_equals_the_masked_full_model(architecture, model, inputs, kinds, layers, seed) -> None:
    plan = random_cut(architecture.layout, np.random.default_rng(seed), kinds, layers)
    small = cut(architecture, model, plan)
    difference = (logits(small, inputs) - masked(architecture, model, plan, inputs)).abs().max()
    assert difference < 1e-5
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in model.parameters())


def test_a_cut_control_masking_other_units_differs(architecture, model, inputs) -> None:
    first = random_cut(architecture.layout, np.random.default_rng(0), ("ffn",))
    second = random_cut(architecture.layout, np.random.default_rng(1), ("ffn",))
    assert (logits(cut(architecture, model, first), inputs) - masked(architecture, model, second, inputs)).abs().max() > 1e-3


def test_gradients_of_a_cut_equal_the_masked_model_s(architecture, model, inputs, rng) -> None:
    plan = random_cut(architecture.layout, rng, ("heads", "qk", "vo", "ffn"), layers=True)
    small = cut(architecture, model, plan)
    full = masked_model(architecture, model, plan)
    for one in (small, full):
        outputs(one, inputs).square().sum().backward()
    whole = dict(full.named_parameters())
    for name, parameter in small.named_parameters():
        spec = architecture.layout.parameters[name]
        expected = take(whole[name].grad, spec.dims, architecture.layout.axes, plan)
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-4)


def test_a_module_shares_no_memory_with_another_build(architecture, model) -> None:
    plan = Plan({"layers": [0, 2]})
    small = cut(architecture, model, plan)
    assert {name for name, _ in small.named_parameters()} == {
        n for n, s in architecture.layout.parameters.items() if is_kept(s.layer, plan)
    }
    with torch.no_grad():
        next(small.parameters()).add_(1)
    assert not torch.equal(next(small.parameters()), next(model.parameters()))


def test_the_full_plan_is_the_stock_model(architecture, model, inputs) -> None:
    torch.testing.assert_close(logits(cut(architecture, model, Plan()), inputs), logits(model, inputs), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "vitt"}, "model type 'vitt' has no table of axes .did you mean 'vit'.*FAMILIES"),
        ({"hiden_size": 8}, "'hiden_size' is not a field of vit .did you mean 'hidden_size'"),
        ({"hidden_size": 25}, "hidden_size 25 must be a multiple of num_attention_heads 3"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_clear_error(change, words) -> None:
    with pytest.raises(UserError, match=words):
        parse_config({**TINY["vit"], **change})


def test_a_head_that_a_family_lacks_is_named() -> None:
    with pytest.raises(UserError, match="'vit' has no 'question_answering' head here"):
        architecture_of(parse_config(TINY["vit"]), "question_answering")


def test_a_saved_model_loads_through_the_auto_class(architecture, model, inputs, tmp_path) -> None:
    save_file(
        {name: p.detach().clone() for name, p in model.named_parameters()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    architecture.config.save_pretrained(tmp_path)
    loaded = HEADS[architecture.head].from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded, inputs), logits(model, inputs), atol=1e-6, rtol=0)
