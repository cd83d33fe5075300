"""Writes a run's folder: Parquet rounds and clients, the final model and `summary.json`."""

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import atomic_folder, check_path, sync, write_atomically
from raffm_ray.basics.registry import TABLES
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.freezing import named_parameters
from raffm_ray.runs import checkpoint
from raffm_ray.runs.checkpoint import Checkpoint
from raffm_ray.runs.client_states.store import ClientStates
from raffm_ray.runs.reader import SUMMARY, how_to_resume
from raffm_ray.runs.records import packing
from raffm_ray.runs.records.record_files import chained, record_name, remove_packed
from raffm_ray.runs.records.record_tables import tables
from raffm_ray.runs.rounds.client_totals import ClientTotals
from raffm_ray.runs.rounds.rows import ClientRow, RoundRow, schema_of
from raffm_ray.runs.writing.background import Background
from raffm_ray.server.early_stopping import last_common_round
from raffm_ray.server.state import ServerState
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import dump


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
    return record_name("rounds", number), record_name("clients", number)


def digest_of(before: str, contents: Sequence[bytes]) -> str:
    """Digest of all records up to a round, from that of the rounds before ("" for none) and the content of its own files."""
    return chained(before, [sha256(content).hexdigest() for content in contents])


def _parquet(kind: type, rows: Sequence[Any]) -> bytes:
    schema = schema_of(kind)
    return _written(pa.Table.from_pydict({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema))


def _written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def _has_plugins() -> bool:
    return any(one.module for table in TABLES.values() for one in table.entries.values())


@dataclass(frozen=True)
class Past:
    """What a run goes on from: a checkpoint, None to begin again, and the rounds and what clients did up to it."""

    checkpoint: Checkpoint | None
    rounds: Sequence[RoundRow] = ()
    clients: ClientTotals | None = None


class Recorder:
    """Writes a run's folder as it goes, from its beginning, or after its `past`. It keeps a row for each round, and sums over the clients.

    `state`: of the server after the last round recorded, None before the first; `writing`: where a checkpoint is written while the next
    round trains. Raises UserError when the folder of a new run is taken,
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
        self.rounds, self.clients = list(past.rounds if past else ()), (past and past.clients) or ClientTotals()
        self.state = kept.state if kept else None
        self.origin = dict(kept.origin) if kept else {}
        self._digest, self._unsynced = kept.records if kept else "", set[Path]()
        self.client_states = ClientStates(folder, self._unsynced)
        self.writing, self._last_checkpoint, self._packed = Background(), -1, 0

    def made_from(self, origin: Mapping[str, str]) -> None:
        """Adds digests of what the run is made from. Raises UserError as `check_origin`."""
        check_origin(self.folder, self.origin, origin)
        self.origin |= origin

    def complete(
        self, row: RoundRow, clients: Sequence[ClientRow], state: ServerState, evaluations: pa.Table | None = None
    ) -> None:
        """Records a round, and begins to write `state`, the server's after it: no checkpoint ever speaks of records that are not on the
        disk. Raises UserError where one of the two cannot be written, or the checkpoint before could not."""
        try:
            self.add(row, clients, evaluations)
        except OSError as error:
            raise self._unwritten(row.round, error) from None
        every, self.state = self.experiment.checkpoint.every, state
        if every and row.round % every == 0:
            self.writing.wait()
            self._prune(row.round)
            # Nothing of a state is written into by what is built in; what a plug-in is given it may write into.
            kept = deepcopy(state) if _has_plugins() else state
            self._begin_checkpoint(Checkpoint(kept.with_frozen(torch.empty(0)), dict(self.origin), self._digest))
        else:
            self._prune(self._last_checkpoint)

    def _begin_checkpoint(self, kept: Checkpoint) -> None:
        number, unsynced = kept.state.round, set(self._unsynced)
        keep = self.experiment.checkpoint.keep + (number > last_common_round(self.experiment))

        def write() -> None:
            try:
                checkpoint.write(self.folder / "checkpoints", kept, keep, unsynced)
                self._pack(checkpoint.oldest(self.folder / "checkpoints"))
            except OSError as error:
                raise self._unwritten(number, error) from None

        self.writing.start(write)
        self._unsynced.clear()

    def _pack(self, upto: int) -> None:
        """Makes one file of many records that no checkpoint goes back before, once there are enough of them."""
        if (upto + 1) // packing.ROUNDS > self._packed:
            packing.pack(self.folder, upto)
            self._packed = (upto + 1) // packing.ROUNDS

    def _unwritten(self, number: int, error: OSError) -> UserError:
        return UserError(f"{self.folder}: round {number} cannot be written: {error.strerror}")

    def _prune(self, begun: int) -> None:
        """Removes what clients kept that no checkpoint needs: `begun` is the round of one that is, or will be, written."""
        self._last_checkpoint = begun
        try:
            self.client_states.prune([*checkpoint.rounds(self.folder / "checkpoints"), begun])
        except OSError as error:
            raise self._unwritten(begun, error) from None

    def add(self, row: RoundRow, clients: Sequence[ClientRow], evaluations: pa.Table | None = None) -> None:
        """Records one round: one Parquet file each, of measured clients where there are any. They are not kept here."""
        if row.round == 0:  # it begins, or begins again
            remove_packed(self.folder)
        self.rounds.append(row)
        self.clients.add(clients)
        contents, names = [_parquet(RoundRow, [row]), _parquet(ClientRow, clients)], list(record_names(row.round))
        measured = self.folder / record_name("evaluations", row.round)
        if evaluations is not None:
            measured.parent.mkdir(exist_ok=True)
            contents.append(_written(evaluations))
            names.append(record_name("evaluations", row.round))
        elif measured.exists():  # of a shorter run, whose last round it was
            measured.unlink()
        for name, content in zip(names, contents, strict=True):
            write_atomically(self.folder / name, content)
            self._unsynced |= {self.folder / name, (self.folder / name).parent}
        self._digest = digest_of(self._digest, contents)

    def evaluations(self, number: int) -> pa.Table | None:
        """What is recorded of the clients that were measured after a round; None where none were."""
        found = list(tables(self.folder, "evaluations", after=number - 1, upto=number))
        return pa.concat_tables(found) if found else None

    def finish(
        self,
        summary: Mapping[str, Any],
        state: ServerState,
        architecture: Architecture,
        tokenizer: Any = None,
        copies: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes the final model (a plain transformers checkpoint, its tokenizer beside it), what its subnetworks are cut by, `copies` of
        parameters that sizes have of their own, and the summary. Raises UserError where the last checkpoint could not be written."""
        self.writing.wait()
        with atomic_folder(self.folder / "checkpoints" / "final", self._unsynced) as final:
            save_file(
                {
                    name: values.float().clone()
                    for name, values in named_parameters(state.parameters, state.frozen_now, architecture).items()
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
        self.client_states.prune(checkpoint.rounds(self.folder / "checkpoints"))


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes JSON so that a reader never sees half of it, and it is on the disk."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
    sync([path, path.parent])
