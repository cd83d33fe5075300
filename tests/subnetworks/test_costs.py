"""The closed formulas against counting on real modules."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import outputs
from plans import random_cut
from realistic_models import ALL, LEARNS, REALISTIC, cut_module, training_batch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.local_training import decayed_groups
from raffm_ray.models.architecture import FAMILIES, Architecture, architecture_of, new_model
from raffm_ray.models.attention_choice import with_attention
from raffm_ray.models.model_config import parse_config
from raffm_ray.subnetworks.budgets import budget_from
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS
from raffm_ray.subnetworks.costs import FLOAT_BYTES, activation_floats, costs_of
from raffm_ray.subnetworks.extraction import kind_of


@pytest.mark.parametrize("seed", range(8))
def test_parameters_and_flops_are_exact(architecture, model, inputs, seed) -> None:
    plan = random_cut(architecture.layout, np.random.default_rng(seed), ALL, layers=True) if seed else Plan()
    model.requires_grad_(False)
    small = cut_module(architecture, model, plan, "eager")
    costs, examples = costs_of(architecture, plan), len(next(iter(inputs.values())))
    assert costs.params == sum(p.numel() for p in small.parameters())
    assert costs.bytes == sum(p.numel() * p.element_size() for p in small.parameters())
    with FlopCounterMode(display=False) as forward:
        small(**inputs)
    assert costs.forward_flops * examples == forward.get_total_flops()
    with FlopCounterMode(display=False) as training:
        outputs(small, inputs).sum().backward()
    assert costs.training_flops * examples == training.get_total_flops()


def kept_at_rates(architecture: Architecture, rates: dict[str, float]) -> Plan:
    axes = architecture.layout.axes
    return Plan({n: np.arange(int(a.size * rates[kind_of(n)])) for n, a in axes.items() if rates.get(kind_of(n), 1) < 1})


@pytest.mark.parametrize("name", REALISTIC)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kept", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.5, 0.75, 0.25), (0.75, 0.5, 1.0)])
def test_training_memory_is_within_15_percent_of_what_autograd_keeps(name, attention, kept) -> None:
    config = parse_config(REALISTIC[name])
    architecture = architecture_of(config, LEARNS.get(config.model_type, "causal_language_modelling"), 64, 32)
    architecture = with_attention(architecture, attention, "float32", "cpu")
    model = new_model(architecture, 0).requires_grad_(False)
    plan = kept_at_rates(architecture, dict(zip(("qk", "vo", "ffn"), kept, strict=True)))
    small, batch = cut_module(architecture, model, plan, attention).train(), 8
    own = {p.untyped_storage().data_ptr() for p in small.parameters()}
    saved: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = small(**training_batch(architecture, batch)).loss
    loss.backward()
    optimizer = torch.optim.AdamW(small.parameters())
    optimizer.step()
    state = sum(v.numel() * v.element_size() for group in optimizer.state.values() for k, v in group.items() if k != "step")
    held = sum(2 * p.numel() * p.element_size() for p in small.parameters())
    counted = sum(saved.values())
    assert activation_floats(architecture, plan) * batch * FLOAT_BYTES == pytest.approx(counted, rel=0.15)
    assert costs_of(architecture, plan, batch, "adamw").memory_bytes == pytest.approx(counted + state + held, rel=0.15)


class TrafficCounter(TorchDispatchMode):
    """Sums the bytes of all tensors that operators read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and function.overloadpacket.__name__ not in {"empty", "empty_like", "_unsafe_view", "detach"}:
            written = [one for one, schema in zip(args, function._schema.arguments, strict=False) if _is_written(schema)]
            returned = [] if written else result
            for tensor in tree_flatten((args, kwargs, written, returned))[0]:
                self.bytes += tensor.numel() * tensor.element_size() if isinstance(tensor, torch.Tensor) else 0
        return result


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def counted_traffic(architecture: Architecture, model: torch.nn.Module, batch: int, optimizer: torch.optim.Optimizer) -> int:
    data = training_batch(architecture, batch)
    optimizer.zero_grad(set_to_none=True)
    with TrafficCounter() as counter:
        model(**data).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return counter.bytes


@pytest.mark.parametrize("name", REALISTIC)
def test_memory_traffic_is_within_a_factor_of_two_of_what_operators_read_and_write(name) -> None:
    config = parse_config(REALISTIC[name])
    architecture = architecture_of(config, LEARNS.get(config.model_type, "causal_language_modelling"), 64, 32)
    model = new_model(architecture, 0).train()
    optimizer = OPTIMIZERS["adamw"](decayed_groups(list(model.parameters()), 0.0), 1e-3)
    counted_traffic(architecture, model, 1, optimizer)  # the first step makes the optimizer's state
    small, large = (counted_traffic(architecture, model, batch, optimizer) for batch in (1, 5))
    costs, example = costs_of(architecture, Plan()), (large - small) / 4
    assert 0.5 < costs.example_traffic_bytes / example < 2
    assert 0.8 < costs.step_traffic_bytes / (small - example) < 1.25


def test_every_family_s_memory_is_measured() -> None:
    assert {settings["model_type"] for settings in REALISTIC.values()} >= set(FAMILIES) - {"deit"}  # which is ViT


def test_budgets_up_to_one_are_fractions() -> None:
    architecture = architecture_of(
        parse_config({"model_type": "vit", "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1}),
        "image_classification",
    )
    full = costs_of(architecture, Plan())
    assert budget_from({"params": 0.5}, full).params == full.params / 2
    assert budget_from({"params": 5000}, full).params == 5000
    assert budget_from({"bytes": 1}, full).allows(full)
    with pytest.raises(UserError, match="budget kind 'parms' is not known .did you mean 'params'"):
        budget_from({"parms": 0.5}, full)
    with pytest.raises(UserError, match="budget params must be a positive number, got -1"):
        budget_from({"params": -1}, full)
