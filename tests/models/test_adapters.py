"""Low-rank adapters in every family: laws 1 to 4, costs, rotation and merging, as of every other parameter."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, architecture_case, outputs
from cut_models import cut, logits, masked, masked_model, named, shaken
from plans import legal_order, random_cut
from realistic_models import LEARNS, REALISTIC, training_batch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from raffm_ray.axes.indexing import Plan, dim_axes, scatter_add, take
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.errors import UserError
from raffm_ray.models.adapters.lora import factors, merged, rank_axis, without_adapters
from raffm_ray.models.adapters.targets import KINDS, adapted_weights, module_of, projections
from raffm_ray.models.architecture import Architecture, adapted, architecture_of, build, new_model
from raffm_ray.models.freezing import for_training, freeze
from raffm_ray.models.model_config import parse_config
from raffm_ray.models.stacked_modules import stacked_skeleton
from raffm_ray.settings.adapters import AdapterSettings
from raffm_ray.subnetworks.costs import FLOAT_BYTES, activation_floats, costs_of
from raffm_ray.subnetworks.rotation import collect_moments, rotatable, rotate

ALL = ("groups", "heads", "qk", "vo", "ffn", "rank")
SETTINGS = AdapterSettings(rank=4, alpha=6.0)


@pytest.fixture(params=CASES, ids="-".join)
def plain(request: pytest.FixtureRequest) -> Architecture:
    return architecture_case(*request.param)


@pytest.fixture
def architecture(plain: Architecture) -> Architecture:
    return adapted(plain, SETTINGS)


@pytest.fixture
def model(architecture: Architecture) -> nn.Module:
    return shaken(architecture)


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


def test_names_and_shapes_are_the_module_s_and_all_else_is_frozen_but_heads(plain, architecture) -> None:
    model = new_model(architecture, 0)
    assert {name: tuple(one.shape) for name, one in model.named_parameters()} == dict(architecture.shapes)
    assert list(dict(model.named_parameters())) == list(architecture.shapes)
    trained = {name for name, spec in architecture.layout.parameters.items() if not spec.frozen and not spec.adapts}
    heads = {module_of(name) for name in trained}
    assert heads.isdisjoint(architecture.adapters.modules)
    assert bool(heads) == (plain.head not in ("causal_language_modelling", "sequence_to_sequence"))
    assert set(plain.shapes) == {name for name, spec in architecture.layout.parameters.items() if not spec.adapts}


def test_every_attention_and_ffn_has_its_kinds_of_projections(plain) -> None:
    kinds, sites = projections(plain.layout), plain.layout.attentions
    found = [kind for of in kinds.values() for kind in of]
    assert set(found) <= set(KINDS)
    for kind in ("query", "key", "value", "output"):
        assert found.count(kind) == len(sites), kind
    assert found.count("up") == found.count("down") == sum(site.ffn is not None for site in sites)
    assert found.count("gate") in (0, found.count("up"))
    assert adapted_weights(plain.layout, ["all"]) == list(kinds)
    for name, of in kinds.items():  # what each is called in some family
        words = {"query": "q", "key": "k", "value": "v", "output": "o", "gate": "gate_proj", "up": "up", "down": "down"}
        last = module_of(name).rsplit(".", 1)[-1]
        if last in (
            "query",
            "key",
            "value",
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
            "q",
            "k",
            "v",
            "o",
        ):
            assert len(of) == 1
            assert last in (of[0], f"{words[of[0]]}_proj", words[of[0]])


def test_a_new_adapter_changes_nothing(plain, architecture, inputs) -> None:
    fresh = new_model(architecture, 5).eval()
    stock = build(plain, {name: values for name, values in named(fresh).items() if name in plain.shapes}, Plan()).eval()
    assert torch.equal(logits(fresh, inputs), logits(stock, inputs))
    assert torch.equal(
        dict(new_model(plain, 5).named_parameters())[next(iter(plain.shapes))], named(fresh)[next(iter(plain.shapes))]
    )


def test_an_adapter_is_w_plus_s_b_a(plain, architecture, model, inputs) -> None:
    parameters = named(model)
    together = merged(parameters, architecture.layout, architecture.adapters)
    assert close(logits(build(plain, together, Plan()).eval(), inputs), logits(model, inputs))
    assert without_adapters(architecture.layout) == plain.layout
    # Controls: without alpha / rank, and without adapters.
    unscaled = merged(parameters, architecture.layout, replace(architecture.adapters, scale=1.0))
    assert not close(logits(build(plain, unscaled, Plan()).eval(), inputs), logits(model, inputs))


@pytest.mark.parametrize("seed", range(2))
def test_merging_and_cutting_may_be_done_in_either_order(plain, architecture, model, inputs, seed) -> None:
    rng = np.random.default_rng(seed)
    plan = random_cut(architecture.layout, rng, ALL[:-1], layers=True)
    together = merged(named(model), architecture.layout, architecture.adapters)
    first = build(plain, take_all(together, plain.layout, plan), plan).eval()
    assert close(logits(first, inputs), logits(cut(architecture, model, plan), inputs))
    ranks = random_cut(architecture.layout, rng, ALL, layers=True)
    small = merged(take_all(named(model), architecture.layout, ranks), architecture.layout, architecture.adapters)
    base = Plan({name: kept for name, kept in ranks.items() if not name.endswith("/rank")})
    assert close(logits(build(plain, small, base).eval(), inputs), logits(cut(architecture, model, ranks), inputs))


def test_law_1_and_4_are_those_of_any_axis(architecture, rng) -> None:
    plan = random_cut(architecture.layout, rng, ALL)
    for module in architecture.adapters.modules:
        for name in factors(module):
            dims, shape, axes = architecture.layout.parameters[name].dims, architecture.shapes[name], architecture.layout.axes
            x = torch.randn(shape, dtype=torch.float64)
            part = take(x, dims, axes, plan)
            y = torch.randn(part.shape, dtype=torch.float64)
            back = scatter_add(torch.zeros(shape, dtype=torch.float64), y, dims, axes, plan)
            assert torch.allclose((part * y).sum(), (x * back).sum())


def test_law_2_ranks_in_any_order_give_the_same_outputs(architecture, model, inputs, rng) -> None:
    plan = legal_order(architecture.layout, rng, (*ALL, "residual"))
    assert any(name.endswith("/rank") for name in plan)
    assert close(logits(cut(architecture, model, plan), inputs), logits(model, inputs))


def test_law_2_control_one_of_the_two_projections_in_another_order_changes_the_outputs(architecture, model, inputs) -> None:
    tensors, (down, _) = named(model), factors(architecture.adapters.modules[0])
    tensors[down] = tensors[down].flip(0)
    assert not close(logits(build(architecture, tensors, Plan()).eval(), inputs), logits(model, inputs))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kinds", [("rank",), ALL], ids="-".join)
def test_a_cut_equals_the_masked_full_model(architecture, model, inputs, kinds, seed) -> None:
    plan = random_cut(architecture.layout, np.random.default_rng(seed), kinds, layers=bool(seed))
    assert close(logits(cut(architecture, model, plan), inputs), masked(architecture, model, plan, inputs))


def test_gradients_of_a_cut_equal_the_masked_model_s(architecture, model, inputs, rng) -> None:
    plan = random_cut(architecture.layout, rng, ALL, layers=True)
    small = for_training(cut(architecture, model, plan), architecture.layout)
    full = masked_model(architecture, model, plan)
    for one in (small, full):
        outputs(one, inputs).square().mean().backward()
    whole = dict(full.named_parameters())
    for name, parameter in small.named_parameters():
        spec = architecture.layout.parameters[name]
        if not spec.frozen:
            expected = take(whole[name].grad, spec.dims, architecture.layout.axes, plan)
            torch.testing.assert_close(parameter.grad, expected, atol=2e-6, rtol=1e-4)
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("what", ["adapters", "up only", "down only", "some"])
def test_flops_are_those_that_autograd_computes(architecture, model, inputs, what) -> None:
    rng = np.random.default_rng(4)
    patterns = {"up only": ["*lora_A*"], "down only": ["*lora_B*"], "some": ["*.0.*lora*"]}.get(what, [])
    held = replace(architecture, layout=freeze(architecture.layout, patterns))
    plan = random_cut(held.layout, rng, ALL, layers=True) if what == "adapters" else Plan()
    model.requires_grad_(False)
    small = for_training(cut(held, model, plan, "eager"), held.layout)
    with FlopCounterMode(display=False) as counted:
        outputs(small, inputs).sum().backward()
    examples = len(next(iter(inputs.values())))
    assert costs_of(held, plan).training_flops * examples == counted.get_total_flops()
    trained = sum(one.numel() for one in small.parameters() if one.requires_grad)
    assert costs_of(held, plan).bytes_up == FLOAT_BYTES * trained


@pytest.mark.parametrize("name", ["cifar", "bert", "gpt2", "qwen3", "t5_gated"])
@pytest.mark.parametrize(
    ("targets", "dropout"),
    [(("all",), 0.0), (("query", "value"), 0.0), (("down",), 0.0), (("all",), 0.1), (("query", "value"), 0.1)],
)
def test_training_memory_is_within_15_percent_of_what_autograd_keeps(name, targets, dropout) -> None:
    config = parse_config(REALISTIC[name])
    free = architecture_of(config, LEARNS.get(config.model_type, "causal_language_modelling"), 64, 32)
    architecture = adapted(free, AdapterSettings(rank=16, targets=targets, dropout=dropout))
    module, batch = for_training(new_model(architecture, 0), architecture.layout), 8
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, int] = {}
    alive: list[Any] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        module(**training_batch(architecture, batch)).loss.backward()
    counted = sum(saved.values())
    assert activation_floats(architecture, Plan()) * batch * FLOAT_BYTES == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize("calibrated", [False, True], ids=["weights", "calibrated"])
def test_a_rotated_model_is_the_same_function(architecture, model, inputs, calibrated) -> None:
    if all(rotatable(architecture.layout).values()):
        pytest.skip("nothing of this family can be rotated")
    moments = collect_moments(model, architecture.layout, [inputs]) if calibrated else None
    tensors = rotate(architecture.layout, named(model), moments)
    assert close(logits(build(architecture, tensors, Plan()).eval(), inputs), logits(model, inputs))
    adapters = [name for name, spec in architecture.layout.parameters.items() if spec.adapts]
    left = {name: values if name not in adapters else named(model)[name] for name, values in tensors.items()}
    assert not close(logits(build(architecture, left, Plan()).eval(), inputs), logits(model, inputs))


def test_clients_that_are_stacked_have_adapters_of_their_own(architecture, model, inputs, rng) -> None:
    plan = random_cut(architecture.layout, rng, ("rank",))
    try:
        stacked = stacked_skeleton(architecture, plan, "sdpa")
    except ValueError:
        pytest.skip("this family is not stacked")
    clients = []
    for seed in range(2):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        clients.append(other)
    cuts = [take_all(named(one), architecture.layout, plan) for one in clients]
    parameters = {name: torch.stack([one[name] for one in cuts]) for name in cuts[0]}
    twice = {name: torch.cat([values, values]) for name, values in inputs.items()}
    found = stacked(parameters, twice)
    expected = torch.cat([_first(cut(architecture, one, plan)(**inputs)) for one in clients])
    assert close(_first(found), expected)


def _first(output: Any) -> Tensor:
    return output.logits if hasattr(output, "logits") else output.start_logits


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"targets": ("querry",)}, "'querry' names no linear layer of this model .did you mean 'query'"),
        ({"targets": ("*.attention.self.quer",)}, "names no linear layer"),
        ({"targets": ("bert.embeddings.word_embeddings",)}, "names no linear layer"),
        (
            {"rank": 25},
            "model.adapters.rank: must be at most 24, the smaller side of bert.encoder.layer.0.attention.self.query, got 25",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: Mapping[str, Any], told: str) -> None:
    plain = architecture_case("bert", "sequence_classification")
    with pytest.raises(UserError, match=told.replace("*", r"\*")):
        adapted(plain, SETTINGS.model_copy(update=changes))


def test_targets_are_kinds_or_patterns_and_a_head_that_has_one_is_frozen_itself() -> None:
    plain = architecture_case("bert", "sequence_classification")
    made = adapted(plain, SETTINGS.model_copy(update={"targets": ("value", "*pooler.dense")}))
    assert made.adapters.modules == (*(f"bert.encoder.layer.{at}.attention.self.value" for at in range(3)), "bert.pooler.dense")
    assert made.layout.parameters["bert.pooler.dense.weight"].frozen
    assert not made.layout.parameters["classifier.weight"].frozen
    axis = rank_axis("bert.pooler.dense")
    assert dim_axes(made.layout.parameters["bert.pooler.dense.lora_A.weight"].dims[0]) == [axis]
    assert made.adapters.scale == pytest.approx(1.5)
    stabilized = adapted(plain, SETTINGS.model_copy(update={"scaling": "rslora"}))
    assert stabilized.adapters.scale == pytest.approx(3.0)


def test_dropout_is_of_what_an_adapter_reads_in_training_only() -> None:
    architecture = adapted(architecture_case("vit", "image_classification"), SETTINGS.model_copy(update={"dropout": 0.5}))
    model, images = new_model(architecture, 0), {"pixel_values": torch.randn(4, 1, 8, 8)}
    with torch.no_grad():
        for module in architecture.adapters.modules:
            dict(model.named_parameters())[factors(module)[1]].normal_()
    assert torch.equal(logits(model.eval(), images), logits(model, images))
    assert not torch.equal(logits(model.train(), images), logits(model, images))
