"""Checkpoints: written atomically, read only if their digests are right, never unpickled.

A checkpoint is a folder: the state's arrays (safetensors), everything else (JSON), and the SHA-256 of both, as `sha256sum -c` reads it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from shutil import rmtree

from safetensors import SafetensorError
from safetensors.torch import load

from raffm_ray.axes.serialization import pack, unpack
from raffm_ray.basics.files import atomic_folder, read_whole
from raffm_ray.basics.version import __version__
from raffm_ray.runs.writing.hashed_arrays import write_arrays
from raffm_ray.server.state import ServerState

SCHEMA = 1
"""Of the manifest; another one is not read."""
ARRAYS, MANIFEST, SUMS = "state.safetensors", "manifest.json", "SHA256SUMS"


@cache
def versions() -> dict[str, str]:
    """Of the libraries whose change may change bits."""
    return {"raffm_ray": __version__, **{name: version(name) for name in ("torch", "transformers", "numpy", "ray")}}


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round, and what belongs to it. `origin`: digests of what the run is made from, by name; `records`: digest of all
    records up to that round."""

    state: ServerState
    origin: Mapping[str, str]
    records: str
    versions: Mapping[str, str] = field(default_factory=versions)


class DamagedError(ValueError):
    """A checkpoint that is not what was written, or not of this version."""


def _places(folder: Path) -> list[Path]:
    """Of all checkpoints, the newest first."""
    found = [path for path in folder.glob("round-*") if path.name[6:].isdecimal()]
    return sorted(found, key=_number, reverse=True)


def _number(place: Path) -> int:
    return int(place.name[6:])


def write(folder: Path, checkpoint: Checkpoint, keep: int, unsynced: Iterable[Path] = ()) -> None:
    """Writes `folder`/round-<number>, after `unsynced` is on the disk, and removes all but the newest `keep`."""
    plain, arrays = pack(checkpoint)
    with atomic_folder(folder / f"round-{checkpoint.state.round:06d}", unsynced) as place:
        manifest = json.dumps({"schema": SCHEMA, **plain}, indent=1, allow_nan=False).encode()
        (place / MANIFEST).write_bytes(manifest)
        digests = {ARRAYS: write_arrays(place / ARRAYS, arrays), MANIFEST: sha256(manifest).hexdigest()}
        (place / SUMS).write_text(_sums(digests), encoding="utf-8")
    for old in _places(folder)[keep:]:
        rmtree(old)


def _sums(digests: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def read(place: Path) -> Checkpoint:
    """A checkpoint, equal to the bit to the one written. Raises DamagedError, before any of it is parsed where a digest is wrong."""
    try:
        contents = {name: read_whole(place / name) for name in (ARRAYS, MANIFEST)}
        sums = read_whole(place / SUMS)
    except OSError as error:
        raise DamagedError(f"{error.filename and Path(error.filename).name}: {error.strerror}") from None
    digests = {name: sha256(content).hexdigest() for name, content in contents.items()}
    if sums != _sums(digests).encode():
        raise DamagedError(f"its files are not those of its {SUMS}")
    try:
        plain = json.load(BytesIO(contents[MANIFEST]))
        if (schema := plain.pop("schema")) != SCHEMA:
            raise DamagedError(f"its schema is {schema}, and this version reads {SCHEMA}")
        checkpoint: Checkpoint = unpack(Checkpoint, plain, load(contents[ARRAYS]))
    except DamagedError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"not a state of this version: {' '.join(str(error).split())[:120]}") from None
    return checkpoint


def whole(folder: Path, tell: Callable[[str], None]) -> Iterator[Checkpoint]:
    """The checkpoints that can be read, the newest first; `tell` is given a line about each of the others on the way."""
    for place in _places(folder):
        try:
            yield read(place)
        except DamagedError as error:
            tell(f"{place}: damaged, the one before it is used: {error}")


def rounds(folder: Path) -> list[int]:
    """Of those that are there, the newest first."""
    return [_number(place) for place in _places(folder)]


def oldest(folder: Path) -> int:
    """The round of the oldest one that is there; -1 where none is."""
    return min(rounds(folder), default=-1)


def exist(folder: Path) -> bool:
    """Whether any was ever finished there and not removed, damaged or not."""
    return bool(_places(folder))


def remove(folder: Path, after: int = -1) -> None:
    """Removes all, or those after a round."""
    for place in _places(folder):
        if _number(place) > after:
            rmtree(place)


def keep_one(folder: Path, upto: int) -> None:
    """Removes all of a run that is finished but the newest up to a round, which a longer run can go on from."""
    places = _places(folder)
    kept = next((place for place in places if _number(place) <= upto), None)
    for place in places:
        if place != kept:
            rmtree(place)
