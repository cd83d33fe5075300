"""Frozen parameters: which ones the patterns name, how they are told apart from the trained ones, and modules that compute no gradients for
them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.layout import Layout
from raffm_ray.basics.errors import UserError, near_miss
from raffm_ray.models.architecture import Architecture


def freeze(layout: Layout, patterns: Sequence[str]) -> Layout:
    """The layout with every parameter frozen whose name matches one of the patterns (as of `fnmatch`, case counts).

    Raises UserError for a pattern that matches nothing, and when nothing is left to train.
    """
    if not patterns:
        return layout
    names = list(layout.parameters)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            leading = {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}
            raise UserError(f"model.freeze: {pattern!r} matches no parameter{near_miss(pattern.strip('*.'), leading)}")
    frozen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if len(frozen) == len(names):
        raise UserError(f"model.freeze: {', '.join(patterns)}: all {len(names)} parameters match, and nothing is left to train")
    return replace(layout, parameters={name: replace(spec, frozen=name in frozen) for name, spec in layout.parameters.items()})


def for_training(module: nn.Module, layout: Layout) -> nn.Module:
    """Puts a module in training mode, frozen parameters without gradients; returns the module."""
    only_trained(dict(module.named_parameters()), layout)
    return module.train()


def only_trained(parameters: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Those of a module's or a stack's parameters, by name, that are trained; the frozen ones take no gradient from here on."""
    for name, values in parameters.items():
        values.requires_grad_(not layout.parameters[name].frozen)
    return {name: values for name, values in parameters.items() if values.requires_grad}


def split(flat: Tensor, architecture: Architecture) -> tuple[Tensor, Tensor]:
    """All parameters, flat, as two flat arrays in the model's order: the trained ones, and the frozen ones. Where nothing is frozen the first
    is the given array itself."""
    if not architecture.frozen_shapes:
        return flat, flat[:0]
    named = views(flat, architecture.shapes)
    return flatten(named, architecture.trained_shapes), flatten(named, architecture.frozen_shapes)


def named_parameters(
    trained: Tensor, frozen: Tensor, architecture: Architecture, size_specific: Sequence[str] = (), copy: int = 0
) -> dict[str, Tensor]:
    """All parameters by name, in the model's order, out of the two arrays of `split`, whose memory they share.

    `size_specific`, `copy`: as of `views`, for the copies behind the trained ones. Raises ValueError where the frozen array is of another
    model.
    """
    named = views(trained, architecture.trained_shapes, size_specific, copy)
    if not architecture.frozen_shapes:
        return named
    if frozen.numel() != sum(torch.Size(shape).numel() for shape in architecture.frozen_shapes.values()):
        raise ValueError(f"{frozen.numel()} frozen parameters, and this model has others")
    named |= views(frozen, architecture.frozen_shapes)
    return {name: named[name] for name in architecture.shapes}
