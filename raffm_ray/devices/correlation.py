"""Random orders with a given rank correlation: clients with more data can get stronger devices."""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """0, 1, ... from the lowest; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]


def _normal_scores(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal quantiles at (rank + 1/2) / n (the scores of Blom 1958 with his constant at 1/2)."""
    quantile = NormalDist().inv_cdf
    return np.array([quantile((rank + 0.5) / len(ranks)) for rank in ranks])


def correlated_ranks(values: ArrayLike, correlation: float, rng: np.random.Generator) -> Indices:
    """A random ranking 0..n-1 of n things whose Spearman rank correlation with their values is `correlation` on average.

    The Gaussian copula: the ranking of z = r s + sqrt(1 - r^2) e, where s are the normal scores of the values' ranks, e those of a
    random permutation, and r = 2 sin(pi correlation / 6), because a Gaussian copula of parameter r has Spearman's correlation
    6/pi asin(r/2) (Pearson 1907; Kruskal 1958, section 10). At 1 and -1 the order is the values', forwards or backwards; at 0 it is the
    permutation alone. Equal values are ordered by the permutation; where there are many, the correlation that can be measured is less.

    `values`: [n]. Returns [n].
    """
    given = np.asarray(values, dtype=np.float64)
    noise = rng.permutation(len(given))
    r = 2 * np.sin(np.pi * correlation / 6)
    mixed = r * _normal_scores(_midranks(given)) + np.sqrt(max(0.0, 1 - r * r)) * _normal_scores(noise.astype(np.float64))
    ranks = np.empty(len(given), dtype=np.int64)
    ranks[np.lexsort((noise, mixed))] = np.arange(len(given))
    return ranks
