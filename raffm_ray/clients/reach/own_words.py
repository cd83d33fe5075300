"""The rows of the table of words that each client reads: what its texts use of the vocabulary.

Plans are shared by a device type's clients, and their words are not: a client's part of the model is a pair of its plan and its words. Words
follow from the data alone, so the driver and every worker know them, and none travel between processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raffm_ray.axes.indexing import Indices
from raffm_ray.axes.layout import VOCABULARY
from raffm_ray.data.examples import Examples
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.word_rows import vocabulary_table, word_table, words_read

ID_BYTES = 4
WORTH = 0.9
"""A device that reads more than so much of the vocabulary is sent all of it: saying which words would cost more than the others."""
REMEMBERED = 1024
"""Clients whose words are kept at hand; of all that were asked for, how many they are."""


@dataclass(frozen=True)
class OwnWords:
    """`examples`, `shares`: of all clients, and by client which of them are its own."""

    architecture: Architecture
    examples: Examples
    shares: Sequence[NDArray[np.int64]]
    _rows: dict[int, Indices] = field(default_factory=dict, repr=False, compare=False)
    _counts: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def vocabulary(self) -> int:
        """How many words the model has."""
        return self.architecture.layout.axes[VOCABULARY].size

    @property
    def trained(self) -> bool:
        """Whether the table is trained: a frozen one is not sent to a device that has its rows."""
        return word_table(self.architecture) is not None

    def rows(self, client: int) -> Indices:
        """[words], ascending: those that a client's texts use, and what fills up its batches."""
        if client not in self._rows:
            found = words_read(self.architecture, self.examples, self.shares[client])
            self._rows[client] = np.arange(self.vocabulary) if found is None else found
            self._counts[client] = len(self._rows[client])
            while len(self._rows) > REMEMBERED:
                self._rows.pop(next(iter(self._rows)))
        return self._rows[client]

    def sent(self, client: int) -> int:
        """How many rows a client's device is sent and holds."""
        count = self._counts[client] if client in self._counts else len(self.rows(client))
        return count if count <= WORTH * self.vocabulary else self.vocabulary

    def id_bytes(self, client: int) -> int:
        """With which a device says what its words are: a number each, or a bit for every word of the vocabulary, whichever is less; none where it is sent all."""
        count = self.sent(client)
        return 0 if count == self.vocabulary else min(ID_BYTES * count, -(-self.vocabulary // 8))


def own_words(architecture: Architecture, examples: Examples, shares: Sequence[NDArray[np.int64]]) -> OwnWords | None:
    """None where the model has no table of words that are only looked up, or the examples are no texts."""
    has_texts = vocabulary_table(architecture.layout) is not None and "input_ids" in examples.inputs
    return OwnWords(architecture, examples, shares) if has_texts else None
