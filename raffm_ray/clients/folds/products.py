"""The sum over clients of weight x B A for every adapter, which is not the product of the sums of B and of A.

It is kept as factors: B's columns side by side, A's rows one below the other, a weight and a rank for every pair. So it is exact, and takes
what the clients sent; beyond the smaller side of a projection it is brought down to that side.
"""

from collections.abc import Mapping
from functools import reduce
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from raffm_ray.axes.indexing import Selection
from raffm_ray.models.adapters.lora import Adapters, factors

MIXED = -1
"""In place of a pair's rank, where pairs of several ranks were brought together."""


class Product(NamedTuple):
    """Sum over j of weights[j] x up[:, j] down[j]: `up` [out, n] and `down` [n, in], float32, `weights` [n], float64, and `ranks` [n]: which rank of the
    adapter each pair is."""

    up: Tensor
    down: Tensor
    weights: Tensor
    ranks: Tensor


Products = Mapping[str, Product]
"""By the adapted module."""
START: Products = {}
"""What no clients add up to."""


def add(products: Products, client: Products) -> Products:
    """With one client's adapters, as `of_client` makes them."""
    return merge(products, client)


def merge(first: Products, second: Products) -> Products:
    """What two groups of clients add up to together, the first's pairs before the second's."""
    both = {name: _joined(first[name], second[name]) for name in first if name in second}
    return {**first, **second, **both}


def _joined(one: Product, other: Product) -> Product:
    return Product(
        up=torch.cat([one.up, other.up], dim=1),
        down=torch.cat([one.down, other.down]),
        weights=torch.cat([one.weights, other.weights]),
        ranks=torch.cat([one.ranks, other.ranks]),
    )


def of_client(
    values: Mapping[str, Tensor],
    chosen: Mapping[str, Selection],
    shapes: Mapping[str, tuple[int, ...]],
    adapters: Adapters,
    weight: float,
) -> Products:
    """One client's weighted products, each weighted by what its ranks count too. `values`: its adapters' parameters as its plan cuts them, by name;
    `chosen`: that cut; `shapes`: whole."""
    found = dict[str, Product]()
    for module in adapters.modules:
        down, up = factors(module)
        if up in values:
            (makes, ranks), (_, reads) = chosen[up], chosen[down]
            count = values[up].shape[1]
            number = torch.arange(count) if ranks is None else ranks.cpu()
            found[module] = Product(
                up=_whole(values[up].cpu(), makes, shapes[up][0], 0),
                down=_whole(values[down].cpu(), reads, shapes[down][1], 1),
                weights=torch.full((count,), weight * adapters.share(count), dtype=torch.float64),
                ranks=number,
            )
    return found


def _whole(values: Tensor, kept: Tensor | None, size: int, position: int) -> Tensor:
    """With zeros where the frozen projection is cut."""
    if kept is None:
        return values.clone()
    shape = list(values.shape)
    shape[position] = size
    return values.new_zeros(shape).index_copy_(position, kept.cpu(), values)


def compressed(products: Products) -> Products:
    """The same sums, in no more pairs than a projection's smaller side, whose weights are 1. Products that are shorter stay as they are."""
    return {
        name: _compressed(one) if len(one.ranks) > min(len(one.up), one.down.shape[1]) else one for name, one in products.items()
    }


def _compressed(product: Product) -> Product:
    weighted, down = product.up.double() * product.weights, product.down.double()
    if len(product.up) <= product.down.shape[1]:
        left, right = torch.linalg.qr(weighted)
        up, down = left, right @ down
    else:
        left, right = torch.linalg.qr(down.T)
        up, down = weighted @ right.T, left.T
    count = len(down)
    ones, mixed = torch.ones(count, dtype=torch.float64), torch.full((count,), MIXED)
    return Product(up.float(), down.float(), ones, mixed)


def norm_of(products: Products) -> float:
    """The Frobenius norm of one client's products over all adapters, without their weights."""
    squares = 0.0
    for one in products.values():
        up, down = one.up.double(), one.down.double()
        squares += float(((up.T @ up) * (down @ down.T)).sum())
    return sqrt(max(squares, 0.0))  # rounding may leave it below 0 where products cancel


def merged(parts: list[Products]) -> Products:
    """What groups of clients add up to together, in their order."""
    return reduce(merge, parts, START)
