"""A long run of tiny rounds on Ray, and what grows in it: `make leaks`.

Every few rounds: memory, open files and threads of the driver, the actors, the raylet and the GCS; the object store; shared memory; how
many processes there are. Of each its growth a round, by least squares over the last three quarters, and that slope's standard error.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

MARK = "RAFFM_LEAKS"
os.environ |= {MARK: str(os.getpid()), "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from conftest import tiny_experiment  # noqa: E402  # what it imports reads the environment
from ray._private.internal_api import node_stats  # noqa: E402

from raffm_ray.runs.recorder import Recorder  # noqa: E402
from raffm_ray.runs.simulation import simulate  # noqa: E402
from raffm_ray.settings.experiment import Experiment  # noqa: E402

KINDS = {"driver": "", "actor": "ray::_Worker", "raylet": "raylet/raylet", "gcs": "gcs/gcs_server"}
"""What a process is, by a part of its title; the driver is this one."""


def experiment_of(rounds: int, every: int) -> Experiment:
    """Rounds of two blocks, one for each actor; evaluated, ranked and kept now and then."""
    return tiny_experiment(
        rounds=rounds,
        model={
            "config": {
                "model_type": "vit",
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 8,
                "image_size": 8,
                "patch_size": 8,
                "num_channels": 1,
            },
            "pretrain": {"epochs": 1},
        },
        clients={"count": 12, "per_round": 2},
        extraction={"steps": {"ffn": 1, "heads": 1}, "floors": {}},
        fleet={"budgets": {}},
        local={"steps": 1, "batch_size": 4},
        evaluation={"every": every, "sizes": 1},
        salience={"every": every, "until": 1.0, "clients": 1, "examples": 8},
        checkpoint={"every": every},
        pool={"backend": "ray", "workers": 2, "block_clients": 1},
    )


def processes() -> dict[int, str]:
    """This program and what it started: numbers and titles."""
    found = {os.getpid(): ""}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if int(place.name) != os.getpid() and f"{MARK}={os.environ[MARK]}".encode() in (place / "environ").read_bytes():
                found[int(place.name)] = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
    return found


def _kilobytes(file: Path, name: str) -> int:
    return next(1024 * int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{name}:"))


def sample() -> dict[str, float]:
    """What there is now, summed over the processes of a kind."""
    gc.collect()
    found, values = processes(), defaultdict[str, float](float)
    for kind, title in KINDS.items():
        for number, told in found.items():
            place = Path("/proc") / str(number)
            if (number == os.getpid()) if kind == "driver" else title in told.split("\0")[0]:
                values[f"{kind} resident bytes"] += _kilobytes(place / "status", "VmRSS")
                values[f"{kind} anonymous bytes"] += _kilobytes(place / "status", "RssAnon")
                values[f"{kind} shared memory bytes"] += _kilobytes(place / "status", "RssShmem")
                values[f"{kind} open files"] += len(list((place / "fd").iterdir()))
                values[f"{kind} threads"] += len(list((place / "task").iterdir()))
    node = ray.nodes()[0]
    store = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats
    values["object store bytes"] = store.object_store_bytes_used
    values["object store objects"] = store.num_local_objects
    values["shared memory folder bytes"] = sum(file.stat().st_blocks * 512 for file in Path("/dev/shm").iterdir())
    values["processes"] = len(found)
    return dict(values)


def record_bytes(value: Any) -> int:
    """What a row or a value in one takes, without texts and small numbers, which rows share."""
    if is_dataclass(value):
        return sys.getsizeof(value) + sum(8 + record_bytes(getattr(value, one.name)) for one in fields(value))
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(map(record_bytes, value.values()))
    return sys.getsizeof(value) if isinstance(value, float) or (isinstance(value, int) and value > 256) else 0


def slope(rounds: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Growth a round by least squares over the last three quarters, and its standard error."""
    first = len(rounds) // 4
    at, seen = np.array(rounds[first:], dtype=float), np.array(values[first:], dtype=float)
    centred = at - at.mean()
    growth = float(centred @ seen / (centred @ centred))
    left = seen - seen.mean() - growth * centred
    return growth, float(np.sqrt(left @ left / max(1, len(at) - 2) / (centred @ centred)))


def measured(rounds: int, every: int, folder: Path) -> tuple[list[int], list[Mapping[str, float]]]:
    """A run, and what there was after every so many of its rounds."""
    at, samples, real, kept = list[int](), list[Mapping[str, float]](), Recorder.complete, 0

    def noted(recorder: Recorder, row: Any, clients: Any, *others: Any) -> None:
        nonlocal kept
        real(recorder, row, clients, *others)
        kept += sum(map(record_bytes, [row, *clients]))
        if row.round % every == 0:
            at.append(row.round)
            samples.append({"driver records bytes": kept} | sample())

    Recorder.complete = noted  # type: ignore[method-assign]  # put back below
    try:
        simulate(experiment_of(rounds, 10 * every), folder)
    finally:
        Recorder.complete = real  # type: ignore[method-assign]  # what it was
    return at, samples


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--every", type=int, default=20, help="rounds between samples")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAFFM_CACHE"] = f"{folder}/cache"
        at, samples = measured(given.rounds, given.every, Path(folder) / "run")
    print(f"{'':30} {'first':>13} {'a quarter on':>13} {'last':>13} {'a round':>10} {'+-':>8}")
    for name in samples[0]:
        values = [one[name] for one in samples]
        growth, error = slope(at, values)
        print(f"{name:30} {values[0]:13,.0f} {values[len(values) // 4]:13,.0f} {values[-1]:13,.0f} {growth:10,.1f} {error:8,.1f}")
    print(f"{given.rounds} rounds in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
