"""Plans of methods for models with adapters: some ranks of every adapter, or some layers with all of theirs."""

import numpy as np

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import Layout
from raffm_ray.basics.seeding import generator
from raffm_ray.models.adapters.lora import RANK
from raffm_ray.server.plans.view import StrategyView, at_one_rate, some_layers
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.extraction import Cutting, kind_of
from raffm_ray.subnetworks.salience import METRICS, identity_orders, rank

RANKS = Cutting({RANK: 1}, {})
"""What methods for adapters of unequal ranks cut: ranks, of every adapter alike. The frozen model stays whole."""


def leading_ranks(view: StrategyView, budget: Budget, client: int) -> Plan:
    """The first ranks of every adapter, as many as fit: what HetLoRA (Cho et al. 2024, section 4), FLoRA, FlexLoRA and those after them send to a
    device. It deviates in that the rank follows from the budget."""
    return at_one_rate(view, identity_orders(view.architecture.layout), budget, RANKS)


def random_ranks(view: StrategyView, budget: Budget, client: int) -> Plan:
    """Random ranks of every adapter, as many as fit, drawn anew for every client and round: the sketches of FSLoRA (Fang et al. 2025, arXiv 2501.19389).

    A sketch S keeps k of r ranks and counts them r / k (`Adapters.sketched`), so that the mean of B S A over all draws is B A. Each
    adapter has a draw of its own. It deviates in that k follows from the budget, and clients weigh by examples. For use a device type gets
    the first ranks, which are trained like any others.
    """
    layout = view.architecture.layout
    noise = METRICS["random"].score(layout, {}, {}, generator(view.seed, "strategy", view.round, client))
    return at_one_rate(view, rank(noise), budget, RANKS)


def random_layers(view: StrategyView, budget: Budget, client: int) -> Plan:
    """Random layers, whole, as many as fit, drawn anew for every client and round: FedRA (Su et al. 2024, arXiv 2311.11227, abstract).

    A client is sent these layers of the frozen model alone, one after the other, and trains their adapters; those of a layer that nobody
    drew stay as they are. It deviates in that the number of layers follows from the budget. For use a device type gets the first layers.
    """
    layout, rng = view.architecture.layout, generator(view.seed, "strategy", view.round, client)
    can_go = {spec.layer for spec in layout.parameters.values() if spec.layer}
    orders = {}
    for name in sorted(layout.layer_axes):
        drawn = rng.permutation(layout.axes[name].size)
        staying = [index for index in drawn if (name, index) not in can_go]
        orders[name] = np.array([*staying, *(index for index in drawn if (name, index) in can_go)])
    return some_layers(view, orders, budget)


def fewer_ranks(plan: Plan, layout: Layout, most: int | None) -> Plan:
    """A plan with the first of its ranks, so `most` of every adapter; None for all of them."""
    if most is None:
        return plan
    whole = {name: plan.get(name, np.arange(axis.size)) for name, axis in layout.axes.items() if kind_of(name) == RANK}
    cut = {name: indices[:most] for name, indices in whole.items() if len(indices) > most}
    return Plan({**plan, **cut}) if cut else plan
