"""Law 2 and what a cut means, over the table of families: every new family is tested without editing this file."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from conftest import CASES, TINY, outputs
from cut_models import cut, logits, masked, masked_model
from plans import legal_order, random_cut
from safetensors.torch import save_file
from torch import Tensor, nn

from raffm_ray.axes.indexing import Axis, AxisError, Dim, Indices, Plan, check_plan, dim_axes, dim_size, take
from raffm_ray.axes.layout import Layout, is_kept, take_all
from raffm_ray.axes.nesting import cut_layout, within
from raffm_ray.basics.errors import UserError
from raffm_ray.models.architecture import FAMILIES, HEADS, Architecture, architecture_of, build, skeleton_key
from raffm_ray.models.model_config import parse_config
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import Cutting, longest_prefix, ranked_list
from raffm_ray.subnetworks.salience import METRICS, rank

ALL = ("groups", "heads", "qk", "vo", "ffn")
DECODING = ("causal_language_modelling", "sequence_to_sequence")
decoding = pytest.mark.parametrize("architecture", [case for case in CASES if case[1] in DECODING], ids="-".join, indirect=True)
KINDS = [ALL[:2], ("qk",), ("vo",), ("ffn",), ALL]


def test_every_family_has_a_small_configuration_here() -> None:
    assert set(FAMILIES) == {settings["model_type"] for settings in TINY.values()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_law_2_every_index_in_any_legal_order_gives_the_same_outputs(architecture, model, inputs, rng, attention) -> None:
    plan = legal_order(architecture.layout, rng)
    expected = logits(model, inputs)
    difference = (logits(cut(architecture, model, plan, attention), inputs) - expected).abs().max()
    assert difference < 1e-5 * max(1.0, float(expected.abs().max()))  # rounding grows with what is rounded


def across(dim: Dim, outer: str, inner: str, axes: Mapping[str, Axis], order: Indices) -> Indices | None:
    """The indices of a dim in which every pair of an index of `outer` and one of `inner` has moved; None where it has no such pairs."""
    names = dim_axes(dim)
    if outer not in names or inner not in names:
        return None
    sizes = [axes[name].size for name in names]
    first = np.moveaxis(np.arange(np.prod(sizes)).reshape(sizes), (names.index(outer), names.index(inner)), (0, 1))
    moved = first.reshape(len(order), -1)[order].reshape(first.shape)
    return np.moveaxis(moved, (0, 1), (names.index(outer), names.index(inner))).flatten()


def moved_across(architecture: Architecture, model: nn.Module, outer: str, inner: str, rng: np.random.Generator) -> nn.Module:
    """The full model with one order of pairs of two axes, the same in every parameter that has them."""
    axes = architecture.layout.axes
    order = rng.permutation(axes[outer].size * axes[inner].size)
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach().clone()
        for position, dim in enumerate(architecture.layout.parameters[name].dims):
            parts = [part for part in dim if not isinstance(part, str)] or [dim]
            start, pieces = 0, []
            for part in parts:
                size = dim_size(part, axes) if part else parameter.shape[position]
                moved = across(part, outer, inner, axes, order)
                pieces.append(start + (np.arange(size) if moved is None else moved))
                start += size
            tensors[name] = tensors[name].index_select(position, torch.from_numpy(np.concatenate(pieces)))
    return build(architecture, tensors, Plan()).eval()


@pytest.mark.parametrize("kind", ["qk", "vo"])
def test_law_2_control_an_order_across_heads_changes_the_outputs(architecture, model, inputs, rng, kind) -> None:
    # The same number of indices, but each head's own order is replaced by one over the whole projection.
    site = architecture.layout.attentions[-1]
    outer, inner = (site.groups or site.heads)[-1], {"qk": site.qk, "vo": site.vo}[kind][-1]
    moved = moved_across(architecture, model, outer, inner, rng)
    assert (logits(moved, inputs) - logits(model, inputs)).abs().max() > 1e-2


def test_law_2_control_an_order_that_parts_what_is_fixed_changes_the_outputs(architecture, model, inputs, rng) -> None:
    # Rotary dimensions out of their pairs. Nothing else is fixed, so other families have nothing to part.
    site = architecture.layout.attentions[0]
    if len(site.qk) == 1:
        assert not any(axis.fixed for axis in architecture.layout.axes.values())
        return
    moved = moved_across(architecture, model, *site.qk, rng)
    assert (logits(moved, inputs) - logits(model, inputs)).abs().max() > 1e-2
    with pytest.raises(AxisError, match="is fixed"):
        check_plan(Plan({site.qk[0]: [1, 0]}), architecture.layout.axes)


def test_law_2_control_a_module_that_is_not_told_positions_changes_the_outputs(architecture, model, inputs, rng) -> None:
    # A legal order, but frequencies (RoPE) or position biases (T5) stay where they were.
    for site in architecture.layout.attentions[:2]:
        for name in site.positional:
            size = architecture.layout.axes[name].size
            plan = Plan({name: np.roll(np.arange(size), 1)})
            tensors = take_all({name: p.detach() for name, p in model.named_parameters()}, architecture.layout, plan)
            told, untold = (logits(build(architecture, tensors, one).eval(), inputs) for one in (plan, Plan()))
            assert (told - logits(model, inputs)).abs().max() < 1e-5
            assert (untold - logits(model, inputs)).abs().max() > 1e-2
            assert skeleton_key(architecture, plan) != skeleton_key(architecture, Plan())
            half, other = (Plan({name: np.sort(rng.permutation(size)[: size // 2])}) for _ in range(2))
            assert (skeleton_key(architecture, half) == skeleton_key(architecture, other)) == (half == other)


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
    plan = random_cut(architecture.layout, rng, ALL, layers=True)
    small = cut(architecture, model, plan)
    full = masked_model(architecture, model, plan)
    for one in (small, full):
        outputs(one, inputs).square().mean().backward()
    whole = dict(full.named_parameters())
    for name, parameter in small.named_parameters():
        spec = architecture.layout.parameters[name]
        expected = take(whole[name].grad, spec.dims, architecture.layout.axes, plan)
        torch.testing.assert_close(parameter.grad, expected, atol=2e-6, rtol=1e-4)


def test_a_module_shares_no_memory_with_another_build(architecture, model) -> None:
    plan = Plan({name: [0] for name in architecture.layout.layer_axes})
    small = cut(architecture, model, plan)
    assert {name for name, _ in small.named_parameters()} == {
        n for n, s in architecture.layout.parameters.items() if is_kept(s.layer, plan)
    }
    with torch.no_grad():
        next(small.parameters()).add_(1)
    assert not torch.equal(next(small.parameters()), next(model.parameters()))


def aliases(model: nn.Module) -> dict[str, list[str]]:
    """By the name of every parameter: all names that it has."""
    every = list(model.named_parameters(remove_duplicate=False))
    return {name: sorted(other for other, one in every if one is parameter) for name, parameter in model.named_parameters()}


def test_tied_parameters_stay_one(architecture, model, inputs, rng) -> None:
    plan = random_cut(architecture.layout, rng, ("heads", "ffn", "residual"), layers=True)
    small = cut(architecture, model, plan)
    expected = {
        name: names for name, names in aliases(model).items() if is_kept(architecture.layout.parameters[name].layer, plan)
    }
    assert aliases(small) == expected
    tied = [name for name, names in expected.items() if len(names) > 1]
    assert bool(tied) == (architecture.head in DECODING and bool(getattr(architecture.config, "tie_word_embeddings", False)))
    outputs(small, inputs).square().sum().backward()
    for name in tied:
        gradients = [small.get_parameter(other).grad for other in expected[name]]
        assert all(one is gradients[0] for one in gradients)


def continued(model: nn.Module, inputs: Mapping[str, Tensor], use_cache: bool) -> tuple[Tensor, Tensor]:
    """The words that a model goes on with, and its logits for each of them."""
    result = model.generate(
        **inputs,
        max_new_tokens=6,
        do_sample=False,
        num_beams=1,
        use_cache=use_cache,
        eos_token_id=None,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return result.sequences, torch.stack(result.logits)


def without_first_layers(layout: Layout, seed: int) -> Plan:
    """A random cut without the first layers that can go: how long a text is so far is asked of the first cache."""
    can_go = {spec.layer for spec in layout.parameters.values() if spec.layer}
    first = {axis: min(index for name, index in can_go if name == axis) for axis in layout.layer_axes}
    stay = {axis: [index for index in range(layout.axes[axis].size) if index != first[axis]] for axis in first}
    return Plan({**random_cut(layout, np.random.default_rng(seed), ALL), **stay})


@decoding
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_generate_gives_the_same_words_with_and_without_cache(architecture, model, inputs, seed) -> None:
    small = cut(architecture, model, Plan() if seed is None else without_first_layers(architecture.layout, seed))
    if architecture.head == "sequence_to_sequence":
        asked = {name: values for name, values in inputs.items() if not name.startswith("decoder")}
    else:
        asked = {name: values[[0, 5]] for name, values in inputs.items()}  # those without padding on the right
    words, scores = continued(small, asked, True)
    plain_words, plain_scores = continued(small, asked, False)
    assert torch.equal(words, plain_words)
    assert words.shape[1] >= 7
    torch.testing.assert_close(scores, plain_scores, atol=1e-5, rtol=1e-4)
    if seed is None:
        assert small.generation_config.use_cache
        assert torch.equal(words, continued(model, asked, True)[0])


@decoding
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_text_read_in_two_parts_is_read_the_same(architecture, model, inputs, seed) -> None:
    small = cut(architecture, model, Plan() if seed is None else without_first_layers(architecture.layout, seed))
    if architecture.head == "sequence_to_sequence":
        name, whole = "decoder_input_ids", inputs["decoder_input_ids"][[1, 4]]  # those without padding, as below
        beside = {key: inputs[key][[1, 4]] for key in ("input_ids", "attention_mask")}
    else:
        name, whole, beside = "input_ids", inputs["input_ids"][[0, 5]], {}
    with torch.no_grad():
        expected = small(**beside, **{name: whole}).logits[:, 4:]
        first = small(**beside, **{name: whole[:, :4]}, use_cache=True)
        rest = small(**beside, **{name: whole[:, 4:]}, past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(rest, expected, atol=1e-5, rtol=1e-4)


def test_the_full_plan_is_the_stock_model(architecture, model, inputs) -> None:
    torch.testing.assert_close(logits(cut(architecture, model, Plan()), inputs), logits(model, inputs), atol=1e-5, rtol=0)


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
        ({"pad_token_id": None}, "pad_token_id is needed"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor 1",
        ),
    ],
)
def test_a_decoder_that_cannot_be_cut_is_one_clear_error(change, words) -> None:
    with pytest.raises(UserError, match=words):
        architecture_of(parse_config({**TINY["llama"], **change}), "sequence_classification")


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


@pytest.mark.parametrize("seed", range(2))
def test_a_plan_inside_a_plan_cuts_the_same_in_its_coordinates(architecture, model, seed) -> None:
    rng, layout = np.random.default_rng(seed), architecture.layout
    outer = random_cut(layout, rng, (*ALL, "residual"), layers=True)
    parents = {axis.parent for axis in layout.axes.values()} | layout.layer_axes
    inner = Plan({name: kept if name in parents else kept[..., : (kept.shape[-1] + 1) // 2] for name, kept in outer.items()})
    whole = {name: p.detach() for name, p in model.named_parameters()}
    expected = take_all(whole, layout, inner)
    found = take_all(take_all(whole, layout, outer), cut_layout(layout, outer), within(inner, outer, layout))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("share", [0.9, 0.6])
def test_a_budget_cuts_every_family(architecture, model, inputs, rng, share) -> None:
    cutting = Cutting({"groups": 1, "heads": 1, "qk": 2, "vo": 2, "ffn": 4, "residual": 4}, {"residual": 0.5})
    scores = METRICS["random"].score(architecture.layout, {}, {}, rng)
    budget = Budget(training_flops=share * costs_of(architecture, Plan()).training_flops)
    units = ranked_list(architecture, scores, cutting)
    plan = longest_prefix(architecture, units, rank(scores), cutting, budget)
    check_plan(plan, architecture.layout.axes)
    assert 0.8 * share < costs_of(architecture, plan).training_flops / costs_of(architecture, Plan()).training_flops <= share
    assert logits(cut(architecture, model, plan), inputs).isfinite().all()


def test_layers_of_unlike_attention_cannot_be_dropped() -> None:
    # Such models look up the kind by a layer's position, which moves when one before it goes.
    mixed = {**TINY["qwen2"], "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    layout = architecture_of(parse_config(mixed), "causal_language_modelling").layout
    assert not layout.layer_axes
    assert "layers" not in layout.axes
