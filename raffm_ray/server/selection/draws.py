"""Draws without replacement and smallest keys, the same on every machine: where keys are equal, the first of them count."""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Positions = NDArray[np.int64]


def lowest(keys: Values, count: int) -> Positions:
    """Positions of the `count` smallest keys, or of all, ascending; of equal ones the first. Keys must not be NaN."""
    if count >= len(keys):
        return np.arange(len(keys))
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    edge = np.partition(keys, count - 1)[count - 1]
    below = np.flatnonzero(keys < edge)
    return np.sort(np.concatenate([below, np.flatnonzero(keys == edge)[: count - len(below)]]))


def drawn_by_weight(weights: Values, count: int, rng: np.random.Generator) -> Positions:
    """Positions of `count` draws without replacement, each with a probability in proportion to its weight among those that are left; ascending.

    One exponential number over each weight, of which the smallest are taken (Efraimidis and Spirakis 2006, algorithm A). Positions of weight
    0 come last, in their order.
    """
    numbers = rng.standard_exponential(len(weights))
    keys = np.divide(numbers, weights, out=np.full(len(weights), np.inf), where=weights > 0)
    return lowest(keys, count)


def rounded_shares(shares: Values, total: int, rng: np.random.Generator) -> Positions:
    """`total` divided in proportion to `shares`, which need not sum to 1, in whole numbers, each a share rounded up or down.

    Rounding is systematic: one uniform number moves all edges, so that every part has its exact share on average.
    """
    edges = np.cumsum(shares) / shares.sum() * total
    edges[-1] = total
    whole = np.floor(np.concatenate([[0.0], edges]) + rng.random()).astype(np.int64)
    return np.diff(whole)


def divided(shares: Values, capacity: Positions, total: int, rng: np.random.Generator) -> Positions:
    """`rounded_shares` within capacities: what a part has no room for goes to the others in proportion. `total` is at most all capacity."""
    given = np.zeros(len(shares), dtype=np.int64)
    while (left := total - int(given.sum())) > 0:
        room = capacity - given
        open_shares = np.where(room > 0, shares, 0.0)
        if not open_shares.any():
            open_shares = room.astype(np.float64)
        given += np.minimum(rounded_shares(open_shares, left, rng), room)
    return given
