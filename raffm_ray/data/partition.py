"""Partitions: which example belongs to which client."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.registry import Table
from raffm_ray.data.examples import UNOWNED
from raffm_ray.settings.clients import ClientSettings

Indices = NDArray[np.int64]
Shares = list[Indices]
NOBODY = -1
"""The owner of an example that is not dealt."""


def _evenly(things: int, owners: int) -> Indices:
    """[things]: whose each is when runs of equal length are dealt in order; the first runs are longer by one where it must be."""
    lengths = things // owners + (np.arange(owners) < things % owners)
    return np.repeat(np.arange(owners, dtype=np.int64), lengths)


def _members(values: Indices) -> list[Indices]:
    """Where each value stands, values and places ascending."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _shuffled_by_class(labels: Indices, rng: np.random.Generator) -> Indices:
    """[examples]: indices, classes ascending, in random order within each."""
    shuffled = rng.permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def iid(labels: Indices, settings: ClientSettings, rng: np.random.Generator) -> Indices:
    """Equal parts of a random permutation; of the labels only their number matters (McMahan et al. 2017, section 3)."""
    owner = np.empty(len(labels), dtype=np.int64)
    owner[rng.permutation(len(labels))] = _evenly(len(labels), settings.count)
    return owner


def dirichlet_by_class(labels: Indices, settings: ClientSettings, rng: np.random.Generator) -> Indices:
    """Each class is divided over clients by proportions drawn from Dirichlet(alpha) (Yurochkin et al. 2019, section 4)."""
    owner = np.empty(len(labels), dtype=np.int64)
    for members in _members(labels):
        members = rng.permutation(members)
        edges = np.cumsum(rng.dirichlet(np.full(settings.count, settings.alpha)))[:-1] * len(members)
        owner[members] = np.searchsorted(edges, np.arange(len(members)), side="right")
    return owner


def dirichlet_by_client(labels: Indices, settings: ClientSettings, rng: np.random.Generator) -> Indices:
    """Each client draws its mix of classes from Dirichlet(alpha x prior) and takes equally many examples (Hsu et al. 2019,
    section 2): for the same alpha this is far more unequal than `dirichlet_by_class`.

    Every example is dealt exactly once: a class that runs out is replaced by those that are left. Mixes are never written down: drawn
    labels are a copy of one of the client's own with probability n / (n + alpha), n of them drawn so far, else a draw from the prior,
    which has the same distribution (Blackwell and MacQueen 1973) and takes no time that grows with the number of classes.
    """
    _, coded, counts = np.unique(labels, return_inverse=True, return_counts=True)
    clients = _evenly(len(labels), settings.count)
    weight = settings.alpha / len(labels)  # of each example that stands for the prior
    left, pool, gone = counts.tolist(), coded.tolist(), 0
    uniform = _uniform(rng)
    drawn: list[int] = []
    for size in np.bincount(clients).tolist():
        own: list[int] = []
        for _ in range(size):
            label = -1
            while label < 0 or not left[label]:
                at = next(uniform) * (len(own) + weight * len(pool))
                label = own[int(at)] if at < len(own) else pool[min(int((at - len(own)) / weight), len(pool) - 1)]
            drawn.append(label)
            own.append(label)
            left[label] -= 1
            if not left[label]:
                own = [one for one in own if one != label]
                gone += int(counts[label])
                if 2 * gone > len(pool):  # else most of what the pool gives would be refused
                    pool, gone = [one for one in pool if left[one]], 0
    owner = np.empty(len(labels), dtype=np.int64)
    owner[_shuffled_by_class(coded, rng)] = clients[np.argsort(np.array(drawn), kind="stable")]
    return owner


def _uniform(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(4096).tolist()


def shards(labels: Indices, settings: ClientSettings, rng: np.random.Generator) -> Indices:
    """Examples sorted by class are cut into equal shards, and each client gets `settings.shards` of them: the pathological division of
    McMahan et al. 2017, section 3, with two. A client sees about as many classes as it has shards; one more for each that spans two.

    Raises UserError when there are more shards than examples.
    """
    number = settings.count * settings.shards
    if number > len(labels):
        raise UserError(
            f"clients.shards: {settings.count} clients x {settings.shards} shards must not exceed the {len(labels)} examples, got {number}"
        )
    owner = np.empty(len(labels), dtype=np.int64)
    dealt = rng.permutation(number) // settings.shards
    owner[_shuffled_by_class(labels, rng)] = dealt[_evenly(len(labels), number)]
    return owner


def quantity_skew(labels: Indices, settings: ClientSettings, rng: np.random.Generator) -> Indices:
    """Sizes are proportions drawn from Dirichlet(alpha), labels are i.i.d. (Li et al. 2022, Federated Learning on Non-IID Data Silos,
    quantity skew). Clients may come out empty, where the paper draws again until none is.
    """
    return dirichlet_by_class(np.zeros_like(labels), settings, rng)


def k_shot(labels: Indices, settings: ClientSettings, rng: np.random.Generator) -> Indices:
    """Every client gets `settings.shots` examples of every class (the K-shot N-way sets of Vinyals et al. 2016, section 2, with all
    classes); clients share none, and what is left over is nobody's.

    Raises UserError when a class has too few.
    """
    order = _shuffled_by_class(labels, rng)
    classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rarest, needed = int(np.argmin(counts)), settings.count * settings.shots
    if counts[rarest] < needed:
        raise UserError(
            f"clients.shots: {settings.count} clients x {settings.shots} shots take {needed} examples of every class, but class "
            f"{classes[rarest]} has {counts[rarest]}: enough for {counts[rarest] // settings.count} shots each, or for "
            f"{counts[rarest] // settings.shots} clients"
        )
    turn = (np.arange(len(labels)) - np.repeat(starts, counts)) // settings.shots
    owner = np.empty(len(labels), dtype=np.int64)
    owner[order] = np.where(turn < settings.count, turn, NOBODY)
    return owner


def natural(groups: Indices, settings: ClientSettings, rng: np.random.Generator) -> Indices:
    """Clients own examples of one group each, as devices own their users' data (Caldas et al. 2018, LEAF): a group is divided evenly
    over clients in proportion to its size.

    Where there are fewer clients than groups, whole groups are dealt out, each to the client that has least.
    """
    owner = np.empty(len(groups), dtype=np.int64)
    members = _members(groups)
    counts = np.array([len(mine) for mine in members])
    if settings.count <= len(members):
        least = [(0, client) for client in range(settings.count)]
        for index in np.argsort(-counts, kind="stable"):
            size, client = least[0]
            owner[members[index]] = client
            heapreplace(least, (size + len(members[index]), client))
        return owner
    owners = [1] * len(members)
    largest = [(-float(count), index) for index, count in enumerate(counts)]
    heapify(largest)
    for _ in range(settings.count - len(members)):
        index = largest[0][1]
        owners[index] += 1
        heapreplace(largest, (-float(counts[index]) / owners[index], index))
    first = 0
    for mine, number in zip(members, owners, strict=True):
        owner[rng.permutation(mine)] = first + _evenly(len(mine), number)
        first += number
    return owner


@dataclass(frozen=True)
class Partition:
    """A row of `PARTITIONS`: (what it goes by [examples], settings, randomness) -> each example's owner [examples]; `by`: what that is."""

    deal: Callable[[Indices, ClientSettings, np.random.Generator], Indices]
    by: Literal["nothing", "classes", "groups"]


_PARTITIONS = {
    "iid": Partition(iid, "nothing"),
    "dirichlet_by_class": Partition(dirichlet_by_class, "classes"),
    "dirichlet_by_client": Partition(dirichlet_by_client, "classes"),
    "shards": Partition(shards, "classes"),
    "quantity_skew": Partition(quantity_skew, "nothing"),
    "k_shot": Partition(k_shot, "classes"),
    "natural": Partition(natural, "groups"),
}
PARTITIONS: Table[Partition] = Table("partition", _PARTITIONS)


def partition(
    labels: Indices, settings: ClientSettings, rng: np.random.Generator, own: Mapping[str, Any] | None = None
) -> Shares:
    """Divides examples over clients: one ascending array of example indices for each. Clients may come out empty (callers drop them).

    `labels`: [examples], what the partition goes by: classes, or groups for `natural`; `own`: settings of plug-ins. Raises UserError when there are more clients
    than examples, or the partition cannot be met.
    """
    row = PARTITIONS.chosen(str(settings.partition), own or {}, "clients.partition")
    owned = labels != UNOWNED if row.by == "groups" else np.ones(len(labels), dtype=bool)
    if not owned.all() and settings.missing_group == "refuse":
        raise UserError(
            f"clients.partition: {settings.partition}: {(~owned).sum():,} of the clients' {len(labels):,} examples have no value in the column of "
            "task.columns.group: clients.missing_group: drop leaves them out"
        )
    if settings.count > owned.sum():
        raise UserError(f"clients.count: {settings.count} clients cannot share {owned.sum()} examples")
    owner = np.full(len(labels), NOBODY, dtype=np.int64)
    owner[owned] = row.deal(labels[owned], settings, rng)
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.searchsorted(owner[order], np.arange(settings.count)))[1:]
