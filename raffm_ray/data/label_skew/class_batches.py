"""Batches with other shares of the classes than a client's examples have."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from raffm_ray.data.examples import CHUNK_BATCHES, step_sizes

Indices = NDArray[np.int64]

MOST_TIMES = 10.0
"""About how often an example may be taken in one pass over a client's examples: classes of which it has fewer are left out."""


def kept_classes(classes: Indices, class_shares: Sequence[float]) -> NDArray[np.bool_]:
    """[classes]: whether a client learns a class: it has at least a tenth of the share that all clients have. Of fewer examples than that a
    model learns these examples, not the class. At least one class is kept.

    `classes`: of each of its examples; `class_shares`: by class, of all clients' examples.
    """
    all_clients = np.asarray(class_shares)
    own = np.bincount(classes, minlength=len(all_clients)) / len(classes)
    return np.asarray((own > 0) & (MOST_TIMES * own >= all_clients))


def draw_by_class(
    share: Indices, classes: Indices, class_shares: Sequence[float], batch_size: int, steps: int, rng: np.random.Generator
) -> Indices:
    """[examples of all steps]: as many of a client's examples as it takes in so many steps, in the order in which they are taken, each of a class that is
    drawn by `class_shares` among its `kept_classes`, and none of a class again before all of this class were taken.

    `share`, `classes`: its examples, and the class of each; `class_shares`: by class, of all clients' examples. Class-balanced sampling (Kang et
    al. 2020, section 4.1), with all clients' shares instead of equal ones.
    """
    owned = np.flatnonzero(kept_classes(classes, class_shares))
    chances = np.asarray(class_shares)[owned]
    drawn = rng.choice(len(owned), size=sum(step_sizes(len(share), batch_size, steps)), p=chances / chances.sum())
    result = np.empty(len(drawn), dtype=np.int64)
    for number, label in enumerate(owned):
        mine, at = share[classes == label], np.flatnonzero(drawn == number)
        passes = [rng.permutation(mine) for _ in range(-(-len(at) // len(mine)))]
        result[at] = np.concatenate([*passes, mine[:0]])[: len(at)]
    return result


def balanced_batches(
    drawn: Indices, lengths: Indices | None, examples: int, batch_size: int, steps: int, rng: np.random.Generator
) -> Iterator[Indices]:
    """What `draw_by_class` drew for a client of so many examples, step by step, each as large as the client's steps are. `lengths`: of all examples,
    None where they do not matter; else texts of like length stand together within chunks of 64 steps, which come in random order."""
    sizes = step_sizes(examples, batch_size, steps)
    for start in range(0, steps, CHUNK_BATCHES):
        of_chunk = sizes[start : start + CHUNK_BATCHES]
        chunk, drawn = np.split(drawn, [sum(of_chunk)])
        if lengths is not None:
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        parts = np.split(chunk, np.cumsum(of_chunk)[:-1])
        yield from parts if lengths is None else (parts[at] for at in rng.permutation(len(parts)))
