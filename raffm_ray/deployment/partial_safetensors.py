"""Reads tensors from the beginning of a safetensors file. The safetensors library reads whole files only.

The format (github.com/huggingface/safetensors, "Format"): 8 bytes that say how long the header is, the header as JSON, then the tensors.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DTYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F64": np.float64, "I64": np.int64}
LONGEST_HEADER = 100_000_000
"""Bytes, as in the library."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file. `start`: its first byte."""

    dtype: type[np.generic]
    shape: tuple[int, ...]
    start: int


def places(path: Path) -> dict[str, Place]:
    """Where every tensor of a file lies. Raises ValueError for what is no such file, or one that its header does not describe."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= LONGEST_HEADER:
            raise ValueError("no header of a safetensors file")
        header = json.loads(file.read(length))
    found = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, stop) = DTYPES[told["dtype"]], tuple(map(int, told["shape"])), told["data_offsets"]
        if start < 0 or min(shape, default=0) < 0 or stop - start != prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"the header gives {name} other bytes than its shape takes")
        found[name] = Place(dtype, shape, 8 + length + int(start))
    return found


def read(path: Path, place: Place, count: int | None = None) -> Tensor:
    """A tensor, or its first `count` entries in a row. Raises EOFError where the file ends before them."""
    wanted = prod(place.shape) if count is None else count
    there, needed = path.stat().st_size, place.start + wanted * np.dtype(place.dtype).itemsize
    if there < needed:
        raise EOFError(f"it ends after {there:,} bytes, and {needed:,} are needed")
    values = np.fromfile(path, place.dtype, wanted, offset=place.start)
    return torch.from_numpy(values if count is not None else values.reshape(place.shape))
