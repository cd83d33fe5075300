"""Blocks that are computed again in the backward pass: the same updates, what is kept meanwhile, and what devices are charged."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import outputs, tiny_experiment
from cut_models import named
from live_bytes import LiveBytes
from plans import random_cut
from realistic_models import ALL, LEARNS, REALISTIC, cut_module, training_batch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import raffm_ray
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import block_of
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.profiling import Stopwatch
from raffm_ray.clients.local_training import backward
from raffm_ray.clients.module_factory import ModuleFactory
from raffm_ray.models import modules
from raffm_ray.models.architecture import Architecture, adapted, architecture_of, new_model
from raffm_ray.models.freezing import for_training
from raffm_ray.models.model_config import parse_config
from raffm_ray.models.modules import recompute_blocks
from raffm_ray.models.objectives import objective_of
from raffm_ray.preparation.baselines import with_strategy
from raffm_ray.preparation.prepare import prepare
from raffm_ray.server.blocks import stack_sizes
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.ranking import plain_state
from raffm_ray.settings.adapters import AdapterSettings
from raffm_ray.settings.strategy import BaselineSettings
from raffm_ray.subnetworks.costs import FLOAT_BYTES, activation_floats, costs_of

BATCH = 8


def realistic(name: str, layers: int = 3) -> Architecture:
    config = dict(REALISTIC[name])
    config |= {key: layers for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in config}
    head = LEARNS.get(config["model_type"], "causal_language_modelling")
    return architecture_of(parse_config(config), head, 64, 32)


def gradients(
    architecture: Architecture, model: nn.Module, plan: Plan, recomputes: bool, loss: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """Of a worker's module of a plan, by name."""
    factory = ModuleFactory(architecture, Stopwatch(), recomputes=recomputes)
    module = for_training(factory.module(named(model), plan, {}).train(), architecture.layout)
    torch.manual_seed(3)
    loss(module).backward()
    return {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert set(found) == set(expected)
    largest = max(float(one.abs().max()) for one in expected.values())
    return all(float((found[name] - one).abs().max()) <= 1e-6 * largest for name, one in expected.items())


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_without_in_every_family(architecture, model, inputs, seed) -> None:
    plan = random_cut(architecture.layout, np.random.default_rng(seed), ALL, layers=True) if seed else Plan()
    kept, again = (
        gradients(architecture, model, plan, recomputes, lambda module: outputs(module, inputs).square().sum())
        for recomputes in (False, True)
    )
    assert close(again, kept)
    assert not close({name: 1.001 * one for name, one in again.items()}, kept)


def test_every_block_is_computed_twice_in_training_and_once_else(architecture, model, inputs) -> None:
    module = recompute_blocks(cut_module(architecture, model, Plan()), architecture.layout)
    first = {block_of(site.module, architecture.layout): site.module for site in reversed(architecture.layout.attentions)}
    counts = dict.fromkeys(first, 0)
    assert len(counts) >= 3
    for block, attention in first.items():
        module.get_submodule(attention).register_forward_hook(lambda *_, at=block: counts.__setitem__(at, counts[at] + 1))
    outputs(module.train(), inputs).square().sum().backward()
    assert set(counts.values()) == {2}
    outputs(module.eval(), inputs)
    with torch.no_grad():
        outputs(module.train(), inputs)
    assert set(counts.values()) == {4}


@pytest.mark.parametrize("name", [name for name in REALISTIC if name.endswith("_dropping")])
def test_dropout_draws_the_same_again(name, monkeypatch) -> None:
    architecture = realistic(name)
    model, data = new_model(architecture, 0), training_batch(architecture, 2)

    def found(recomputes: bool) -> dict[str, Tensor]:
        return gradients(architecture, model, Plan(), recomputes, lambda module: module(**data).loss)

    kept = found(False)
    assert close(found(True), kept)
    monkeypatch.setattr(modules, "checkpoint", partial(modules.checkpoint, preserve_rng_state=False))
    assert not close(found(True), kept)  # the control: other draws


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [0, 4])
def test_flops_are_exact(architecture, inputs, seed, rank) -> None:
    one = replace(adapted(architecture, AdapterSettings(rank=rank)) if rank else architecture, recomputes=True)
    model = new_model(one, 1)
    kinds = (*ALL, *(["rank"] if rank else []))
    plan = random_cut(one.layout, np.random.default_rng(seed), kinds, layers=True) if seed else Plan()
    small = recompute_blocks(for_training(cut_module(one, model, plan, "eager"), one.layout).train(), one.layout)
    with FlopCounterMode(display=False) as counted:
        outputs(small, inputs).sum().backward()
    costs, examples = costs_of(one, plan), len(next(iter(inputs.values())))
    assert costs.training_flops * examples == counted.get_total_flops()
    without = costs_of(replace(one, recomputes=False), plan)
    assert without.training_flops < costs.training_flops <= without.training_flops + costs.forward_flops
    assert costs.forward_flops == without.forward_flops
    assert costs.calibration_flops == without.calibration_flops


def live_while_recomputed(architecture: Architecture, plan: Plan) -> int:
    """The most bytes that are there at once, of a training step, at the end of a module that is computed again: besides parameters, their
    gradients and the batch."""
    model = for_training(cut_module(architecture, new_model(architecture, 0), plan), architecture.layout).train()
    recompute_blocks(model, architecture.layout)
    data = training_batch(architecture, BATCH)
    for one in model.parameters():
        one.grad = torch.zeros_like(one) if one.requires_grad else None
    own = [
        *model.parameters(),
        *model.buffers(),
        *data.values(),
        *(one.grad for one in model.parameters() if one.grad is not None),
    ]
    storages = [one.untyped_storage() for one in own]
    live, seen = LiveBytes(), [0]
    live.known.update(storages)
    for module in model.modules():
        module.register_forward_hook(lambda *_: seen.append(live.now))
    with live:
        backward(model, data, objective_of(architecture))
    return max(seen)


@pytest.mark.parametrize("adapters", [False, True], ids=["trained", "adapters"])
@pytest.mark.parametrize("layers", [3, 8])
@pytest.mark.parametrize("name", ["bert", "cifar", "digits", "llama", "gpt2", "qwen3", "t5", "distilbert", "bert_dropping"])
def test_memory_is_within_15_percent_of_what_is_there_while_a_block_is_computed_again(name, layers, adapters) -> None:
    architecture = realistic(name, layers)
    architecture = adapted(architecture, AdapterSettings(rank=8)) if adapters else architecture
    recomputing = replace(architecture, recomputes=True)
    estimate = BATCH * FLOAT_BYTES * activation_floats(recomputing, Plan())
    assert estimate == pytest.approx(live_while_recomputed(recomputing, Plan()), rel=0.15)
    assert estimate < 0.6 * BATCH * FLOAT_BYTES * activation_floats(architecture, Plan())


def test_a_run_ends_in_the_same_parameters_and_charges_the_second_pass(tmp_path) -> None:
    runs = {}
    for again in (False, True):
        folder, local = tmp_path / str(again), {"gradient_checkpointing": again}
        whole: dict[str, Any] = {
            "fleet": {"budgets": {}},
            "pool": {"stack_clients": 1},
            "strategy": {"name": "full"},
            "salience": {"metric": "l1"},
        }
        found = raffm_ray.simulate(tiny_experiment(local=local, **whole), folder)
        runs[again] = found, load_file(folder / "checkpoints" / "final" / "model.safetensors")
    (plain, kept), (found, again) = runs[False], runs[True]
    assert all(torch.allclose(again[name], values, atol=1e-6) for name, values in kept.items())
    assert 1.2 < found["flops"] / plain["flops"] < 1.34
    assert found["bytes_up"] == plain["bytes_up"]


def test_a_budget_of_memory_holds_more() -> None:
    budgets = {name: {"memory_bytes": 0.4} for name in ("raspberry_pi_4", "raspberry_pi_5", "laptop")} | {"v100": {"params": 1.0}}
    plain, again = (
        prepare(tiny_experiment(fleet={"budgets": budgets}, local={"gradient_checkpointing": value, "batch_size": 64})).setup
        for value in (False, True)
    )
    limit = plain.budgets["laptop"]
    assert limit.memory_bytes == 0.4 * plain.costs(Plan()).memory_bytes
    again = replace(again, budgets=plain.budgets)  # a fraction would be of what it takes itself
    plans = [device_type_plans(one, plain_state(one.architecture))["laptop"] for one in (plain, again)]
    assert plain.costs(plans[1]).params > plain.costs(plans[0]).params
    assert all(limit.allows(one.costs(plan)) for one, plan in zip((plain, again), plans, strict=True))
    assert not limit.allows(plain.costs(plans[1]))


def test_a_baseline_may_recompute_alone() -> None:
    prepared = prepare(tiny_experiment())
    baseline = BaselineSettings(name="full", local={"gradient_checkpointing": True})
    other = with_strategy(prepared, baseline).setup
    assert other.costs(Plan()).training_flops > prepared.setup.costs(Plan()).training_flops
    assert other.costs(Plan()).memory_bytes < prepared.setup.costs(Plan()).memory_bytes
    assert not stack_sizes(other, [Plan()])


def test_clients_that_recompute_are_not_stacked() -> None:
    with pytest.raises(UserError, match="pool.stack_clients: 4 .* local.gradient_checkpointing trains one by one"):
        prepare(tiny_experiment(local={"gradient_checkpointing": True}, pool={"stack_clients": 4}))
    setup = prepare(tiny_experiment(local={"gradient_checkpointing": True})).setup
    assert stack_sizes(setup, [Plan()]) == ()
    assert stack_sizes(prepare(tiny_experiment()).setup, [Plan()]) == (16,)
