"""A rule of `ADAPTER_RULES` over all adapters of a model, and how far the result is from the sum of what clients sent."""

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from raffm_ray.clients.folds.products import Product, Products
from raffm_ray.models.adapters.lora import drawn, factors
from raffm_ray.models.architecture import Architecture
from raffm_ray.server.adapter_rules.rules import AdapterRule, Given, Merged


def apply_rule(
    rule: AdapterRule,
    architecture: Architecture,
    named: Mapping[str, Tensor],
    products: Products,
    covered: Mapping[str, Tensor],
    total: float,
    seed: int,
) -> dict[str, Merged]:
    """By adapted module, what the rule makes of it; modules of which nobody sent anything, or nothing is trained, are left out.

    `named`: the averaged parameters by name; `products`: of all clients; `covered`: by name, the weight that covers each entry; `total`: the
    weight of all clients; `seed`: of newly drawn projections.
    """
    adapters = architecture.adapters
    assert adapters is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = drawn(architecture.shapes, adapters)
    found = dict[str, Merged]()
    for module in adapters.modules:
        down, up = factors(module)
        if down not in covered and up not in covered:
            continue
        by_rank = covered[down].amax(1) if down in covered else covered[up].amax(0)
        if not float(by_rank.max()) or (rule.products and module not in products):
            continue
        product = products.get(module) or Product(
            named[up][:, :0], named[down][:0], by_rank[:0].double(), torch.empty(0, dtype=torch.long)
        )
        part = product._replace(weights=product.weights / total)
        found[module] = Merged(*rule.merge(Given(named[down], named[up], part, by_rank / total, fresh[down])))
    return found


def aggregation_error(merged: Mapping[str, Merged], products: Products, total: float) -> float:
    """How far the model that was made is from W + s M, M the sum of p_k B_k A_k: the Frobenius norm of the difference over all adapters, as a part of
    that of M. 0 for an exact rule. Everything stays in factors."""
    difference = size = 0.0
    for module, one in merged.items():
        product = products[module]
        up, down = product.up.double() * (product.weights / total), product.down.double()
        size += _square(up, down)
        made = [up, -one.up.double()] + ([-one.base[0]] if one.base else [])
        read = [down, one.down.double()] + ([one.base[1]] if one.base else [])
        difference += _square(torch.cat(made, dim=1), torch.cat(read))
    return sqrt(max(difference, 0.0) / size) if size else 0.0


def _square(up: Tensor, down: Tensor) -> float:
    """The squared Frobenius norm of up @ down: the trace of (up' up)(down down')."""
    return float(((up.T @ up) * (down @ down.T)).sum())


def base_changes(merged: Mapping[str, Merged], architecture: Architecture) -> dict[str, Tensor]:
    """By the name of an adapted weight, what is added to it, in its own shape."""
    adapters, layout = architecture.adapters, architecture.layout
    assert adapters is not None
    found = dict[str, Tensor]()
    for module, one in merged.items():
        if one.base is not None:
            change = adapters.scale * (one.base[0] @ one.base[1])
            name = f"{module}.weight"
            found[name] = (change if layout.parameters[name].reads == 1 else change.T).float()
    return found
