"""The closed formulas against counting on real modules."""

import numpy as np
import pytest
import torch
from conftest import outputs
from plans import random_cut
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from raffm_ray.architectures import architecture_of, build, new_model, parse_config
from raffm_ray.axes import Plan, take_all
from raffm_ray.costs import FLOAT_BYTES, activation_floats, budget_from, costs_of
from raffm_ray.errors import UserError

ALL = ("groups", "heads", "qk", "vo", "ffn", "residual")


def cut_module(architecture, model, plan, attention="sdpa"):
    return build(
        architecture,
        {n: p.clone() for n, p in take_all(dict(model.named_parameters()), architecture.layout, plan).items()},
        plan,
        attention,
    )


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


@pytest.mark.parametrize("size", [(64, 4, 4, 256, 8, 2), (96, 3, 3, 384, 32, 4)], ids=["digits", "cifar"])
@pytest.mark.parametrize("kept", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.5, 0.75, 0.25), (0.75, 0.5, 1.0)])
def test_training_memory_is_within_15_percent_of_what_autograd_keeps(size, kept) -> None:
    hidden, layers, heads, ffn, image, patch = size
    config = parse_config({
        "model_type": "vit", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": ffn,
        "image_size": image, "patch_size": patch, "num_channels": 1, "num_labels": 10, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    })  # fmt: skip
    architecture = architecture_of(config, "image_classification")
    model = new_model(architecture, 0).requires_grad_(False)
    counts = dict(zip(("qk", "vo", "ffn"), kept, strict=True))
    axes = architecture.layout.axes
    plan = Plan(
        {
            n: np.arange(int(a.size * counts[n.split("/")[1]]))
            for n, a in axes.items()
            if n.split("/")[-1] in counts and counts[n.split("/")[1]] < 1
        }
    )
    small, batch = cut_module(architecture, model, plan).train(), 16
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
        loss = small(pixel_values=torch.randn(batch, 1, image, image), labels=torch.zeros(batch, dtype=torch.long)).loss
    loss.backward()
    optimizer = torch.optim.AdamW(small.parameters())
    optimizer.step()
    state = sum(v.numel() * v.element_size() for group in optimizer.state.values() for k, v in group.items() if k != "step")
    held = sum(2 * p.numel() * p.element_size() for p in small.parameters())
    counted = sum(saved.values())
    assert activation_floats(architecture, plan) * batch * FLOAT_BYTES == pytest.approx(counted, rel=0.15)
    assert costs_of(architecture, plan, batch, "adamw").memory_bytes == pytest.approx(counted + state + held, rel=0.15)


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
    with pytest.raises(UserError, match="budget params must be positive, got -1"):
        budget_from({"params": -1}, full)
