"""How adapters of unequal ranks are merged: one function and one row of `ADAPTER_RULES` for each method.

All are of one adapted projection W: with s the adapters' scale and p_k a client's part of the weight, clients sent s B_k A_k. M is the sum
of p_k B_k A_k. What a method's paper leaves open is done as the others do it: clients weigh by examples, and s is the same for all ranks, since a
device's adapter is a part of the whole one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raffm_ray.basics.registry import Table
from raffm_ray.clients.folds.products import Product
from raffm_ray.server.adapter_rules.decomposition import dense_leading, leading

FAIR_RIDGE = 0.01
"""Lambda of LoRA-FAIR, as a part of the mean square of A's rows."""


@dataclass(frozen=True)
class Given:
    """What a rule is given of one projection. `down` A [rank, in] and `up` B [out, rank]: the means of what clients sent, over those that trained an
    entry, as `strategy.aggregation` says; `product`: of all clients, weights of 1 together; `covered`: [rank], the part of the weight of those
    that hold a rank; `fresh`: [rank, in], newly drawn rows of A."""

    down: Tensor
    up: Tensor
    product: Product
    covered: Tensor
    fresh: Tensor

    @property
    def weighted(self) -> tuple[Tensor, Tensor]:
        """M as two factors [out, n] and [n, in], float64."""
        return self.product.up.double() * self.product.weights, self.product.down.double()


class Merged(NamedTuple):
    """A rule's answer: `down` A and `up` B of the next round, and `base`: what is added to W, over s, as two factors; None for nothing."""

    down: Tensor
    up: Tensor
    base: tuple[Tensor, Tensor] | None = None


def mean(given: Given) -> Merged:
    """Entry by entry: FedIT (Zhang et al. 2024) with equal ranks, over those who hold a rank RBLA (Tavallaie and Nazemi 2024)."""
    return Merged(given.down, given.up)


def flora(given: Given) -> Merged:
    """FLoRA (Wang et al. 2024, section 3): all adapters are stacked and added to W, which is exact, and clients begin with new ones.

    Its downlink is the stack of all clients' adapters. A device that was away is charged the last one only.
    """
    return Merged(given.fresh, torch.zeros_like(given.up), given.weighted)


def hlora(given: Given) -> Merged:
    """HLoRA: the best approximation of M of the adapters' rank, from M's factors: FlexLoRA's without the product."""
    up, down = leading(*given.weighted, len(given.down))
    return Merged(down, up)


def flexlora(given: Given) -> Merged:
    """FlexLoRA (Bai et al. 2024, algorithm 1): the singular value decomposition of M, B = U S, A = V'. Clients take the leading ranks."""
    up, down = given.weighted
    made, read = dense_leading(up @ down, len(given.down))
    return Merged(read, made)


def raflora(given: Given) -> Merged:
    """raFLoRA (arXiv 2602.13486, abstract): as FlexLoRA of a sum in which every rank is averaged over the clients that hold it."""
    held = given.covered.double()[given.product.ranks]
    held = held.clamp(min=torch.finfo(held.dtype).tiny)  # of clients that weigh nothing (server.agnostic_rate)
    up, down = given.weighted
    made, read = leading(up / held, down, len(given.down))
    return Merged(read, made)


def fedex(given: Given) -> Merged:
    """FedEx-LoRA (Singhal et al. 2025, section 3): means of A and of B, and what these lack of M is added to W, which is exact."""
    up, down = given.weighted
    return Merged(given.down, given.up, (torch.cat([up, -given.up.double()], dim=1), torch.cat([down, given.down.double()])))


def fedsvd(given: Given) -> Merged:
    """FedSVD: clients train B beside an A that is the same for all, so that M = (mean B) A; its decomposition gives the next A = V', B = U S."""
    up, down = leading(given.up, given.down, len(given.down))
    return Merged(down, up)


def rotated(given: Given) -> Merged:
    """The means, in the basis in which every beginning of the ranks is the best approximation of the whole of its size (Eckart and Young 1936): B =
    U S^1/2, A = S^1/2 V'. The full model's function stays as the means make it; a smaller device gets more of it."""
    up, down = leading(given.up, given.down, len(given.down))
    root = torch.linalg.vector_norm(up, dim=0).sqrt()
    unit = torch.where(root > 0, root, 1.0)
    return Merged(torch.where(root > 0, root, given.down.double().square().sum(1).mean().sqrt())[:, None] * down, up / unit)


def lora_fair(given: Given) -> Merged:
    """LoRA-FAIR (arXiv 2411.14961): the mean A, and the mean B + D with D the least squares of M - (B + D) A, plus lambda |D|^2."""
    up, down = given.weighted
    read, made = given.down.double(), given.up.double()
    lacking = up @ (down @ read.T) - made @ (read @ read.T)
    gram = read @ read.T
    ridge = FAIR_RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    change = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), lacking.T).T
    return Merged(given.down, made + change)


@dataclass(frozen=True)
class AdapterRule:
    """A row of `ADAPTER_RULES`. `merge`: of one projection, a `Merged` or a plain tuple of the same; `products`: whether it needs M, and `by_rank`: with the ranks of its parts; `base`: how
    devices are sent what is added to W: "" where nothing is, "dense" as W, or "stacks" as the adapters of the round before."""

    merge: Callable[[Given], tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]]
    products: bool = True
    by_rank: bool = False
    base: str = ""


_RULES = {
    "mean": AdapterRule(mean, products=False),
    "flora": AdapterRule(flora, base="stacks"),
    "flexlora": AdapterRule(flexlora),
    "hlora": AdapterRule(hlora),
    "raflora": AdapterRule(raflora, by_rank=True),
    "fedex": AdapterRule(fedex, base="dense"),
    "fedsvd": AdapterRule(fedsvd, products=False),
    "lora_fair": AdapterRule(lora_fair),
    "rotated": AdapterRule(rotated, products=False),
}
ADAPTER_RULES: Table[AdapterRule] = Table("adapter_rule", _RULES)
