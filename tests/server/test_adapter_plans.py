"""Random plans of models with adapters: sketches of ranks against dense matrices, and random layers."""

from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import CASES, TINY, architecture_case
from cut_models import cut, logits, named, shaken
from torch import Tensor

from raffm_ray.axes.indexing import Plan, check_plan, kept_size
from raffm_ray.axes.layout import selections, take_all
from raffm_ray.clients.folds.products import of_client
from raffm_ray.models.adapters.lora import factors, merged, rank_axis
from raffm_ray.models.architecture import Architecture, adapted, architecture_of, build, unadapted, with_sketches
from raffm_ray.models.model_config import parse_config
from raffm_ray.models.stacked_modules import stacked_skeleton
from raffm_ray.server.aggregation import AGGREGATION_RULES
from raffm_ray.server.plans.view import StrategyView
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.settings.adapters import AdapterSettings
from raffm_ray.subnetworks.budgets import Budget, budget_from
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import Cutting

RANK = 4
SETTINGS = AdapterSettings(rank=RANK, alpha=6.0)


def view_of(architecture: Architecture, number: int = 1, seed: int = 0) -> StrategyView:
    return StrategyView(
        architecture=architecture,
        scores={},
        cutting=Cutting({"rank": 1}, {}),
        kind="ranked_list",
        seed=seed,
        round=number,
        batch_size=4,
        optimizer="adamw",
    )


def share(architecture: Architecture, **limits: float) -> Budget:
    return budget_from(limits, costs_of(architecture, Plan(), 4))


def of_ranks(architecture: Architecture, ranks: list[int]) -> Plan:
    assert architecture.adapters is not None
    return Plan({rank_axis(module): ranks for module in architecture.adapters.modules})


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.fixture(params=CASES, ids="-".join)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return adapted(architecture_case(*request.param), SETTINGS)


@pytest.fixture
def small() -> Architecture:
    return adapted(architecture_case("bert", "sequence_classification"), SETTINGS)


def test_a_sketch_computes_w_plus_s_b_s_a(architecture, inputs) -> None:
    sketches, model, parameters = with_sketches(architecture, True), shaken(architecture), named(shaken(architecture))
    plain, _ = unadapted(architecture, Plan())
    plan = of_ranks(architecture, [0, 2, 3])
    found = logits(cut(sketches, model, plan), inputs)
    sketch = torch.diag(torch.tensor([RANK / 3, 0.0, RANK / 3, RANK / 3], dtype=torch.float64))
    dense = {key: values for key, values in parameters.items() if not architecture.layout.parameters[key].adapts}
    for module in architecture.adapters.modules:
        down, up = (parameters[key].double() for key in factors(module))
        change = architecture.adapters.scale * up @ sketch @ down
        reads = architecture.layout.parameters[f"{module}.weight"].reads
        dense[f"{module}.weight"] = (dense[f"{module}.weight"].double() + (change if reads == 1 else change.T)).float()
    assert close(found, logits(build(plain, dense, Plan()).eval(), inputs))
    deployed = merged(take_all(parameters, architecture.layout, plan), architecture.layout, sketches.adapters)
    assert close(found, logits(build(plain, deployed, Plan()).eval(), inputs))
    # Controls: a part of the adapter, as of every other strategy, is another function; with all ranks both are the same.
    assert not close(found, logits(cut(architecture, model, plan), inputs))
    assert torch.equal(logits(cut(architecture, model, Plan()), inputs), logits(cut(sketches, model, Plan()), inputs))


def test_a_stack_of_sketches_computes_as_one(small) -> None:
    sketches, plan = with_sketches(small, True), of_ranks(small, [1, 3])
    tensors = take_all(named(shaken(small)), small.layout, plan)
    words = {"input_ids": torch.arange(8).view(2, 4), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    for one in (sketches, small):
        stack = stacked_skeleton(one, plan)
        stack.module.eval()
        twice = {name: values[None].expand(2, *values.shape) for name, values in tensors.items()}
        found = stack(twice, {key: values.repeat(2, 1) for key, values in words.items()}).logits
        assert close(found[:2], logits(build(one, tensors, plan).eval(), words))


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_mean_of_all_sketches_is_the_whole_product(small, kept) -> None:
    parameters, scale = named(shaken(small)), {}
    for sketches in (True, False):
        adapters, total = with_sketches(small, sketches).adapters, 0
        draws = list(combinations(range(RANK), kept))
        for draw in draws:
            plan = of_ranks(small, list(draw))
            chosen = selections(small.shapes, small.layout, plan)
            products = of_client(take_all(parameters, small.layout, plan), chosen, small.shapes, adapters, 1.0)
            one = products[adapters.modules[0]]
            total = total + (one.up.double() * one.weights) @ one.down.double() / len(draws)
        down, up = (parameters[name].double() for name in factors(adapters.modules[0]))
        scale[sketches] = total, up @ down
    assert close(*scale[True])
    assert not close(*scale[False])  # the control: parts of it make k / r of the product


def test_a_mean_change_over_all_is_of_zero_padded_changes() -> None:
    rng = torch.Generator().manual_seed(0)
    old, weights = torch.randn(6, generator=rng), torch.tensor([1.0, 2.0, 3.0])
    held = torch.tensor([[1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0]])
    changes = torch.randn(3, 6, generator=rng) * held
    summed, covered, total = weights @ changes, weights @ held.float(), float(weights.sum())
    expected = torch.stack([old + change for change in changes]).T @ weights / total
    found = AGGREGATION_RULES["all_changes"](old, summed, covered, total)
    assert close(found, expected)
    assert torch.equal(found[[3, 5]], old[[3, 5]])
    others = {name: rule(old, summed, covered, total) for name, rule in AGGREGATION_RULES.items() if name != "all_changes"}
    assert not any(close(found, other) for other in others.values())


@pytest.mark.parametrize("name", ["fslora", "fedra"])
def test_random_plans_keep_budgets_and_are_drawn_by_client_and_round(architecture, name) -> None:
    strategy, layout = STRATEGIES[name], architecture.layout
    budget = share(architecture, adapter_params=0.5 if name == "fslora" else 0.8)
    plans = {
        (number, client): strategy.train(view_of(architecture, number), budget, client)
        for number in range(4)
        for client in range(4)
    }
    for plan in plans.values():
        check_plan(plan, layout.axes)
        assert budget.allows(costs_of(architecture, plan, 4))
        assert len(plan) > 0
    assert plans == {key: strategy.train(view_of(architecture, key[0]), budget, key[1]) for key in plans}
    assert len(set(plans.values())) > 1 or (name, architecture.config.model_type) == ("fedra", "t5")  # the first blocks stay
    assert strategy.train(view_of(architecture), share(architecture, adapter_params=1.0), 0) == Plan()
    assert len({costs_of(architecture, plan).adapter_params for plan in plans.values()}) == 1


def test_sketches_reach_every_rank_and_adapters_draw_apart(small) -> None:
    budget = share(small, adapter_params=0.5)
    plans = [STRATEGIES["fslora"].train(view_of(small), budget, client) for client in range(40)]
    first, second = (rank_axis(module) for module in small.adapters.modules[:2])
    assert all(kept_size(first, small.layout.axes, plan) == RANK // 2 for plan in plans)
    assert {int(at) for plan in plans for at in plan[first]} == {*range(RANK)}
    assert any(not np.array_equal(plan[first], plan[second]) for plan in plans)
    leading = STRATEGIES["rbla"].train(view_of(small), budget, 0)
    assert {int(at) for at in leading[first]} == {0, 1}  # the control


def test_random_layers_reach_every_layer_and_hold_the_adapters_of_those_alone(small) -> None:
    budget = share(small, adapter_params=0.34)
    plans = [STRATEGIES["fedra"].train(view_of(small), budget, client) for client in range(30)]
    (axis,) = small.layout.layer_axes
    assert {tuple(plan[axis]) for plan in plans} == {(0,), (1,), (2,)}
    assert {tuple(STRATEGIES["depth"].train(view_of(small), budget, client)[axis]) for client in range(30)} == {(0,)}
    kept = take_all(named(shaken(small)), small.layout, plans[0])
    held = {small.layout.parameters[name].layer for name in kept if small.layout.parameters[name].adapts}
    assert held == {(axis, int(plans[0][axis][0]))}


def test_random_layers_of_a_stack_keep_the_block_that_others_need() -> None:
    config = parse_config({**TINY["t5"], "num_layers": 4, "num_decoder_layers": 4})
    architecture = adapted(architecture_of(config, "sequence_to_sequence", 6, 4), SETTINGS)
    budget = share(architecture, adapter_params=0.6)
    plans = [STRATEGIES["fedra"].train(view_of(architecture), budget, client) for client in range(10)]
    assert all(plan[axis][0] == 0 for plan in plans for axis in architecture.layout.layer_axes)
    assert len(set(plans)) > 1
