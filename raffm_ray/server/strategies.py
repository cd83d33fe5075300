"""Strategies: which client trains which plan. RaFFM and its rivals, one function and one row of `STRATEGIES` each.

A strategy is an order of the units and a way to answer a budget with them: a ranked list, one rate for every width, or a depth. All
are given the same budgets. What a rival's paper leaves open is done as RaFFM does it, so that runs differ in what the paper is about.
"""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.registry import Table
from raffm_ray.basics.seeding import generator
from raffm_ray.server.plans.of_adapters import leading_ranks, random_layers, random_ranks
from raffm_ray.server.plans.view import Extract, StrategyView, at_one_rate, some_layers
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.extraction import Cutting, longest_prefix
from raffm_ray.subnetworks.salience import METRICS, identity_orders, rank


def ranked(view: StrategyView, budget: Budget, client: int) -> Plan:
    """RaFFM (Yu et al. 2023, arXiv 2310.00247): the most salient units.

    The longest prefix of the ranked list that fits, or one rate for every axis where the experiment says so. It deviates from the
    paper in that salience is calibrated (the paper's L1 norm of the weights is one of the metrics) and all layers share one list.
    """
    if view.kind == "common_rate":
        return at_one_rate(view, view.orders, budget, view.cutting)
    return longest_prefix(
        architecture=view.architecture,
        units=view.units,
        orders=view.orders,
        cutting=view.cutting,
        budget=budget,
        costs=view.costs,
    )


def raffm_reference(view: StrategyView, budget: Budget, client: int) -> Plan:
    """RaFFM's published code: leading indices, never sorted, averaged by the divisor of all clients.

    It cuts query/key and value sizes and neurons, never heads or the residual stream. Its sort inside heads has no effect on what it
    cuts, since it slices whole matrices afterwards. It deviates: the code keeps the first rows of a projection *across* heads and
    divides them among all heads anew, with another scale of the scores; that mixes heads, and no set of kept indices per axis says it,
    so here the leading dimensions of every head stay, with the full model's scale. The code draws widths at random whatever the device,
    from a generator reseeded by the clock; here the rate follows from the budget. The code ignores how many examples a client has;
    here they weigh.
    """
    return at_one_rate(view, identity_orders(view.architecture.layout), budget, Cutting({"qk": 1, "vo": 1, "ffn": 1}, {}))


def whole(view: StrategyView, budget: Budget, client: int) -> Plan:
    """Full-size FedAvg (McMahan et al. 2017): every client trains the full model, whatever the device. It ignores the budget, as an upper bound."""
    return Plan()


def exclusive(view: StrategyView, budget: Budget, client: int) -> Plan | None:
    """FedAvg (McMahan et al. 2017) among those whose device can train the full model; who is drawn and cannot sits the round out.

    What methods for unlike devices must beat (as Kim et al. 2023 point out, abstract). What every device type gets afterwards is cut by the
    ranked list, as from `full`.
    """
    return Plan() if budget.allows(view.costs(Plan())) else None


def smallest(view: StrategyView, budget: Budget, client: int) -> Plan:
    """FedAvg (McMahan et al. 2017) of the largest subnetwork that every device type can train; everyone gets that one afterwards.

    The homogeneous baseline of Diao et al. (2021, section 4). What the subnetwork is follows from the ranked list.
    """
    return ranked(view, reduce(Budget.both, view.budgets.values(), budget), client)


def heterofl(view: StrategyView, budget: Budget, client: int) -> Plan:
    """HeteroFL (Diao et al. 2021, section 3): the leading indices of every width, one rate a device type.

    It deviates in that the rate follows from the budget instead of a grid of five, every head keeps its place and shrinks inside,
    and inputs of layers are not rescaled (its Scaler), since norms follow. Its static batch normalization has nothing to do here:
    norms of transformers keep no running statistics. Logits of classes that a client lacks are not masked.
    """
    return at_one_rate(view, identity_orders(view.architecture.layout), budget)


def fjord(view: StrategyView, budget: Budget, client: int) -> Plan:
    """FjORD (Horvath et al. 2021, algorithm 1): ordered dropout, the plans of HeteroFL and in every step one of the smaller ones.

    A step trains a width drawn uniformly from those of all device types up to the client's own (the prefix "one"). It deviates in
    that the first step trains the client's own width, since all of its entries are averaged as trained, and rates follow from budgets
    instead of a grid. Its self-distillation from the client's widest network is `strategy.prefix: random` with `strategy.distill`: every
    step then trains the own width too.
    """
    return heterofl(view, budget, client)


def federated_dropout(view: StrategyView, budget: Budget, client: int) -> Plan:
    """Federated dropout (Caldas et al. 2018, section 3.2): random indices of every width, drawn anew for every client and round.

    An entry of two widths of sizes n and m, cut to k and l, is in a plan with probability q = k l / (n m), or at least
    k (k - 1) / (n (n - 1)) where one axis is both. So log(N / p) / -log(1 - q) plans reach all N entries, save with probability p
    (union bound).

    It deviates in that the rate follows from the budget instead of being everyone's, the residual stream is cut too, heads choose their
    dimensions on their own, and nothing is compressed. For use a device type gets HeteroFL's plan: no unit is better trained than another.
    """
    layout = view.architecture.layout
    noise = METRICS["random"].score(layout, {}, {}, generator(view.seed, "strategy", view.round, client))
    return at_one_rate(view, rank(noise), budget)


def fedrolex(view: StrategyView, budget: Budget, client: int) -> Plan:
    """FedRolex (Alam et al. 2022, section 3): a window of every width that starts one index later every round and wraps around.

    Of an axis with n indices a window of k reaches every index within n - k + 1 rounds, and no sooner. An entry of two axes needs both
    windows at once: every entry is reached, within lcm(n, m) rounds, if and only if k + l > gcd(n, m) (by the Chinese remainder
    theorem starts r and s meet if r = s modulo the gcd). So where one axis is both (BERT's pooler), 2 k > n is needed: the paper's
    windows roll together, and units farther apart are never trained together.

    It deviates in that the rate follows from the budget instead of a grid, and heads keep their place and roll inside.
    """
    orders = {name: np.roll(order, -view.round) for name, order in identity_orders(view.architecture.layout).items()}
    return at_one_rate(view, orders, budget)


def depth(view: StrategyView, budget: Budget, client: int) -> Plan:
    """The first layers, whole, as many as fit: DepthFL (Kim et al. 2023, section 3) and InclusiveFL (Liu et al. 2022).

    Of two stacks both keep the same share, rounded up. It deviates in that all depths share the one head and final norm, where DepthFL
    gives every depth a classifier; and nothing is distilled from depth to depth (DepthFL's mutual distillation, InclusiveFL's momentum
    distillation). Raises UserError when the budget is below one layer.
    """
    layout = view.architecture.layout
    return some_layers(view, {name: np.arange(layout.axes[name].size) for name in layout.layer_axes}, budget)


def fiarse(view: StrategyView, budget: Budget, client: int) -> Plan:
    """FIARSE (Wu et al. 2024): the units of the largest magnitude, ranked anew by the current parameters every round.

    The paper keeps single parameters whose magnitude is above one threshold for the whole model. This is its structured form, for
    modules that are really smaller: a unit's place in the ranked list is its mean magnitude, the L1 norm per parameter (one rate for
    every axis is its layer-wise variant). It deviates in that a client's mask stays as it is through its local training.
    """
    return ranked(view.by_magnitude.beside(view.smaller), budget, client)


@dataclass(frozen=True)
class Strategy:
    """A row of the table.

    `train`: plans for training; `deploy`: for evaluation and afterwards. `salience`: whether either needs scores. `per_client`:
    whether `train` looks at the client; if not, clients of a device type share a plan. `prefix`, `aggregation`, `client_weight` and
    `distill`: the defaults of the settings of those names. `budgeted`: whether training plans keep within budgets. `nested`: whether a
    round's plan for a smaller budget lies inside that for a larger one, so that it can be a prefix. `steady`: whether a client's plan stays as it is
    while the ranking does. `adapters` and `factors`: the defaults of the settings of those names; `product_norms`: whether clients weigh by the
    norm of their adapters' product. `of_adapters`: whether it is a method for models with adapters alone; `sketched`: whether k of r ranks count r / k.
    """

    train: Extract
    deploy: Extract
    salience: bool = True
    per_client: bool = False
    prefix: str = "none"
    aggregation: str = "coverage"
    budgeted: bool = True
    nested: bool = True
    client_weight: str = "examples"
    distill: float = 0.0
    steady: bool = True
    adapters: str = "mean"
    factors: str = "both"
    product_norms: bool = False
    of_adapters: bool = False
    sketched: bool = False


def _row(train: Extract, like: Strategy | None, **others: Any) -> Strategy:
    """What is left out of a strategy of its own: `deploy` is `train`."""
    return Strategy(**{"deploy": train, **others, "train": train}) if like is None else replace(like, train=train, **others)


_RANDOM: dict[str, Any] = {"per_client": True, "nested": False, "steady": False}

_STRATEGIES = {
    "raffm": Strategy(ranked, ranked, prefix="random", aggregation="damped"),
    "raffm_reference": Strategy(raffm_reference, raffm_reference, salience=False, aggregation="all_clients"),
    "full": Strategy(whole, ranked, budgeted=False),
    "exclusive": Strategy(exclusive, ranked),
    "smallest": Strategy(smallest, smallest),
    "heterofl": Strategy(heterofl, heterofl, salience=False),
    "fjord": Strategy(fjord, fjord, salience=False, prefix="one"),
    "federated_dropout": Strategy(federated_dropout, heterofl, salience=False, per_client=True, nested=False, steady=False),
    "fedrolex": Strategy(fedrolex, fedrolex, salience=False, steady=False),
    "depth": Strategy(depth, depth, salience=False),
    "fiarse": Strategy(fiarse, fiarse, salience=False),
    "rbla": (_ranks := Strategy(leading_ranks, leading_ranks, salience=False, of_adapters=True)),
    "hetlora": replace(_ranks, aggregation="all_clients", product_norms=True),
    "flora": replace(_ranks, adapters="flora"),
    "flexlora": replace(_ranks, adapters="flexlora"),
    "hlora": replace(_ranks, adapters="hlora"),
    "raflora": replace(_ranks, adapters="raflora"),
    "fedex_lora": replace(_ranks, adapters="fedex"),
    "lora_fair": replace(_ranks, adapters="lora_fair"),
    "ffa_lora": replace(_ranks, factors="up"),
    "rolora": replace(_ranks, factors="alternating"),
    "fedsvd": replace(_ranks, adapters="fedsvd", factors="up"),
    "fslora": replace(_ranks, train=random_ranks, aggregation="all_changes", **_RANDOM, sketched=True),
    "fedra": Strategy(random_layers, depth, salience=False, **_RANDOM, of_adapters=True),
}
STRATEGIES: Table[Strategy] = Table("strategy", _STRATEGIES, make=_row)
