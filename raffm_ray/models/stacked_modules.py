"""Modules of several clients at once: every parameter has a leading dimension of clients, every input clients x examples rows.

A model of tens of thousands of parameters spends most of a step between operations. Stacked, one operation serves all clients: matrix
products are batched, and what has no parameters sees the clients as more examples. It knows no family: a kind of module that holds
parameters has a row in `STACKED`, and a model with others is not stacked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raffm_ray.axes.indexing import Plan
from raffm_ray.models.architecture import Architecture, skeleton
from raffm_ray.models.first_position import compute_first_position
from raffm_ray.models.modules import owners_of


class _Stacked(nn.Module):
    """Stands where a stock module stood; its parameters [clients, ...] are plain attributes, set before every use."""

    weight: Tensor
    bias: Tensor | None = None


class _Linear(_Stacked):
    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.transposed = isinstance(stock, Conv1D)

    def forward(self, rows: Tensor) -> Tensor:
        """[clients * examples, ..., in] -> [clients * examples, ..., out]."""
        weight = self.weight if self.transposed else self.weight.transpose(1, 2)
        out = _product(rows.reshape(len(weight), -1, rows.shape[-1]), weight, self.bias)
        return out.view(*rows.shape[:-1], weight.shape[-1])


class _Norm(_Stacked):
    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.eps = float(stock.eps)  # type: ignore[arg-type]  # a LayerNorm's, a float

    def forward(self, rows: Tensor) -> Tensor:
        """[clients * examples, ..., size] -> the same."""
        normed = nn.functional.layer_norm(rows, rows.shape[-1:], eps=self.eps).view(len(self.weight), -1, rows.shape[-1])
        scaled = (
            normed * self.weight[:, None]
            if self.bias is None
            else torch.addcmul(self.bias[:, None], normed, self.weight[:, None])
        )
        return scaled.view(rows.shape)


class _Embedding(_Stacked):
    examples = 1

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()

    def forward(self, words: Tensor) -> Tensor:
        """[clients * examples, positions], or [1, positions] where all are alike -> [clients * examples, positions, size]."""
        clients, vocabulary, size = self.weight.shape
        each = words.expand(clients * self.examples, -1).view(clients, self.examples, -1)
        offset = torch.arange(clients, device=words.device)[:, None, None] * vocabulary
        return nn.functional.embedding((each + offset).flatten(0, 1), self.weight.reshape(-1, size))


class _Patches(_Stacked):
    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.size = int(stock.kernel_size[0])  # type: ignore[index]  # a Conv2d's, two equal numbers

    def forward(self, images: Tensor) -> Tensor:
        """[clients * examples, channels, height, width] -> [clients * examples, out, height / size, width / size]."""
        rows, channels, height, width = images.shape
        down, across = height // self.size, width // self.size
        pieces = images.view(rows, channels, down, self.size, across, self.size).permute(0, 2, 4, 1, 3, 5)
        weight = self.weight.flatten(2).transpose(1, 2)
        out = _product(pieces.reshape(len(weight), -1, weight.shape[1]), weight, self.bias)
        return out.view(rows, down * across, -1).transpose(1, 2).reshape(rows, -1, down, across)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[clients, rows, in] x [clients, in, out] -> [clients, rows, out]."""
    return torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias[:, None], rows, weight)


STACKED: dict[type[nn.Module], Callable[[nn.Module], _Stacked]] = {
    nn.Linear: _Linear,
    Conv1D: _Linear,
    nn.LayerNorm: _Norm,
    nn.Embedding: _Embedding,
    nn.Conv2d: _Patches,
}
"""A stock module that holds parameters -> what stands in its place."""


_CARRIED = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Hooks that see what goes in and comes out, for which clients are more examples. Those of backward passes are not carried over."""
_LEFT = ("_backward_hooks", "_backward_pre_hooks")


def _with_hooks_of(stock: nn.Module, stacked: _Stacked) -> _Stacked:
    """What stands in a module's place, with the hooks that a family or a plan has put there (narrowed values are filled up by one).

    Raises ValueError for a module with hooks that cannot be carried over.
    """
    if reason := _hooked(stock):
        raise ValueError(f"not stacked: {reason}")
    for name in _CARRIED:
        getattr(stacked, name).update(getattr(stock, name))
    return stacked


def _hooked(module: nn.Module) -> str | None:
    kinds = [name.strip("_").replace("_", " ") for name in _LEFT if getattr(module, name, None)]
    return f"{type(module).__name__} has {kinds[0]}" if kinds else None


@dataclass
class StackedModule:
    """A plan's module for any number of clients at once.

    `holders`: by parameter, the modules that hold it and under which name; `repeated`: the same, of those that the stock module uses
    example by example, so that each row gets its client's.
    """

    module: nn.Module
    holders: Mapping[str, list[tuple[nn.Module, str]]]
    repeated: Mapping[str, list[tuple[nn.Module, str]]]

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Any:
        """The model's output for `inputs` [clients * examples, ...], with parameters [clients, ...]."""
        clients = len(next(iter(parameters.values())))
        examples = len(next(iter(inputs.values()))) // clients
        for name, places in self.holders.items():
            for holder, attribute in places:
                setattr(holder, attribute, parameters[name])
                if isinstance(holder, _Embedding):
                    holder.examples = examples
        for name, places in self.repeated.items():
            values = parameters[name]
            rows = (values[:, None] if values.dim() == 2 else values.flatten(0, 1)).repeat_interleave(examples, 0)
            for holder, attribute in places:
                setattr(holder, attribute, rows)
        return self.module(**inputs)

    def release(self) -> None:
        """Forgets the parameters of the last use."""
        for places in (*self.holders.values(), *self.repeated.values()):
            for holder, attribute in places:
                setattr(holder, attribute, None)


def _unlike(architecture: Architecture, module: nn.Module, name: str, attribute: str) -> str | None:
    """Why a parameter's place cannot be stacked, None where it can. `name`: the parameter's."""
    layout, path = architecture.layout, name.rpartition(".")[0]
    if type(module) in STACKED and (reason := _hooked(module)):
        return reason
    if isinstance(module, nn.Conv2d):
        plain = module.stride == module.kernel_size and module.groups == 1 and set(module.padding) == {0}
        return None if plain and len(set(module.kernel_size)) == 1 else "a convolution of overlapping or unequal patches"
    if isinstance(module, nn.Embedding):
        # A table that is not looked up by an example's own positions or words (T5's distances) has no rows of clients.
        return None if layout.parameters[name].dims[1] == ("residual",) else "a table of something else than words and positions"
    if type(module) in STACKED:
        return None
    alike = path in layout.norms or (getattr(module, attribute).dim() == 3 and len(getattr(module, attribute)) == 1)
    return None if alike else f"{type(module).__name__} has no row in STACKED"


def why_not_stacked(architecture: Architecture) -> str | None:
    """Why this model's clients cannot be trained as one stacked module, None where they can.

    Dropout is one reason: a client's draws come from its own generator, which a stack cannot do.
    """
    dropping = [
        name for name, value in architecture.config.to_dict().items() if "drop" in name and isinstance(value, float) and value > 0
    ]
    if dropping:
        return f"it drops out ({dropping[0]})"
    if architecture.adapters is not None and architecture.adapters.dropout:
        return "it drops out (model.adapters.dropout)"
    return next((reason for *_, reason in _places(architecture, skeleton(architecture, Plan())) if reason), None)


def _places(architecture: Architecture, model: nn.Module) -> list[tuple[str, nn.Module, str, str | None]]:
    """(parameter, module that holds it, attribute, why it cannot be stacked)."""
    owners = owners_of(model)
    return [
        (name, holder, attribute, _unlike(architecture, holder, name, attribute))
        for name, parameter in model.named_parameters()
        for holder, attribute in owners[id(parameter)]
    ]


def stacked_skeleton(architecture: Architecture, plan: Plan, attention: str | None = None) -> StackedModule:
    """The stacked module of a plan's subnetwork, without weights. For attention, as `skeleton` has it, clients are more examples.

    Raises ValueError where `why_not_stacked` has a reason.
    """
    model = compute_first_position(architecture, plan, skeleton(architecture, plan, attention))
    places = _places(architecture, model)
    if reasons := [reason for *_, reason in places if reason]:
        raise ValueError(f"not stacked: {reasons[0]}")
    replaced: dict[int, nn.Module] = {}
    for path, module in list(model.named_modules()):
        if type(module) in STACKED:
            parent, _, leaf = path.rpartition(".")
            replaced[id(module)] = _with_hooks_of(module, STACKED[type(module)](module))
            model.get_submodule(parent)._modules[leaf] = replaced[id(module)]
    holders: dict[str, list[tuple[nn.Module, str]]] = {}
    repeated: dict[str, list[tuple[nn.Module, str]]] = {}
    for name, holder, attribute, _ in places:
        if id(holder) in replaced:
            holders.setdefault(name, []).append((replaced[id(holder)], attribute))
        else:
            del holder._parameters[attribute]
            repeated.setdefault(name, []).append((holder, attribute))
    return StackedModule(model, holders, repeated)
