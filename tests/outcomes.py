"""What a run leaves, so that two can be compared."""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raffm_ray.runs.records.record_files import DIGESTS

REAL = ("wall_seconds", "phase_seconds", "seconds", "round_wall_seconds", "driver_peak_rss_bytes", "forecast")
"""What is measured of this machine, and may differ."""


def without_real(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_real(inner) for key, inner in value.items() if key not in REAL}
    return [without_real(inner) for inner in value] if isinstance(value, list) else value


def shown_by_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _by_round(file: Path) -> dict[str, Any]:
    """The rows of a file of records, by the name of the file that each round had before it was packed."""
    if "-to-" not in file.name:
        return {file.name: without_real(pq.read_table(file).to_pylist())}
    found: dict[str, Any] = {
        f"round-{int(number):06d}.parquet": [] for number in json.loads(pq.read_schema(file).metadata[DIGESTS])
    }
    for row in without_real(pq.read_table(file).to_pylist()):
        found[f"round-{row['round']:06d}.parquet"].append(row)
    return found


def outcome(folder: Path) -> dict[str, str]:
    """Everything that a run leaves, but for what is real time or memory, as text: NaN equals NaN. Which round its one checkpoint is of
    depends on how often there were some, and is left out."""
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    left: dict[str, Any] = {"checkpoints": sorted(name.split("-")[0] for name in names)}
    for part in ("rounds", "clients", *(["evaluations"] if (folder / "evaluations").is_dir() else [])):
        for file in (folder / part).iterdir():
            left |= {f"{part}/{name}": rows for name, rows in _by_round(file).items() if not file.name.startswith(".")}
    for path in (folder / "checkpoints" / "final").iterdir():
        left[path.name] = sha256(path.read_bytes()).hexdigest()
    states = sorted((folder / "states").glob("*/*.safetensors"))
    left |= {
        f"states/{path.name[:8]}": sha256(path.read_bytes()).hexdigest() + path.name for path in states
    }  # the newest of each
    left["shares"] = pq.read_table(folder / "shares.parquet").to_pylist()
    left["summary"] = without_real(json.loads((folder / "summary.json").read_text()))
    left["tensorboard"] = shown_by_tensorboard(folder)
    for other in (folder / "baselines").glob("*"):
        left[other.name] = outcome(other)
    return {name: repr(value) for name, value in sorted(left.items())}


def digest(value: Any) -> str:
    """Of a value made of dataclasses, mappings, sequences, arrays and plain values: equal exactly where all of them are, to the bit, whether
    or not parts of it are the same object."""
    found = sha256()

    def add(one: Any) -> None:
        if isinstance(one, torch.Tensor):
            one = one.numpy()
        if isinstance(one, np.ndarray):
            found.update(f"{one.dtype} {one.shape}".encode() + one.tobytes())
        elif is_dataclass(one):
            add([(field.name, getattr(one, field.name)) for field in fields(one)])
        elif isinstance(one, Mapping):
            add(sorted(one.items(), key=lambda item: repr(item[0])))
        elif isinstance(one, Set):
            add(sorted(one, key=repr))
        elif isinstance(one, Sequence) and not isinstance(one, str):
            found.update(f"[{len(one)}".encode())
            for part in one:
                add(part)
        else:
            found.update(f"{type(one).__name__} {one!r}".encode())

    add(value)
    return found.hexdigest()
