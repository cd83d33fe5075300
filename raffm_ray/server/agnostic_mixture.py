"""Agnostic federated learning (Mohri et al. 2019, arXiv 1902.00146): device types weigh by a mixture that learns which of them does worst.

The objective is max over mixtures m of sum_g m_g F_g(w), F_g the mean loss of a device type's clients (equations 3 and 4). Clients train as ever; the
mixture takes a step of exponentiated gradient for every round, m_g <- m_g exp(rate F_g) / Z, where the paper's algorithm projects: the
form of group DRO (Sagawa et al. 2020, arXiv 1911.08731, algorithm 1). It begins with the fleet's own mixture, which is FedAvg.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """All arrays are [device types]. `weights`: sum to 1; `shares`: what they were in the beginning, a type's part of all weight; `losses`: as last
    heard of, NaN before."""

    weights: Values
    shares: Values
    losses: Values

    def factor(self, device_type: int) -> float:
        """By what the weights of a device type's clients are multiplied: 1 where it weighs as in the beginning."""
        return float(self.weights[device_type] / self.shares[device_type])

    def after(self, heard: Sequence[tuple[int, float, float]], rate: float) -> "Mixture":
        """The mixture after a round. `heard`: (device type, weight, loss at the parameters of the round) of each client.

        A device type of which nobody was heard steps by its last loss; one of which nobody ever was, by the mixture's mean, which changes nothing for it.
        """
        types, weights, losses = (np.array([one[at] for one in heard], dtype=np.float64) for at in range(3))
        known = np.isfinite(losses)
        where, count = types[known].astype(np.int64), len(self.weights)
        total = np.bincount(where, weights[known], count)
        summed = np.bincount(where, (weights * losses)[known], count)
        latest = np.where(total > 0, summed / np.where(total > 0, total, 1.0), self.losses)
        there = np.isfinite(latest) & (self.weights > 0)
        if not there.any():
            return self
        mean = float((self.weights * np.where(there, latest, 0.0)).sum() / self.weights[there].sum())
        step = rate * (np.where(there, latest, mean) - mean)
        grown = self.weights * np.exp(step - step.max())
        return Mixture(weights=grown / grown.sum(), shares=self.shares, losses=latest)


def first_mixture(device_types: NDArray[np.int32], weights: Values, count: int) -> Mixture:
    """That of the fleet. `device_types`, `weights`: [clients]; `count`: of device types."""
    shares = np.bincount(device_types, weights, count) / weights.sum()
    return Mixture(weights=shares, shares=shares, losses=np.full(count, np.nan))
