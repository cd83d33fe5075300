"""A model described for cutting: what its parameters, attention modules and norms are made of, by the names of its axes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from raffm_ray.axes.indexing import Axis, Dim, Dims, Plan, Selection, selection, take_selected

Layer = tuple[str, int]
"""A layer axis and an index of it: what disappears when a plan drops that layer."""
VOCABULARY = "vocabulary"
"""The axis of the words that are looked up in a table. It is in no budget's plan: which are kept follows from texts, not from salience."""


@dataclass(frozen=True)
class Parameter:
    """What the project knows of one parameter.

    `dims`: one dim for every position of its shape. `layer`: the axis and index it disappears with, if any. `matmul`: the kind of
    positions it is multiplied at ("tokens", "targets", "patches", "examples"), None if in no matrix product. `reads`: which of its
    dims is contracted with the input (1 for `nn.Linear`). `raw`: whether that input is the example itself, whose gradient nobody
    needs. `module`: what multiplies, where it is not what the parameter is named after (tied embeddings). `frozen`: whether nobody
    trains it. `adapts`: the weight that it is one of the two projections of an adapter of, None for all others.
    """

    dims: Dims
    layer: Layer | None = None
    matmul: str | None = None
    reads: int = 1
    raw: bool = False
    module: str | None = None
    frozen: bool = False
    adapts: str | None = None


@dataclass(frozen=True)
class Attention:
    """One attention module. `heads`, `qk`, `vo`: dims as long as there are query heads, and as a query and a value are.

    `ffn`: of the FFN right after it. `groups`: of key and value heads, None where every query head has its own. `queries`, `keys`:
    the positions that attend and are attended to. `positional`: axes of which it must know the indices, not only how many.
    """

    module: str
    heads: Dim
    qk: Dim
    vo: Dim
    ffn: Dim | None
    layer: Layer | None = None
    groups: Dim | None = None
    queries: str = "tokens"
    keys: str = "tokens"
    positional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A model described for cutting: axes, parameters (in the model's order), attention modules, norms over the residual stream."""

    axes: Mapping[str, Axis]
    parameters: Mapping[str, Parameter]
    attentions: tuple[Attention, ...] = ()
    norms: tuple[str, ...] = field(default=())
    norm_positions: Mapping[str, str] = field(default_factory=dict)  # what kind a norm sees, if not "tokens"

    @cached_property
    def blocks(self) -> frozenset[str]:
        """The modules of the stacks' blocks, whether a plan can drop them or not, as far as their numbers."""
        return frozenset(found.group(1) for site in self.attentions if (found := _NUMBERED.match(site.module)))

    @property
    def layer_axes(self) -> set[str]:
        """The axes that count layers."""
        return {spec.layer[0] for spec in self.parameters.values() if spec.layer}


def module_of(name: str) -> str:
    """The module that a parameter is in."""
    return name.rpartition(".")[0]


_NUMBERED = re.compile(r"(.*?\.\d+)\.")


def block_of(name: str, layout: Layout) -> str:
    """The block of a stack, an attention and its FFN, that a parameter or module is in, as far as its number; "" where it is in none."""
    found = _NUMBERED.match(name)
    return found.group(1) if found and found.group(1) in layout.blocks else ""


def is_kept(layer: Layer | None, plan: Plan) -> bool:
    """Whether a plan keeps a layer; what belongs to none is always kept."""
    return layer is None or layer[0] not in plan or layer[1] in plan[layer[0]]


def selections(shapes: Mapping[str, tuple[int, ...]], layout: Layout, plan: Plan) -> dict[str, Selection]:
    """The selection of every parameter that the plan keeps, by name: a whole cut, computed once and used often."""
    return {
        name: selection(shapes[name], spec.dims, layout.axes, plan)
        for name, spec in layout.parameters.items()
        if is_kept(spec.layer, plan)
    }


def take_all(parameters: Mapping[str, Tensor], layout: Layout, plan: Plan) -> dict[str, Tensor]:
    """`take` for every parameter that the plan keeps, by the same names."""
    chosen = selections({name: tuple(values.shape) for name, values in parameters.items()}, layout, plan)
    return {name: take_selected(parameters[name], selected) for name, selected in chosen.items()}
