"""Examples as columns of arrays: fixed shapes, texts of unequal length, images as bytes. Everything a worker needs to make a batch.

Columns hold plain numpy arrays, which may be memory-mapped files or a Ray object store's shared memory: nothing is copied until a
batch is made.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
"""Columns of words -> the input that tells real positions from padding."""
IGNORED = -100
"""The label of a position that is not a target (transformers' convention)."""


UNOWNED = -1
"""The group of an example without an owner."""


@dataclass(frozen=True)
class Ragged:
    """Sequences of unequal length, one after the other. A batch is padded with `fill` to its own longest, not to a fixed length.

    `values`: [total length]; `edges`: [examples + 1], where each begins and the last one ends.
    """

    values: NDArray[Any]
    edges: Indices
    fill: int

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def lengths(self) -> Indices:
        """[examples]."""
        return np.diff(self.edges)

    def rows(self, indices: Indices) -> NDArray[np.int64]:
        """[len(indices), longest of them]."""
        starts, lengths = self.edges[indices], self.edges[indices + 1] - self.edges[indices]
        padded = np.full((len(indices), int(lengths.max(initial=1))), self.fill, dtype=np.int64)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            padded[row, :length] = self.values[start : start + length]
        return padded

    def part(self, indices: Indices) -> "Ragged":
        """The sequences at these indices, copied."""
        pieces = [self.values[self.edges[index] : self.edges[index + 1]] for index in indices]
        values = np.concatenate(pieces) if pieces else self.values[:0]
        return Ragged(values, np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64), self.fill)

    def arrays(self) -> list[NDArray[Any]]:
        """What its content is: the sequences, and where they end."""
        return [self.values, self.edges]


def ragged(sequences: Iterable[Iterable[int]], fill: int) -> Ragged:
    """Sequences of numbers as one `Ragged` column."""
    pieces = [np.asarray(list(sequence), dtype=np.int32) for sequence in sequences]
    edges = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    return Ragged(np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32), edges, fill)


@dataclass(frozen=True)
class Pixels:
    """Images as bytes [examples, channels, height, width]; a batch is float32, (pixel / 255 - mean) / deviation by channel."""

    values: NDArray[np.uint8]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, indices: Indices) -> NDArray[np.float32]:
        """[len(indices), channels, height, width]."""
        mean, deviation = (np.asarray(one, dtype=np.float32)[:, None, None] for one in (self.mean, self.deviation))
        return (np.asarray(self.values[indices], dtype=np.float32) / np.float32(255) - mean) / deviation

    def part(self, indices: Indices) -> "Pixels":
        """The images at these indices, copied."""
        return Pixels(self.values[indices], self.mean, self.deviation)

    def arrays(self) -> list[NDArray[Any]]:
        """What its content is."""
        return [self.values, np.array([self.mean, self.deviation])]


Column = NDArray[Any] | Ragged | Pixels


def sent(values: Tensor, device: str) -> Tensor:
    """A tensor on a device. A GPU gets it through pinned memory, while it works on what it was given before."""
    return values.to(device) if not device.startswith("cuda") else values.pin_memory().to(device, non_blocking=True)


def _rows(column: Column, indices: Indices) -> NDArray[Any]:
    return np.array(column[indices]) if isinstance(column, np.ndarray) else column.rows(indices)


def _part(column: Column, indices: Indices) -> Column:
    return column[indices] if isinstance(column, np.ndarray) else column.part(indices)


@dataclass(frozen=True)
class Examples:
    """Model inputs by argument name, and labels: [examples] classes or numbers, [examples, k], or sequences.

    `groups`: to which natural owner an example belongs, [examples] integers, `UNOWNED` for none, where the data says so; `group_names`: those
    of the owners; `times`: [examples] places in the order in which they were made, where the data says so. Ragged columns of words bring their
    masks along.
    """

    inputs: Mapping[str, Column]
    labels: Column
    groups: NDArray[np.int64] | None = field(default=None)
    group_names: tuple[str, ...] = ()
    times: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: Indices) -> "Examples":
        """The examples at these indices, copied."""
        return Examples(
            {name: _part(values, indices) for name, values in self.inputs.items()},
            self.labels_of(indices),
            None if self.groups is None else self.groups[indices],
            self.group_names,
            None if self.times is None else self.times[indices],
        )

    def labels_of(self, indices: Indices) -> Column:
        """The labels of the examples at these indices, copied."""
        return _part(self.labels, indices)

    def batch(self, indices: Indices | slice, device: str = "cpu") -> dict[str, Tensor]:
        """Tensors of these examples for the model's forward, `labels` included. Always copies: the arrays may be shared."""
        chosen = np.arange(len(self))[indices] if isinstance(indices, slice) else indices
        arrays = {name: _rows(values, chosen) for name, values in self.inputs.items()}
        for name, mask in MASKS.items():
            if isinstance(words := self.inputs.get(name), Ragged):
                real = np.arange(arrays[name].shape[1]) < words.lengths[chosen][:, None]
                arrays[mask] = real.astype(np.int64)
        arrays["labels"] = _rows(self.labels, chosen)
        return {name: sent(torch.from_numpy(values), device) for name, values in arrays.items()}

    def lengths(self, name: str = "input_ids") -> Indices | None:
        """[examples]: how long each sequence of an input is; None where it has no such ragged input."""
        column = self.inputs.get(name)
        return column.lengths if isinstance(column, Ragged) else None

    def digest(self) -> str:
        """A name for the content."""
        digest = sha256()
        for column in (*self.inputs.values(), self.labels):
            for values in [column] if isinstance(column, np.ndarray) else column.arrays():
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def owner_of(value: Any) -> str | None:
    """An owner's name, None where the cell is empty: null, not a number, or nothing but spaces."""
    if value is None or value != value:  # only what is not a number is unlike itself
        return None
    name = str(value)
    return name if name.strip() else None


def batches(share: Indices, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[Indices]:
    """`steps` batches of indices: a fresh shuffle for every pass over the share, batches never span two passes."""
    done = 0
    while done < steps:
        order = rng.permutation(share)
        for start in range(0, len(order), batch_size):
            if done == steps:
                return
            yield order[start : start + batch_size]
            done += 1


CHUNK_BATCHES = 64


def batches_by_length(lengths: Indices, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[Indices]:
    """As `batches` over all examples, but texts of like length stand together, so that little is padded.

    A shuffled pass is cut into chunks of 64 batches, and each chunk sorted by length; its batches come in random order.
    """
    done = 0
    while done < steps:
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), batch_size * CHUNK_BATCHES):
            chunk = order[start : start + batch_size * CHUNK_BATCHES]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            parts = np.split(chunk, range(batch_size, len(chunk), batch_size))
            for at in rng.permutation(len(parts)):
                if done == steps:
                    return
                yield parts[at]
                done += 1


def batches_of_like_length(
    share: Indices, lengths: Indices, batch_size: int, steps: int, rng: np.random.Generator
) -> Iterator[Indices]:
    """As `batches`, with as many examples in every step, but texts of like length stand together, so that little is padded.

    A shuffled pass is cut into chunks of 64 batches, and each chunk sorted by length; its batches come in random order. What is left for the
    smaller last batch of a pass is drawn before, whatever its lengths. `lengths`: of `share`.
    """
    done = 0
    while done < steps:
        order = rng.permutation(len(share))
        whole = len(order) // batch_size * batch_size
        parts = list[Indices]()
        for start in range(0, whole, batch_size * CHUNK_BATCHES):
            chunk = order[start : min(start + batch_size * CHUNK_BATCHES, whole)]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            each = chunk.reshape(-1, batch_size)
            parts += list(each[rng.permutation(len(each))])
        for part in (*parts, order[whole:]):
            if len(part) and done < steps:
                yield share[part]
                done += 1


def steps_of(examples: int, batch_size: int, epochs: int, steps: int | None) -> int:
    """How many steps a client takes: `steps` if given, else all batches of `epochs` passes."""
    return steps if steps is not None else epochs * -(-examples // batch_size)


def step_sizes(examples: int, batch_size: int, steps: int) -> list[int]:
    """How many examples each of a client's steps takes: the last batch of a pass is smaller."""
    a_pass = -(-examples // batch_size)
    return [min(batch_size, examples - step % a_pass * batch_size) for step in range(steps)]


def _expected_lengths(lengths: Indices, draws: int, ranks: Indices) -> float:
    """The mean of the expected k-th shortest of so many draws, over the ranks k from 1.

    The i-th of n sorted lengths is at most the k-th shortest of m draws with probability I(i/n; k, m - k + 1), the regularized incomplete beta
    function (Casella and Berger 2002, theorem 5.4.3).
    """
    from scipy.special import betainc

    edges = np.arange(len(lengths) + 1) / len(lengths)
    chances = np.diff(betainc(ranks[:, None], draws - ranks[:, None] + 1, edges), axis=1)
    return float((chances @ np.sort(lengths)).mean())


def batch_length(lengths: Indices, batch_size: int) -> int:
    """To how many positions a batch is padded on average: the expected longest of `batch_size` draws from `lengths`."""
    return int(np.ceil(_expected_lengths(lengths, batch_size, np.array([batch_size])) - 1e-9))


def sorted_batch_length(lengths: Indices, batch_size: int, share: int) -> int:
    """The same for an example in `batches_of_like_length` of a client that owns `share` of them: the longest of every batch of a sorted chunk, and
    of the smaller last batch, which is not sorted."""
    steps, rest = divmod(share, batch_size)
    total = rest * _expected_lengths(lengths, rest, np.array([rest])) if rest else 0.0
    if steps:
        inside = min(CHUNK_BATCHES, steps)
        ends = np.arange(1, inside + 1) * batch_size
        total += steps * batch_size * _expected_lengths(lengths, inside * batch_size, ends)
    return int(np.ceil(total / max(1, share) - 1e-9))
