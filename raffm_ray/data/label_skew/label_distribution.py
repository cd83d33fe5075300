"""How many examples of each label a client owns, and how much clients differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class LabelDistribution:
    """The pairs of a client and a class that it has examples of, clients ascending, then classes: no table of clients by classes,
    which 100,000 clients would make large.

    `clients`, `labels`, `counts`: [pairs]; `sizes`: [clients], examples; `class_names`: none where the task has no classes.
    """

    clients: Indices
    labels: Indices
    counts: Indices
    sizes: Indices
    class_names: tuple[str, ...] = ()

    def classes(self) -> Indices:
        """[clients]: how many classes each has examples of."""
        return np.bincount(self.clients, minlength=len(self.sizes))

    def dominant(self) -> Indices:
        """[clients]: the class that each has most of, the first of several; -1 for a client without examples."""
        result = np.full(len(self.sizes), -1, dtype=np.int64)
        order = np.lexsort((-self.labels, self.counts, self.clients))
        result[self.clients[order]] = self.labels[order]  # the last of a client's stays, which is the largest
        return result

    def mix(self) -> NDArray[np.float64]:
        """[classes]: the part of every class in all examples that are dealt."""
        dealt = np.bincount(self.labels, self.counts, minlength=max(1, len(self.class_names)))
        return np.asarray(dealt / max(1, dealt.sum()), dtype=np.float64)

    def distances(self) -> NDArray[np.float64]:
        """[clients]: total variation distance between a client's mix of classes and all clients' together, 0 (the same) to 1.

        It is half the sum of absolute differences, or 1 - sum over classes of min(p, q) (Levin, Peres and Wilmer 2009, section 4.1).
        NaN for a client without examples.
        """
        own = self.counts / self.sizes[self.clients]
        common = np.bincount(self.clients, np.minimum(own, self.mix()[self.labels]), minlength=len(self.sizes))
        return np.where(self.sizes > 0, 1 - common, np.nan)

    def dealt_anew(self, rng: np.random.Generator) -> "LabelDistribution":
        """The same examples and sizes, dealt at random: what a distance is to be compared with, as small clients are unlike anyway."""
        labels = rng.permutation(np.repeat(self.labels, self.counts))
        return _count(np.repeat(np.arange(len(self.sizes)), self.sizes), labels, self.sizes, self.class_names)


def _count(owners: Indices, labels: Indices, sizes: Indices, class_names: tuple[str, ...]) -> LabelDistribution:
    span = int(labels.max(initial=0)) + 1
    pairs, counts = np.unique(owners * span + labels, return_counts=True)
    return LabelDistribution(
        clients=pairs // span, labels=pairs % span, counts=counts.astype(np.int64), sizes=sizes, class_names=class_names
    )


def label_distribution_of(
    shares: Sequence[Indices], labels: Indices | None, class_names: Sequence[str] = ()
) -> LabelDistribution:
    """Counts clients' shares. `labels`: [examples] classes from 0, None where there are none; classes without a name get their number."""
    sizes = np.array([len(share) for share in shares], dtype=np.int64)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    mine = np.zeros(len(owners), dtype=np.int64)
    if labels is None:
        return _count(owners, mine, sizes, ())
    known = [*class_names, *map(str, range(len(class_names), int(labels.max(initial=-1)) + 1))]
    if len(owners):
        mine = labels[np.concatenate(shares)].astype(np.int64)
    return _count(owners, mine, sizes, tuple(known))
