"""Weights that depend on a client's loss at the parameters that it received: q-FedAvg (Li et al. 2020, arXiv 1905.10497, algorithm 2).

With p the weight of a client, F its loss, c its change and L = 1 / learning rate, the algorithm's step is

    w + sum p F^q c / sum p (F^q + q F^(q-1) L ||c||^2),

its Delta and h divided by L. So a change counts p F^q in the sum, and what it covers the weight in the divisor: entry by entry, over
the clients that trained an entry, the rule `coverage` is the algorithm. With q = 0 both are p, as in FedAvg.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.clients.local_training import computing
from raffm_ray.clients.messages import RoundContext
from raffm_ray.data.examples import Examples
from raffm_ray.models.objectives import Objective

LEAST_LOSS = 1e-10
"""A loss of 0 has no negative power; the paper's code adds as much."""
BATCH = 32


def mean_loss(module: nn.Module, objective: Objective, examples: Examples, share: NDArray[np.int64], precision: str) -> float:
    """The mean loss of a module on all examples of a client, as "mean" would divide it, without dropout or changed images."""
    device, sums = str(next(module.parameters()).device), list[Tensor]()
    module.eval()
    with torch.inference_mode(), computing(precision, device):
        for rows in np.split(share, range(BATCH, len(share), BATCH)):
            batch = examples.batch(rows, device)
            labels = batch.pop("labels")
            sums.append(objective.each(module(**batch), labels).double().sum(0))
    total = torch.stack(sums).sum(0)
    loss, divisor = float(total[0]), float(total[1])
    return loss / divisor if divisor else 0.0


def change_weight(context: RoundContext, weight: float, loss: float) -> float:
    """What a client's change counts in the sum. `weight`: its job's; `loss`: at the parameters that it received."""
    return weight * max(loss, LEAST_LOSS) ** context.fair_exponent if context.fair_exponent else weight


def fair_weights(context: RoundContext, weight: float, loss: float, change: Tensor) -> tuple[float, float]:
    """What a client's change counts in the sum, and in the divisor. `change`: flat, of its plan's parameters."""
    counts, q = change_weight(context, weight, loss), context.fair_exponent
    if not q:
        return counts, weight
    squares = float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
    return counts, counts + weight * q * max(loss, LEAST_LOSS) ** (q - 1) * squares / context.learning_rate
