"""Whether what clients computed is used: a change must be finite and within the bound on its norm, a block's sum of the right shape."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raffm_ray.basics.errors import ClientError
from raffm_ray.clients.messages import Job
from raffm_ray.clients.training_result import TrainingResult


def is_finite(tensors: Iterable[Tensor], weight: float = 1.0) -> bool:
    """Whether all values are, times `weight` too."""
    # Least and greatest are NaN where any value is, and no copy of the values is made.
    return all(bool((weight * torch.stack(values.aminmax())).isfinite().all()) for values in tensors)


def refusal(change: Tensor, weight: float, bound: float | None) -> str:
    """Why a client's change is not used: what it adds to the sum is not finite, or its L2 norm is beyond the bound; "" where it is used."""
    if not is_finite([change], weight):
        return "change not finite"
    norm = 0.0 if bound is None else float(torch.linalg.vector_norm(change, dtype=torch.float64))
    return f"norm {norm:.4g} > {bound:g}" if bound is not None and norm > bound else ""


def refused_besides(trained: TrainingResult, weight: float) -> str:
    """Why a client's change is not used although it is good: what comes with it is not finite; "" where it is used."""
    if trained.variate is not None and not is_finite([trained.variate], weight):
        return "change of the control variate not finite"
    kept = trained.state.tensors.values() if trained.state else ()
    return "" if is_finite(values for values in kept if values.numel()) else "state not finite"


def check_sum(part: Any, length: int, round_number: int, block: Sequence[Job]) -> None:
    """Raises ClientError for a block's sum that has not so many numbers: own code of a client may return anything."""
    kind, shape = getattr(part, "dtype", type(part)), getattr(part, "shape", ())
    if kind != np.float32 or shape != (length,):
        clients = ", ".join(str(job.client) for job in block)
        raise ClientError(f"round {round_number}, block of clients {clients}: its sum is {kind} {shape}, not float32 {(length,)}")
