"""Whether what a client computed is used: it must be finite and within the bound on its norm."""

from collections.abc import Iterable

import torch
from torch import Tensor


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
