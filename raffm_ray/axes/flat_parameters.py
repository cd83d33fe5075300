"""All parameters as one flat float32 array, in the model's order: how they are sent, summed and averaged."""

import warnings
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


Flat = NDArray[np.float32]
NOTHING: Flat = np.empty(0, dtype=np.float32)
"""Of a model of which nothing is frozen: its frozen parameters."""


def is_same(one: Flat, other: Flat) -> bool:
    """Whether two arrays, both alive, are the same memory."""
    return (one.ctypes.data, len(one)) == (other.ctypes.data, len(other))


def as_tensor(flat: Flat) -> Tensor:
    """The same memory as a tensor. It may be shared memory that torch could write to although it is read-only: nobody may."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(flat)


def views(flat: Tensor, shapes: Shapes, size_specific: Sequence[str] = (), copy: int = 0) -> dict[str, Tensor]:
    """The flat array as named parameters that share its memory.

    Behind the parameters there may be copies of the `size_specific` ones, one after the other: with `copy` k > 0, these are the k-th copy's.
    """
    sizes = [prod(shape) for shape in shapes.values()]
    named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), flat[: sum(sizes)].split(sizes), strict=True)}
    if not copy:
        return named
    each = {name: shapes[name] for name in size_specific}
    return named | views(flat[sum(sizes) + (copy - 1) * sum(map(prod, each.values())) :], each)


def flatten(parameters: Mapping[str, Tensor], shapes: Shapes) -> Tensor:
    """Named parameters as one new float32 array."""
    flat = torch.empty(sum(map(prod, shapes.values())))
    for name, values in views(flat, shapes).items():  # one by one: what is converted is never there as a whole
        values.copy_(parameters[name].detach().view_as(values))
    return flat
