"""What a task's data looks like, in a few lines that a user can check before anything is trained."""

from collections.abc import Sequence
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.formatting import counted
from raffm_ray.data.examples import UNOWNED
from raffm_ray.data.tasks import Task

MOST_LABELS = 8
"""How many labels are named with their counts; of more, only the rarest and the most frequent are."""

LONGEST_NAME = 40
"""Letters of a group's name."""


def data_summary(
    task: Task, shares: Sequence[NDArray[np.int64]], max_length: int, padded: int | None = None, packed: bool = False
) -> list[str]:
    """Lines on the parts, labels, lengths of texts, and clients. `shares`: every client's examples; `max_length`: where texts are
    cut; `padded`: how many tokens a text of a client's batch is padded to on average."""
    parts = ", ".join(f"{len(part):,} {name}" for name, part in task.parts.items())
    lines = [f"data: {task.name}: examples: {parts}"]
    labels = task.clients.labels
    if task.labels not in (None, 1) and isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind == "i":
        lines.append(f"labels of the clients' examples: {_labels(labels, task.class_names)}")
    lengths = task.clients.lengths()
    if lengths is not None and len(lengths):
        cut = np.mean(lengths >= max_length)
        longest = f"; {100 * (1 - cut):.1f}% are shorter than max_length {max_length}" if packed and cut < 1 else ""
        longest = longest if packed else f"; {100 * cut:.1f}% fill max_length {max_length} or were cut there" if cut else ""
        waste = (
            f"; in batches padded to {padded} on average, {max(0.0, 1 - lengths.mean() / padded):.0%} of it padding"
            if padded
            else ""
        )
        lines.append(
            f"{'blocks of joined texts' if packed else 'texts'}: {lengths.min():,} to {lengths.max():,} tokens, half of them at most {np.median(lengths):.0f}{longest}{waste}"
        )
    sizes = np.array([len(share) for share in shares])
    empty = f"; {int((sizes == 0).sum()):,} without any" if (sizes == 0).any() else ""
    groups = ""
    if task.clients.groups is not None:
        nobodys = int((task.clients.groups == UNOWNED).sum())
        groups = f"; {counted(len(np.unique(task.clients.groups)) - (nobodys > 0), 'group')} in task.columns.group"
        groups += f", {counted(nobodys, 'example')} without one" if nobodys else ""
    lines.append(
        f"{counted(len(sizes), 'client')} with {sizes.min():,} to {sizes.max():,} examples, half of them at most {np.median(sizes):.0f}{empty}{groups}"
    )
    return [*lines, *filter(None, [group_line(task, shares)])]


def group_line(task: Task, shares: Sequence[NDArray[np.int64]]) -> str | None:
    """How many clients share each group, or how many groups a client has; None where clients do not own examples by their groups."""
    groups = task.clients.groups
    if groups is None:
        return None
    mine = groups[np.concatenate(shares)]
    if not len(mine) or (mine == UNOWNED).any():
        return None
    span = int(mine.max()) + 1
    pairs = np.unique(np.repeat(np.arange(len(shares)), [len(share) for share in shares]) * span + mine)
    (found, owners), owned = np.unique(pairs % span, return_counts=True), np.unique(pairs // span, return_counts=True)[1]
    told = counted(len(found), "group")
    if owners.max() == 1:
        few, many = owned.min(), owned.max()
        return f"{told}: each client owns {counted(int(many), 'whole group') if few == many else f'{few:,} to {many:,} whole groups'}"
    if owned.max() > 1:
        return None
    order = np.argsort(-owners, kind="stable")
    names = task.clients.group_names or tuple(map(str, range(int(found.max()) + 1)))
    most = [f"{shorten(names[found[at]], LONGEST_NAME)} {counted(int(owners[at]), 'client')}" for at in order[:MOST_LABELS]]
    return f"{told}: {', '.join(most)}{', ...' if len(order) > MOST_LABELS else ''}; a group's examples are divided evenly among its clients"


def _labels(labels: NDArray[np.int64], names: Sequence[str]) -> str:
    counts = np.bincount(labels, minlength=len(names))
    known = [*names, *map(str, range(len(names), len(counts)))]

    def told(number: int) -> str:
        return f"{known[number]} {counts[number]:,} ({100 * counts[number] / max(1, counts.sum()):.1f}%)"

    if len(counts) <= MOST_LABELS:
        return ", ".join(told(number) for number in range(len(counts)))
    return f"{len(counts)} labels, from {told(int(counts.argmin()))} to {told(int(counts.argmax()))}"
