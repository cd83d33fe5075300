"""The axis of words: the rows of a table that words are only looked up in.

A client's texts read few of the rows. The others take no gradient: they need not travel, and nobody trains them. Where the table is the
output layer too, every row takes one (the loss looks at all words), and it has no such axis; nor has one that two stacks look words up in.
"""

from collections.abc import Mapping
from dataclasses import replace

from transformers import PretrainedConfig

from raffm_ray.axes.indexing import Axis
from raffm_ray.axes.layout import VOCABULARY, Layout


def with_vocabulary(layout: Layout, shapes: Mapping[str, tuple[int, ...]], config: PretrainedConfig, head: str) -> Layout:
    """The layout with an axis for the rows of its table of words, the first parameter of `config.vocab_size` rows and the residual stream's columns that is
    in no matrix product; unchanged where there is none."""
    words = getattr(config, "vocab_size", None)
    for name, spec in layout.parameters.items() if head != "sequence_to_sequence" else ():
        if spec.dims == ((), ("residual",)) and shapes[name][0] == words:
            if spec.matmul is not None:
                return layout
            table = replace(spec, dims=((VOCABULARY,), ("residual",)))
            axis = Axis(VOCABULARY, shapes[name][0], ranked=False)
            return replace(layout, axes={**layout.axes, VOCABULARY: axis}, parameters={**layout.parameters, name: table})
    return layout
