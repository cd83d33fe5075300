"""Frozen parameters: which ones the patterns name, how they are told apart from the trained ones, and modules that compute no gradients for
them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.layout import Layout
from raffm_ray.basics.errors import UserError, near_miss
from raffm_ray.models.architecture import Architecture


def freeze(layout: Layout, patterns: Sequence[str]) -> Layout:
    """The layout with every parameter frozen besides whose name matches one of the patterns (as of `fnmatch`, case counts).

    Raises UserError for a pattern that matches nothing, and when nothing is left to train.
    """
    if not patterns:
        return layout
    names = list(layout.parameters)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            leading = {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}
            raise UserError(f"model.freeze: {pattern!r} matches no parameter{near_miss(pattern.strip('*.'), leading)}")
    frozen = {name for name, spec in layout.parameters.items() if spec.frozen or any(fnmatchcase(name, one) for one in patterns)}
    if len(frozen) == len(names):
        raise UserError(f"model.freeze: {', '.join(patterns)}: all {len(names)} parameters match, and nothing is left to train")
    return replace(layout, parameters={name: replace(spec, frozen=name in frozen) for name, spec in layout.parameters.items()})


def frozen_in_words(architecture: Architecture) -> list[str]:
    """A line on how much is frozen; none where nothing is."""
    if not architecture.frozen_shapes:
        return []
    frozen, whole = (sum(map(prod, shapes.values())) for shapes in (architecture.frozen_shapes, architecture.shapes))
    names, adapters = list(architecture.frozen_shapes), architecture.adapters
    if adapters:
        own = sum(prod(shape) for name, shape in architecture.shapes.items() if architecture.layout.parameters[name].adapts)
        trained = whole - frozen
        return [
            f"model.adapters: {own:,} parameters in {len(adapters.modules)} adapters of rank {adapters.rank}, and {trained - own:,} others, are trained; "
            f"{frozen:,} are frozen"
        ]
    shown = ", ".join(names if len(names) <= 3 else [*names[:2], "...", names[-1]])
    return [
        f"model.freeze: {len(names)} of {len(architecture.shapes)} tensors, {frozen:,} of {whole:,} parameters, are not trained, before round 1 neither: "
        f"{shown}"
    ]


def for_training(module: nn.Module, layout: Layout) -> nn.Module:
    """Puts a module in training mode, frozen parameters without gradients; returns the module."""
    only_trained(dict(module.named_parameters()), layout)
    return module.train()


def only_trained(parameters: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Those of a module's or a stack's parameters, by name, that are trained; the frozen ones take no gradient from here on."""
    for name, values in parameters.items():
        values.requires_grad_(not layout.parameters[name].frozen)
    return {name: values for name, values in parameters.items() if values.requires_grad}


ALIGNMENT = 64
"""Bytes, as PyTorch aligns what it allocates: how an operand of a matrix product is aligned may change how the product rounds. Frozen tensors
begin at multiples of it, so that workers can compute with them where they lie."""


def frozen_views(flat: Tensor, architecture: Architecture) -> dict[str, Tensor]:
    """The flat frozen parameters by name, in the model's order; they share its memory."""
    found, start, step = {}, 0, ALIGNMENT // flat.element_size()
    for name, shape in architecture.frozen_shapes.items():
        found[name] = flat[start : start + prod(shape)].view(shape)
        start += -(-prod(shape) // step) * step
    return found


def frozen_length(architecture: Architecture) -> int:
    """Numbers in the flat array of the frozen parameters, with what aligns them."""
    step = ALIGNMENT // architecture.frozen_dtype.itemsize
    return sum(-(-prod(shape) // step) * step for shape in architecture.frozen_shapes.values())


def split(flat: Tensor, architecture: Architecture) -> tuple[Tensor, Tensor]:
    """All parameters, flat, as two flat arrays in the model's order: the trained ones, and the frozen ones, every one of them aligned and in
    `architecture.frozen_dtype`. Where nothing is frozen the first is the given array itself."""
    if not architecture.frozen_shapes:
        return flat, flat[:0]
    named = views(flat, architecture.shapes)
    frozen = torch.zeros(frozen_length(architecture), dtype=architecture.frozen_dtype)
    for name, values in frozen_views(frozen, architecture).items():
        values.copy_(named[name])
    return flatten(named, architecture.trained_shapes), frozen


def named_parameters(
    trained: Tensor, frozen: Tensor, architecture: Architecture, size_specific: Sequence[str] = (), copy: int = 0
) -> dict[str, Tensor]:
    """All parameters by name, in the model's order, out of the two arrays of `split`, whose memory and types they share.

    `size_specific`, `copy`: as of `views`, for the copies behind the trained ones. Raises ValueError where the frozen array is of another
    model.
    """
    named = views(trained, architecture.trained_shapes, size_specific, copy)
    if not architecture.frozen_shapes:
        return named
    if frozen.numel() != frozen_length(architecture):
        raise ValueError(f"{frozen.numel()} frozen parameters, and this model has others")
    named |= frozen_views(frozen, architecture)
    return {name: named[name] for name in architecture.shapes}


class InFloat32(Mapping[str, Tensor]):
    """Tensors by name as float32, converted when they are asked for: a large model whose frozen part is in bfloat16 is never whole in float32.
    Those that are float32 are given as they are."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.named = named

    def __getitem__(self, name: str) -> Tensor:
        return self.named[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)


def to_array(frozen: Tensor) -> NDArray[Any]:
    """The flat frozen parameters as NumPy has them, which has no bfloat16: as their bits, in int16. It shares their memory."""
    return (frozen.view(torch.int16) if frozen.dtype == torch.bfloat16 else frozen).numpy()


def from_array(frozen: Tensor) -> Tensor:
    """The inverse of `to_array`, of a tensor of that array."""
    return frozen.view(torch.bfloat16) if frozen.dtype == torch.int16 else frozen
