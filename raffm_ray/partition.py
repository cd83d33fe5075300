"""Labels -> clients' shares: which example belongs to which client."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raffm_ray.errors import UserError

Indices = NDArray[np.int64]
Shares = list[Indices]


def iid(labels: Indices, clients: int, alpha: float, rng: np.random.Generator) -> Shares:
    """Equal parts of a random permutation."""
    return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), clients)]


def dirichlet_by_class(labels: Indices, clients: int, alpha: float, rng: np.random.Generator) -> Shares:
    """Each class is divided over clients by proportions drawn from Dirichlet(alpha) (Yurochkin et al. 2019, section 4)."""
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        edges = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * len(members)
        owner[members] = np.searchsorted(edges, np.arange(len(members)), side="right")
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.searchsorted(owner[order], np.arange(1, clients)))


def dirichlet_by_client(labels: Indices, clients: int, alpha: float, rng: np.random.Generator) -> Shares:
    """Each client draws its mix of classes from Dirichlet(alpha x prior) and takes equally many examples (Hsu et al. 2019,
    section 2): for the same alpha this is far more unequal than `dirichlet_by_class`.

    Every example is dealt exactly once: a class that runs out is replaced by those that are left.
    """
    classes, coded = np.unique(labels, return_inverse=True)
    prior = np.bincount(coded) / len(labels)
    piles = [list(rng.permutation(np.flatnonzero(coded == index))) for index in range(len(classes))]
    sizes = np.diff(np.linspace(0, len(labels), clients + 1).astype(int))
    mixes = rng.dirichlet(alpha * prior, size=clients)
    shares = []
    for size, mix in zip(sizes, mixes, strict=True):
        share: list[int] = []
        while len(share) < size:
            left = np.array([len(pile) for pile in piles])
            weights = np.where(left > 0, mix + 1e-12, 0.0)
            wanted = rng.multinomial(size - len(share), weights / weights.sum())
            for pile, count in zip(piles, np.minimum(wanted, left), strict=True):
                share += [pile.pop() for _ in range(count)]
        shares.append(np.sort(np.array(share, dtype=np.int64)))
    return shares


PARTITIONS: dict[str, Callable[[Indices, int, float, np.random.Generator], Shares]] = {
    "iid": iid,
    "dirichlet_by_class": dirichlet_by_class,
    "dirichlet_by_client": dirichlet_by_client,
}


def partition(name: str, labels: Indices, clients: int, alpha: float, rng: np.random.Generator) -> Shares:
    """Divides examples over clients: one array of example indices for each. Clients may come out empty (callers drop them).

    Raises UserError when there are more clients than examples.
    """
    if clients > len(labels):
        raise UserError(f"clients.count: {clients} clients cannot share {len(labels)} examples")
    return PARTITIONS[name](labels, clients, alpha, rng)
