"""LoRA (Hu et al. 2022, section 4.1): beside a projection W, which nobody trains, two thin ones: W x + s B A x, with A [rank, in] and B [out, rank].

A rank is an axis: A's dims are (rank, what W reads), B's (what W makes, rank). So cutting, adding back, coverage, costs, salience and budgets
of ranks are those of any other axis, and a subnetwork of W has the adapter cut to match.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import sqrt
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raffm_ray.axes.indexing import Axis
from raffm_ray.axes.layout import Layout, Parameter, module_of
from raffm_ray.basics.errors import UserError
from raffm_ray.models.adapters.targets import adapted_weights, linear_weights, projections

RANK = "rank"
"""The kind of an adapter's axis."""
DOWN, UP = "lora_A", "lora_B"
"""What the two projections of an adapter are called inside the module that they adapt, as `peft` calls them."""
Shapes = Mapping[str, tuple[int, ...]]


class Wanted(Protocol):
    """What is asked for, as `AdapterSettings` says it; what loads a deployed model alone has no settings."""

    @property
    def rank(self) -> int:
        """Of every adapter."""

    @property
    def alpha(self) -> float:
        """What `scale_of` goes by."""

    @property
    def scaling(self) -> str:
        """The same: `lora` or `rslora`."""

    @property
    def targets(self) -> tuple[str, ...]:
        """As of `adapted_weights`."""

    @property
    def dropout(self) -> float:
        """The fraction of what an adapter reads that is left out in training."""


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model. `modules`: what they adapt, in the model's order; `rank`: of each; `scale`: s, the same for any number of ranks
    that a device keeps, so that a cut adapter is a part of the whole one. `sketched`: whether the ranks that it keeps stand for all of them."""

    modules: tuple[str, ...]
    rank: int
    scale: float
    dropout: float = 0.0
    sketched: bool = field(default=False, repr=False)  # the full model, which caches are named after, is the same

    def share(self, kept: int) -> float:
        """What so many ranks count, over s: 1, or with sketches of k of r ranks r / k (Fang et al. 2025, section 3)."""
        return self.rank / kept if self.sketched else 1.0


def scale_of(settings: Wanted) -> float:
    """s: alpha / rank (Hu et al. 2022, section 4.1), or alpha / sqrt(rank) (rank-stabilized: Kalajdzievski 2023, eq. 7)."""
    return settings.alpha / (sqrt(settings.rank) if settings.scaling == "rslora" else settings.rank)


def rank_axis(module: str) -> str:
    """The axis of the ranks of a module's adapter."""
    return f"{module}/{RANK}"


def factors(module: str) -> tuple[str, str]:
    """The names of A and B of a module."""
    return f"{module}.{DOWN}.weight", f"{module}.{UP}.weight"


def with_adapters(layout: Layout, shapes: Shapes, settings: Wanted, words: int | None) -> tuple[Layout, Shapes, Adapters]:
    """The layout and shapes of a model with adapters, in its order, and what they are. All else is frozen but for task heads: linear layers outside
    of layers that have no adapter and do not answer with one of `words`.

    Raises UserError for a target that names nothing, and a rank beyond the smaller side of a projection.
    """
    chosen = adapted_weights(layout, settings.targets)
    heads = {
        module_of(name)
        for name in linear_weights(layout).keys() - projections(layout).keys() - {*chosen}
        if words is None or shapes[name][1 - layout.parameters[name].reads] != words
    }
    parameters = {name: replace(spec, frozen=module_of(name) not in heads) for name, spec in layout.parameters.items()}
    axes, ordered, last = dict(layout.axes), dict[str, Parameter](), {module_of(name): name for name in parameters}
    sizes = dict[str, tuple[int, ...]]()
    for name, spec in parameters.items():
        ordered[name], sizes[name] = spec, shapes[name]
        module = module_of(name)
        if (weight := f"{module}.weight") in chosen and last[module] == name:
            base, shape = parameters[weight], shapes[weight]
            reads, makes = shape[base.reads], shape[1 - base.reads]
            if settings.rank > min(reads, makes):
                raise UserError(
                    f"model.adapters.rank: must be at most {min(reads, makes)}, the smaller side of {module}, got {settings.rank}"
                )
            axis = rank_axis(module)
            axes[axis] = Axis(axis, settings.rank)
            down, up = factors(module)
            like = Parameter((), base.layer, base.matmul, adapts=weight)
            ordered[down] = replace(like, dims=((axis,), base.dims[base.reads]))
            ordered[up] = replace(like, dims=(base.dims[1 - base.reads], (axis,)))
            sizes |= {down: (settings.rank, reads), up: (makes, settings.rank)}
    made = Adapters(tuple(map(module_of, chosen)), settings.rank, scale_of(settings), settings.dropout)
    return replace(layout, axes=axes, parameters=ordered), sizes, made


# A function of the module, no closure: a model can be pickled.
def _add_adapter(adapters: Adapters, module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    given: Tensor = inputs[0]
    if adapters.dropout and module.training:
        given = nn.functional.dropout(given, adapters.dropout)
    kept = module.lora_A.weight.shape[-2]  # of a stack's too
    return torch.add(output, module.lora_B(module.lora_A(given)), alpha=adapters.scale * adapters.share(kept))


def add_adapters(model: nn.Module, adapters: Adapters | None) -> nn.Module:
    """Puts adapters into a model, A drawn as a linear layer's weight and B zero, so that nothing changes at first (Hu et al. 2022, section 4.1;
    the draw is `peft`'s); returns the model. A module stays what it is, with A and B inside it and a hook that adds what they make."""
    for path in adapters.modules if adapters else ():
        module = model.get_submodule(path)
        assert isinstance(module, nn.Linear | Conv1D)
        assert adapters is not None
        reads, makes = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        up = nn.Linear(adapters.rank, makes, bias=False)
        module.add_module(DOWN, nn.Linear(reads, adapters.rank, bias=False))
        module.add_module(UP, up)
        if up.weight.device.type != "meta":
            nn.init.zeros_(up.weight)
        module.register_forward_hook(partial(_add_adapter, adapters))
    return model


def drawn(architecture_shapes: Shapes, adapters: Adapters | None) -> dict[str, Tensor]:
    """The adapters' parameters as `add_adapters` draws them, by name, from torch's own generator."""
    made = dict[str, Tensor]()
    for module in adapters.modules if adapters else ():
        down, up = factors(module)
        out, into = architecture_shapes[up][0], architecture_shapes[down][1]
        assert adapters is not None
        made[down] = nn.Linear(into, adapters.rank, bias=False).weight.detach()
        made[up] = torch.zeros(out, adapters.rank)
    return made


def merged(parameters: Mapping[str, Tensor], layout: Layout, adapters: Adapters) -> dict[str, Tensor]:
    """Parameters, whole or cut, by the names of the model without adapters: W + s B A where there is one, in W's own type."""
    plain = {name: values for name, values in parameters.items() if not layout.parameters[name].adapts}
    for module in adapters.modules:
        down, up = factors(module)
        if (weight := f"{module}.weight") in plain:
            scale = adapters.scale * adapters.share(len(parameters[down]))
            change = scale * (parameters[up].double() @ parameters[down].double())
            change = change if layout.parameters[weight].reads == 1 else change.T
            plain[weight] = (plain[weight].double() + change).to(plain[weight].dtype)
    return plain


def without_adapters(layout: Layout) -> Layout:
    """The layout of the model that `merged` is of, with nothing frozen."""
    axes = {name: axis for name, axis in layout.axes.items() if not name.endswith(f"/{RANK}")}
    parameters = {name: replace(spec, frozen=False) for name, spec in layout.parameters.items() if not spec.adapts}
    return replace(layout, axes=axes, parameters=parameters)
