"""Labels -> clients' shares: which example belongs to which client."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raffm_ray.errors import UserError

Indices = NDArray[np.int64]
Shares = list[Indices]


def iid(labels: Indices, clients: int, alpha: float, rng: np.random.Generator) -> Shares:
    """Equal parts of a random permutation; of the labels only their number matters."""
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


def natural(groups: Indices, clients: int, alpha: float, rng: np.random.Generator) -> Shares:
    """Clients own examples of one group each: a group is divided evenly over clients in proportion to its size.

    Where there are fewer clients than groups, whole groups are dealt out, each to the client that has least.
    """
    values, counts = np.unique(groups, return_counts=True)
    members = [rng.permutation(np.flatnonzero(groups == value)) for value in values]
    if clients <= len(values):
        dealt: Shares = [np.zeros(0, dtype=np.int64) for _ in range(clients)]
        for index in np.argsort(-counts, kind="stable"):
            least = int(np.argmin([len(share) for share in dealt]))
            dealt[least] = np.concatenate([dealt[least], members[index]])
        return [np.sort(share) for share in dealt]
    owners = np.ones(len(values), dtype=np.int64)
    for _ in range(clients - len(values)):
        owners[np.argmax(counts / owners)] += 1
    return [np.sort(part) for mine, number in zip(members, owners, strict=True) for part in np.array_split(mine, number)]


PARTITIONS: dict[str, Callable[[Indices, int, float, np.random.Generator], Shares]] = {
    "iid": iid,
    "dirichlet_by_class": dirichlet_by_class,
    "dirichlet_by_client": dirichlet_by_client,
    "natural": natural,
}


def partition(name: str, labels: Indices, clients: int, alpha: float, rng: np.random.Generator) -> Shares:
    """Divides examples over clients: one array of example indices for each. Clients may come out empty (callers drop them).

    `labels`: [examples], what the partition goes by: classes, or groups for `natural`. Raises UserError when there are more clients
    than examples.
    """
    if clients > len(labels):
        raise UserError(f"clients.count: {clients} clients cannot share {len(labels)} examples")
    return PARTITIONS[name](labels, clients, alpha, rng)
