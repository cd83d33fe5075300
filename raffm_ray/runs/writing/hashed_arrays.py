"""Arrays as a safetensors file that is hashed as it is written: its bytes are gone through once, and none of them are copied.

The format: the length of the header (8 bytes, little-endian), the header (JSON: name -> type, shape and place), then all arrays without
gaps, those of wider types first so that each begins at a multiple of its width (https://github.com/huggingface/safetensors).
"""

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"float": "F", "int": "I", "uint": "U"}
"""What the format calls a kind of number, before its bits; truth values are `BOOL`."""
CHUNK_BYTES = 1 << 22


def _type(values: NDArray[Any]) -> str:
    kind = values.dtype.name.rstrip("0123456789")
    return "BOOL" if kind == "bool" else f"{TYPES[kind]}{8 * values.itemsize}"


def _chunks(arrays: Mapping[str, NDArray[Any]]) -> Iterator[memoryview]:
    header, at = dict[str, Any](), 0
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    for name in names:
        values = arrays[name]
        header[name] = {"dtype": _type(values), "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in names:
        flat = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
        yield from (flat[start : start + CHUNK_BYTES].data for start in range(0, len(flat), CHUNK_BYTES))


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Writes arrays of numbers and truth values; returns the SHA-256 of the file. Raises KeyError for other types, and OSError."""
    digest = sha256()
    with path.open("wb") as file:
        for chunk in _chunks(arrays):
            file.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()
