"""The rows of a table of words that a client's texts use. The others take no gradient: without weight decay they stay to the bit.

A table of 30,000 words is half of a small BERT's parameters. Copied, cleared, clipped and stepped whole, it takes a tenth of a client's
time, for the thousand words that the client has.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.data.examples import Examples, Ragged
from raffm_ray.models.architecture import Architecture

PART = 0.5
"""Rows are only taken out of a table that more of it is left in than this."""


@dataclass(frozen=True)
class WordRows:
    """`table`: the parameter's name; `rows`: [kept], ascending, which of its rows are kept; `places`: [words], where a word's row is then."""

    table: str
    rows: Tensor
    places: Tensor

    def in_table(self, values: Tensor) -> Tensor:
        """[words, size], with values [kept, size] in these rows, and zeros in the others."""
        return values.new_zeros(len(self.places), *values.shape[1:]).index_copy_(0, self.rows, values)


def word_table(architecture: Architecture) -> str | None:
    """The parameter that words are looked up in; None where it is in matrix products too, is not trained, or there is none."""
    words = getattr(architecture.config, "vocab_size", None)
    if architecture.head == "sequence_to_sequence":
        return None  # two stacks look words up, each in a module of its own
    for name, spec in architecture.layout.parameters.items():
        if spec.dims == ((), ("residual",)) and architecture.shapes[name][0] == words:
            return name if spec.matmul is None and not spec.frozen else None
    return None


def word_rows(architecture: Architecture, examples: Examples, share: NDArray[np.int64], device: str) -> WordRows | None:
    """The rows for these examples; None where it does not pay, the table cannot be cut, or they are no texts of unequal length."""
    table, texts = word_table(architecture), examples.inputs.get("input_ids")
    if table is None or not isinstance(texts, Ragged):
        return None
    words = np.append(texts.part(share).values, texts.fill)
    count, padding = architecture.shapes[table][0], getattr(architecture.config, "pad_token_id", None)
    # A module knows its padding by number: the rows up to it keep their places.
    rows = np.union1d(words, np.arange(0 if padding is None else padding + 1))
    if len(rows) > PART * count or rows[-1] >= count:
        return None
    places = np.zeros(count, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    return WordRows(table, torch.from_numpy(rows.astype(np.int64)).to(device), torch.from_numpy(places).to(device))


def _placed(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    places: Tensor | None = getattr(module, "subnetwork_places", None)
    return inputs if places is None else (places[inputs[0]], *inputs[1:])


def look_up_places(architecture: Architecture, model: nn.Module) -> nn.Module:
    """Lets a model look words up in a table of some rows, which `use_rows` names; returns it."""
    if table := word_table(architecture):
        model.get_submodule(table.rpartition(".")[0]).register_forward_pre_hook(_placed)
    return model


def use_rows(architecture: Architecture, model: nn.Module, rows: WordRows | None) -> None:
    """Tells a model of `look_up_places` which rows its table has; None: all."""
    if table := word_table(architecture):
        module: Any = model.get_submodule(table.rpartition(".")[0])
        module.subnetwork_places = None if rows is None else rows.places
