"""The end of a round of a model with adapters."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.basics.seeding import torch_seed
from raffm_ray.clients.folds.products import merged
from raffm_ray.clients.messages import Update
from raffm_ray.models.adapters.lora import factors
from raffm_ray.models.freezing import frozen_views
from raffm_ray.server.adapter_rules.apply import aggregation_error, apply_rule, base_changes
from raffm_ray.server.adapter_rules.rules import ADAPTER_RULES
from raffm_ray.server.state import Round, ServerState, Setup
from raffm_ray.subnetworks.costs import FLOAT_BYTES


def with_merged_adapters(
    setup: Setup, state: ServerState, work: Round, updates: Sequence[Update], flat: tuple[Tensor, Tensor, Tensor], total: float
) -> tuple[ServerState, Tensor]:
    """The state with what the round adds to frozen parameters, and the round's parameters with its adapters merged as the strategy says.

    `flat`: what the aggregation rule gives, what the server optimizer makes of it, and the weight that covers each entry; `total`: the weight of all
    clients. Where a rule of `ADAPTER_RULES` merges adapters, they take no step of the server optimizer.
    """
    averaged, stepped, covered = flat
    architecture, name = setup.architecture, setup.strategy.adapters
    rule = ADAPTER_RULES.chosen(name, setup.experiment.plugin_settings)
    if not work.context.products and name == "mean":
        return state, stepped
    products = merged([update.products for update in updates])
    entries, weights = (views(one, architecture.trained_shapes) for one in (averaged, covered))
    seed = torch_seed(setup.experiment.seed, "adapters", work.context.round)
    found = apply_rule(rule, architecture, _whole(entries, setup, state), products, weights, total, seed)
    if name != "mean":
        stepped = stepped.clone()
        into = views(stepped, architecture.trained_shapes)
        for module, one in found.items():
            for key, values in zip(factors(module), (one.down, one.up), strict=True):
                if key in into:
                    into[key].copy_(values)
    change = state.base_change
    if rule.base and found:
        change = change.clone() if len(change) else torch.zeros_like(state.frozen)
        base = frozen_views(change, architecture)
        for key, values in base_changes(found, architecture).items():
            base[key].add_(values)
    sent = [one.plan for update in updates for one in update.reports if one.plan is not None and not one.refused]
    stacks = sum(FLOAT_BYTES * setup.costs(work.context.plans[plan]).adapter_params for plan in sent)
    error = aggregation_error(found, products, total) if products else None
    state = replace(state, base_change=change, stack_bytes=stacks if rule.base == "stacks" else 0, aggregation_error=error)
    return state, stepped


def without_held(setup: Setup, work: Round, old: Tensor, averaged: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """What the aggregation rule gives and what covers it, flat, with the parameters that the round did not train as they were and covered by nobody: no
    rule shrinks them, and no moment of a server optimizer moves them. `old`: before the round."""
    if not work.context.held:
        return averaged, covered
    averaged, covered = averaged.clone(), covered.clone()
    before, after, weights = (views(one, setup.architecture.trained_shapes) for one in (old, averaged, covered))
    for name in work.context.held:
        after[name].copy_(before[name])
        weights[name].zero_()
    return averaged, covered


def _whole(entries: dict[str, Tensor], setup: Setup, state: ServerState) -> dict[str, Tensor]:
    """The averaged parameters, and frozen ones where adapters have some."""
    architecture = setup.architecture
    if not any(architecture.layout.parameters[name].adapts for name in architecture.frozen_shapes):
        return entries
    return {**{name: values.float() for name, values in frozen_views(state.frozen, architecture).items()}, **entries}
