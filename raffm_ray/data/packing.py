"""Packing: texts of one owner, joined and cut into blocks of equal length, as language models are trained."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.errors import UserError
from raffm_ray.data.encoding import Columns, Words, chunks, texts_of
from raffm_ray.data.examples import IGNORED, Ragged, owner_of
from raffm_ray.data.sources import Rows

Tokens = NDArray[np.int32]
Owned = dict[str | None, list[tuple[int, Tokens]]]
"""Owner -> (row, tokens) of each of its texts; None: those of nobody."""


def packed(rows: Rows, columns: Mapping[str, str], words: Words) -> Columns:
    """Blocks of `words.length` tokens, cut out of whole texts in their order with the end-of-text token after each.

    A block holds texts of one owner, a value of the column of the role `group`; without that role all are one owner's. An owner's last
    block is shorter. A single token that is left has no next one, and a text without words has nothing to learn: both are left out.
    `row`: [blocks], the row in which each begins. Raises UserError for a tokenizer without an end-of-text token.
    """
    values: list[Tokens] = [np.zeros(0, dtype=np.int32)]
    lengths, begins = ([np.zeros(0, dtype=np.int64)] for _ in range(2))
    for texts in _owned(rows, columns, words).values():
        joined, ends = np.concatenate([tokens for _, tokens in texts]), np.cumsum([len(tokens) for _, tokens in texts])
        starts = np.arange(0, len(joined) - 1, words.length)
        sizes = np.minimum(words.length, len(joined) - starts)
        values.append(joined[: sizes.sum()])
        lengths.append(sizes)
        begins.append(np.array([row for row, _ in texts])[np.searchsorted(ends, starts, side="right")])
    joined, edges = np.concatenate(values), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return {
        "row": np.concatenate(begins).astype(np.int64),
        "input_ids": Ragged(joined, edges, words.padding),
        "labels": Ragged(joined, edges, IGNORED),
    }


def _owned(rows: Rows, columns: Mapping[str, str], words: Words) -> Owned:
    end: Any = words.tokenizer.eos_token_id
    if end is None:
        raise UserError(
            "task.pack: texts are joined by the tokenizer's end-of-text token (eos_token), and it has none: set task.pack to false"
        )
    found: Owned = {}
    for start, (texts, *owners) in chunks(rows, columns["text"], *([columns["group"]] if "group" in columns else [])):
        encoded = words.tokenizer(texts_of(rows, start, texts, "text"), verbose=False)["input_ids"]
        named = map(owner_of, owners[0]) if owners else [""] * len(texts)
        for row, (text, tokens, owner) in enumerate(zip(texts, encoded, named, strict=True), start):
            if text.strip():
                whole = tokens if tokens[-1:] == [end] else [*tokens, end]
                found.setdefault(owner, []).append((row, np.array(whole, dtype=np.int32)))
    return found
