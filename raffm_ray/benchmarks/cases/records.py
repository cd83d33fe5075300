"""Records of very many rounds: how long they take to write, to go on from and to read, and what a run keeps of them in memory."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raffm_ray.basics.machine import resident_bytes
from raffm_ray.basics.seeding import generator
from raffm_ray.benchmarks.measurement import Bench, Row
from raffm_ray.benchmarks.synthetic_data import vit
from raffm_ray.benchmarks.warm_processes import in_fresh_process
from raffm_ray.runs.reader import START, read_so_far
from raffm_ray.runs.recorder import Recorder, write_json
from raffm_ray.runs.resuming import experiment_digest, opened
from raffm_ray.runs.rounds.rows import ClientRow, RoundRow, schema_of
from raffm_ray.server.state import new_state
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import parse

ROUNDS, CLIENTS = 10_000, 1_000
DEVICES = ("raspberry_pi", "phone", "laptop", "workstation")
WARM = 20
"""Rounds before memory is looked at for the first time."""
RESUME_SECONDS, KEPT_MEGABYTES = 10.0, 50.0
"""The most that reading may take before a run goes on, on 2 cores, and that a run may keep of its records."""


def client_rows(number: int, clients: int) -> list[ClientRow]:
    """A round of as many clients of a fleet a hundred times as large."""
    rng = generator(0, "records", number)
    chosen = np.sort(rng.choice(100 * clients, clients, replace=False)).tolist()
    drawn = rng.random((4, clients)).tolist()
    return [
        ClientRow(
            round=number,
            client=client,
            device=DEVICES[client % len(DEVICES)],
            outcome="used",
            examples=20,
            steps=5,
            loss=loss,
            accepted=True,
            refused="",
            params=10_000,
            bytes_down=40_000,
            bytes_up=40_000,
            peak_memory_bytes=10_000_000,
            training_flops=1e9 * seconds,
            round_seconds=seconds,
            energy_joules=joules,
            seconds=real,
        )
        for client, loss, seconds, joules, real in zip(chosen, *drawn, strict=True)
    ]


def round_row(number: int, clients: int) -> RoundRow:
    """A round that is evaluated."""
    metrics = dict.fromkeys(DEVICES, 0.5 + number / 1e6)
    return RoundRow(
        round=number,
        drawn=clients,
        selected=clients,
        arrived=clients,
        late=0,
        dropped=0,
        refused=0,
        learning_rate=0.1,
        train_loss=1.0,
        metric=0.5,
        loss=1.0,
        validation=None,
        device_type_metrics=metrics,
        device_type_params=dict.fromkeys(DEVICES, 10_000),
        bytes_down=40_000 * clients,
        bytes_up=40_000 * clients,
        round_seconds=1.0,
        simulated_seconds=float(number),
        energy_joules=1.0,
        ranked=False,
        wall_seconds=1.0,
        phase_seconds={"train": 0.9 + number / 1e6, "other": 0.1},
    )


class Measured(NamedTuple):
    """Seconds, bytes that the process grew by, and bytes of all files. `plain_*`: without this project."""

    written: float
    plain_written: float
    resumed: float
    reported: float
    plain_read: float
    grown_bytes: int
    file_bytes: int


def _experiment(rounds: int) -> Experiment:
    return parse(
        {
            "name": "records",
            "rounds": rounds,
            "model": {"config": vit(8, 1, 1)},
            "strategy": {"name": "full"},
            "checkpoint": {"every": min(50, rounds // 4)},
        }
    )


def _seconds(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def _plain(rows: list[ClientRow], path: Path) -> None:
    schema = schema_of(ClientRow)
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    pq.write_table(pa.Table.from_pydict(columns, schema=schema), path)


def measure(rounds: int, clients: int) -> Measured:
    """Records so many rounds of so many clients, goes on after them, and reads them."""
    with TemporaryDirectory() as place:
        folder, experiment, warm = Path(place) / "run", _experiment(rounds), 0
        recorder = Recorder(folder, experiment)
        recorder.made_from({"config.yaml": experiment_digest(experiment)})
        write_json(
            folder / START, {"metric": "accuracy", "held_out_examples": 1, "params": 10_000, "bytes_of_full_round": 80_000}
        )
        written, plain, tries = 0.0, 0.0, max(1, rounds // 100)
        for number in range(rounds):
            row, rows, state = round_row(number, clients), client_rows(number, clients), new_state(torch.zeros(10))
            written += _seconds(partial(recorder.complete, row, rows, replace(state, round=number)))
            if number < tries:
                plain += _seconds(partial(_plain, rows, Path(place) / "plain.parquet"))
            if number == WARM:
                warm = resident_bytes()
        written += _seconds(recorder.writing.wait)
        grown = resident_bytes() - warm
        files = [path for part in ("rounds", "clients") for path in (folder / part).iterdir()]
        read = _seconds(lambda: [(sha256(path.read_bytes()), pq.read_table(path)) for path in files])
        return Measured(
            written=written,
            plain_written=plain / tries * rounds,
            resumed=_seconds(lambda: opened(folder, experiment, lambda _: None)),
            reported=_seconds(lambda: read_so_far(folder)),
            plain_read=read,
            grown_bytes=grown,
            file_bytes=sum(path.stat().st_size for path in files),
        )


def records(bench: Bench) -> list[Row]:
    """What 10,000 rounds of 1,000 clients take; the limit writes the clients' rows with pyarrow alone, and reads all files and their
    digests. Once: it takes minutes."""
    rounds, clients = (40, 10) if bench.quick else (ROUNDS, CLIENTS)
    found = measure(rounds, clients) if bench.quick else in_fresh_process(measure, rounds, clients)
    details = {"rounds": rounds, "clients": clients}
    a_round = 1000 / rounds
    return [
        Row("written, a round", "ms", (a_round * found.written,), (a_round * found.plain_written,), details=details),
        Row("before it goes on", "s", (found.resumed,), (found.plain_read,), RESUME_SECONDS, "ours", details=details),
        Row("read for a report", "s", (found.reported,), (found.plain_read,), details=details),
        Row(
            "kept in memory",
            "MB",
            (found.grown_bytes / 1e6,),
            (found.file_bytes / 1e6,),
            KEPT_MEGABYTES,
            "ours",
            details=details,
        ),
    ]
