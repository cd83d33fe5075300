"""Writes a run's folder: Parquet rounds and clients, the final model and `summary.json`."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import atomic_folder, check_path, sync, write_atomically
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.freezing import named_parameters
from raffm_ray.runs import checkpoint
from raffm_ray.runs.checkpoint import Checkpoint
from raffm_ray.runs.client_states.store import ClientStates
from raffm_ray.runs.reader import SUMMARY, evaluations_name, how_to_resume, read_table
from raffm_ray.server.early_stopping import last_common_round
from raffm_ray.server.state import ServerState
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import dump


@dataclass(frozen=True)
class ClientRow:
    """One client in one round. `seconds` is real time here; `round_seconds` and `energy_joules` are the simulated device's.

    `outcome`: one of `clock.OUTCOMES`. Bytes, FLOPs, seconds and joules of who dropped out or was stopped are those up to that moment;
    `steps` are what it was to do, and it has no loss: its training is not run. `refused`: why its update was not `accepted`, else "";
    `statistics_refused`: why its statistics were not used.
    `training_flops`: of all its work, calibration too; `flops_per_example`: of training alone, on average over its steps, prefixes
    included. It and `peak_memory_bytes` are of the whole work. `frozen_bytes_down`: of `bytes_down`, those of parameters that nobody trains. `over_budget`: in what that is more than the device type is allowed,
    "" where it is not.
    """

    round: int
    client: int
    device: str
    outcome: str
    examples: int
    steps: int
    loss: float
    accepted: bool
    refused: str
    params: int
    bytes_down: int
    bytes_up: int
    peak_memory_bytes: int
    training_flops: float
    round_seconds: float
    energy_joules: float
    seconds: float
    flops_per_example: float | None = None
    over_budget: str | None = None
    statistics_refused: str = ""
    frozen_bytes_down: int = 0


@dataclass(frozen=True)
class RoundRow:
    """One round. Round 0 is before training: the first calibration and the start's evaluation. Metrics are None between evaluations.

    Of `drawn` clients `selected` were sent work (a strategy may let some rest), of whom `arrived` were back before the round's end, `late`
    after it, and `dropped` never; of what they sent `refused` was not used because it was bad.
    `round_seconds`: how long it took; `simulated_seconds`: virtual time at its end. Bytes and joules include what was in vain.
    `validation`: what `evaluation.watch` names, on the validation part, None where there is none; `validation_metric`,
    `validation_device_type_metrics`: the full model's and every device type's metric there.
    `flops`: of all clients' work; `peak_memory_bytes`: the most that one of them needed.
    `wall_seconds`: real, since the round before was recorded; `phase_seconds`: what they went into, see profiling.py.
    """

    round: int
    drawn: int
    selected: int
    arrived: int
    late: int
    dropped: int
    refused: int
    learning_rate: float
    train_loss: float | None
    metric: float | None
    loss: float | None
    validation: float | None
    device_type_metrics: dict[str, float]
    device_type_params: dict[str, int]
    bytes_down: int
    bytes_up: int
    round_seconds: float
    simulated_seconds: float
    energy_joules: float
    ranked: bool
    wall_seconds: float
    phase_seconds: dict[str, float]
    flops: float | None = None
    peak_memory_bytes: int | None = None
    validation_metric: float | None = None
    validation_device_type_metrics: dict[str, float] = field(default_factory=dict)
    frozen_bytes_down: int = 0


ARROW: dict[Any, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    str: pa.string(),
    float | None: pa.float64(),
    int | None: pa.int64(),
    str | None: pa.string(),
    dict[str, float]: pa.map_(pa.string(), pa.float64()),
    dict[str, int]: pa.map_(pa.string(), pa.int64()),
}
"""How a field of a row is stored, by its annotation."""


def schema_of(row: type) -> pa.Schema:
    """The Parquet schema of a kind of row."""
    return pa.schema([(name, ARROW[hint]) for name, hint in get_type_hints(row).items()])


def check_output(folder: Path) -> None:
    """Raises UserError when the folder holds something already (nothing is ever overwritten; hidden files do not count: a lock, or what
    was being written), or cannot be made."""
    check_path(folder)
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
        raise UserError(f"--out {folder}: exists and is not an empty folder; nothing is overwritten{how_to_resume(folder)}")
    nearest = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"--out {folder}: {nearest} is not a folder that can be written to")


def check_origin(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises UserError where a digest of what a run is made from, by name, is another one now than before."""
    for name in sorted(set(before) & set(now)):
        if before[name] != now[name]:
            raise UserError(f"{folder}: {name} is not what it was when the run began; it can only go on with that")


def parameters_sha256(flat: Tensor, architecture: Architecture, frozen: Tensor | None = None) -> str:
    """Digest of all parameters, in the order of their names, and of what is behind them. `flat`: all, or without the `frozen` ones."""
    digest, shapes = sha256(), architecture.shapes if frozen is None else architecture.trained_shapes
    named = views(flat, shapes) if frozen is None else named_parameters(flat, frozen, architecture)
    for name, values in sorted(named.items()):
        digest.update(name.encode())
        digest.update(values.float().contiguous().numpy().tobytes())
    digest.update(flat[sum(map(prod, shapes.values())) :].contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_names(number: int) -> tuple[str, str]:
    """Where in a run's folder a round is recorded: its own row, and its clients'."""
    return f"rounds/round-{number:06d}.parquet", f"clients/round-{number:06d}.parquet"


def digest_of(before: str, contents: Sequence[bytes]) -> str:
    """Digest of all records up to a round, from that of the rounds before ("" for none) and the content of its own files."""
    return sha256("".join([before, *(sha256(content).hexdigest() for content in contents)]).encode()).hexdigest()


def _parquet(kind: type, rows: Sequence[Any]) -> bytes:
    return _written(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema_of(kind)))


def _written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class Past:
    """What a run goes on from: a checkpoint, None to begin again, and the rows up to it."""

    checkpoint: Checkpoint | None
    rounds: Sequence[RoundRow] = ()
    clients: Sequence[ClientRow] = ()


class Recorder:
    """Writes a run's folder as it goes, from its beginning, or after its `past`.

    `state`: of the server after the last round recorded, None before the first. Raises UserError when the folder of a new run is taken,
    or cannot be made.
    """

    def __init__(self, folder: Path, experiment: Experiment, past: Past | None = None) -> None:
        self.folder, self.experiment = folder, experiment
        if past is None:
            check_output(folder)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / "config.yaml", dump(experiment).encode())
            except OSError as error:
                raise UserError(f"--out {folder}: cannot be made: {error.strerror}") from None
        try:
            for part in ("rounds", "clients", "checkpoints"):
                (folder / part).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder / part}: cannot be made: {error.strerror}") from None
        kept = past.checkpoint if past else None
        self.rounds, self.clients = list(past.rounds if past else ()), list(past.clients if past else ())
        self.state = kept.state if kept else None
        self.origin = dict(kept.origin) if kept else {}
        self._digest, self._unsynced = kept.records if kept else "", set[Path]()
        self.client_states = ClientStates(folder, self._unsynced)

    def made_from(self, origin: Mapping[str, str]) -> None:
        """Adds digests of what the run is made from. Raises UserError as `check_origin`."""
        check_origin(self.folder, self.origin, origin)
        self.origin |= origin

    def complete(
        self, row: RoundRow, clients: Sequence[ClientRow], state: ServerState, evaluations: pa.Table | None = None
    ) -> None:
        """Records a round, then `state`, the server's after it: no checkpoint ever speaks of records that are not on the disk."""
        try:
            self.add(row, clients, evaluations)
            every, self.state = self.experiment.checkpoint.every, state
            if every and row.round % every == 0:
                kept = Checkpoint(state.with_frozen(torch.empty(0)), self.origin, self._digest)
                keep = self.experiment.checkpoint.keep + (row.round > last_common_round(self.experiment))
                checkpoint.write(self.folder / "checkpoints", kept, keep, self._unsynced)
                self._unsynced.clear()
            self.client_states.prune(checkpoint.oldest(self.folder / "checkpoints") if every else row.round)
        except OSError as error:
            raise UserError(f"{self.folder}: round {row.round} cannot be written: {error.strerror}") from None

    def add(self, row: RoundRow, clients: Sequence[ClientRow], evaluations: pa.Table | None = None) -> None:
        """Records one round: one Parquet file each, of measured clients where there are any. They are not kept here."""
        self.rounds.append(row)
        self.clients.extend(clients)
        contents, names = [_parquet(RoundRow, [row]), _parquet(ClientRow, clients)], list(record_names(row.round))
        measured = self.folder / evaluations_name(row.round)
        if evaluations is not None:
            measured.parent.mkdir(exist_ok=True)
            contents.append(_written(evaluations))
            names.append(evaluations_name(row.round))
        elif measured.exists():  # of a shorter run, whose last round it was
            measured.unlink()
        for name, content in zip(names, contents, strict=True):
            write_atomically(self.folder / name, content)
            self._unsynced |= {self.folder / name, (self.folder / name).parent}
        self._digest = digest_of(self._digest, contents)

    def evaluations(self, number: int) -> pa.Table | None:
        """What is recorded of the clients that were measured after a round; None where none were."""
        path = self.folder / evaluations_name(number)
        return read_table(path) if path.is_file() else None

    def finish(
        self,
        summary: Mapping[str, Any],
        state: ServerState,
        architecture: Architecture,
        tokenizer: Any = None,
        copies: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes the final model (a plain transformers checkpoint, its tokenizer beside it), what its subnetworks are cut by, `copies` of
        parameters that sizes have of their own, and the summary."""
        with atomic_folder(self.folder / "checkpoints" / "final", self._unsynced) as final:
            save_file(
                {
                    name: values.float().clone()
                    for name, values in named_parameters(state.parameters, state.frozen, architecture).items()
                },
                final / "model.safetensors",
                {"format": "pt"},
            )
            if copies:
                save_file(dict(copies), final / "own.safetensors")
            architecture.config.save_pretrained(final)
            if tokenizer is not None:
                tokenizer.save_pretrained(final)
            ranking = {name: torch.from_numpy(score.copy()) for name, score in state.scores.items()}
            save_file({**ranking, **state.norms}, final / "salience.safetensors")
        write_json(self.folder / SUMMARY, summary)
        checkpoint.keep_one(self.folder / "checkpoints", last_common_round(self.experiment))


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes JSON so that a reader never sees half of it, and it is on the disk."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
    sync([path, path.parent])
