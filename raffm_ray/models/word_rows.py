"""The rows of a table of words that a client's texts use. The others take no gradient: without weight decay they stay to the bit.

A table of 30,000 words is half of a small BERT's parameters. Copied, cleared, clipped and stepped whole, it takes a tenth of a client's
time, for the thousand words that the client has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.axes.indexing import Indices
from raffm_ray.axes.layout import VOCABULARY, Layout
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


def vocabulary_table(layout: Layout) -> str | None:
    """The parameter whose rows are words that are only looked up, trained or frozen; None where there is none."""
    return next((name for name, spec in layout.parameters.items() if spec.dims[0] == (VOCABULARY,)), None)


def word_table(architecture: Architecture) -> str | None:
    """The parameter that words are looked up in; None where it is in matrix products too, is not trained, or there is none."""
    table = vocabulary_table(architecture.layout)
    return None if table is None or architecture.layout.parameters[table].frozen else table


def words_read(architecture: Architecture, examples: Examples, share: NDArray[np.int64]) -> Indices | None:
    """[words], ascending: those of these examples, and what fills up their batches; None where the model has no table of words that are only
    looked up, or the examples are none of its texts."""
    table, texts = vocabulary_table(architecture.layout), examples.inputs.get("input_ids")
    if table is None or texts is None:
        return None
    values, fill = (texts.part(share).values, [texts.fill]) if isinstance(texts, Ragged) else (np.asarray(texts)[share], [])
    padding = getattr(architecture.config, "pad_token_id", None)
    used, count = np.union1d(values, [*fill, *([] if padding is None else [padding])]), architecture.shapes[table][0]
    return used.astype(np.int64) if used[0] >= 0 and used[-1] < count else None


def word_rows(architecture: Architecture, words: Indices | None, device: str) -> WordRows | None:
    """The rows of these words, of `words_read`; None where taking them out does not pay, or the table is not trained."""
    table = word_table(architecture)
    if table is None or words is None or len(words) > PART * architecture.shapes[table][0]:
        return None
    places = np.zeros(architecture.shapes[table][0], dtype=np.int64)
    places[words] = np.arange(len(words))
    return WordRows(table, torch.from_numpy(words).to(device), torch.from_numpy(places).to(device))


def only_rows(changed: Mapping[str, Tensor], architecture: Architecture, words: Indices) -> dict[str, Tensor]:
    """The table of words, by name, with the rows of these words alone. `changed`: by name; a table is [words, size]."""
    table = str(word_table(architecture))
    return {table: changed[table][torch.from_numpy(words).to(changed[table].device)]}


def _placed(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    places: Tensor | None = getattr(module, "subnetwork_places", None)
    return inputs if places is None else (places[inputs[0]], *inputs[1:])


def look_up_places(architecture: Architecture, model: nn.Module) -> nn.Module:
    """Lets a model look words up in a table of some rows, which `use_rows` names; returns it."""
    if table := word_table(architecture):
        model.get_submodule(table.rpartition(".")[0]).register_forward_pre_hook(_placed)
    return model


def use_rows(architecture: Architecture, model: nn.Module, rows: WordRows | None) -> None:
    """Tells a model of `look_up_places` which rows its table has, and where its padding is then; None: all, in their places."""
    if table := word_table(architecture):
        module: Any = model.get_submodule(table.rpartition(".")[0])
        module.subnetwork_places = None if rows is None else rows.places
        if module.padding_idx is not None:
            padding = architecture.config.pad_token_id
            module.padding_idx = padding if rows is None else int(rows.places[padding])
