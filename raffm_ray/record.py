"""What a run leaves on disk: Parquet rounds and clients, TensorBoard events, the final model and `summary.json`."""

import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from raffm_ray.architectures import Architecture
from raffm_ray.config import dump
from raffm_ray.errors import UserError
from raffm_ray.messages import views
from raffm_ray.settings import Experiment
from raffm_ray.state import ServerState


@dataclass(frozen=True)
class ClientRow:
    """One client in one round. `seconds` is real time here; `round_seconds` and `energy_joules` are the simulated device's.

    `outcome`: one of `clock.OUTCOMES`. Bytes, FLOPs, seconds and joules of who dropped out or was stopped are those up to that moment;
    `steps` are what it was to do, and it has no loss: its training is not run.
    """

    round: int
    client: int
    device: str
    outcome: str
    examples: int
    steps: int
    loss: float
    accepted: bool
    params: int
    bytes_down: int
    bytes_up: int
    peak_memory_bytes: int
    training_flops: float
    round_seconds: float
    energy_joules: float
    seconds: float


@dataclass(frozen=True)
class RoundRow:
    """One round. Round 0 is before training: the first calibration and the start's evaluation. Metrics are None between evaluations.

    Of `drawn` clients `selected` were sent work (a strategy may let some rest), of whom `arrived` were back before the round's end, `late` after it, and `dropped` never.
    `round_seconds`: how long it took; `simulated_seconds`: virtual time at its end. Bytes and joules include what was in vain.
    `validation`: what `evaluation.watch` names, on the validation part, None where there is none.
    `wall_seconds`: real, since the round before was recorded; `phase_seconds`: what they went into, see phases.py.
    """

    round: int
    drawn: int
    selected: int
    arrived: int
    late: int
    dropped: int
    learning_rate: float
    train_loss: float | None
    metric: float | None
    loss: float | None
    validation: float | None
    class_metrics: dict[str, float]
    class_params: dict[str, int]
    bytes_down: int
    bytes_up: int
    round_seconds: float
    simulated_seconds: float
    energy_joules: float
    ranked: bool
    wall_seconds: float
    phase_seconds: dict[str, float]


ARROW: dict[Any, pa.DataType] = {
    int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string(),
    float | None: pa.float64(), int | None: pa.int64(),
    dict[str, float]: pa.map_(pa.string(), pa.float64()), dict[str, int]: pa.map_(pa.string(), pa.int64()),
}  # fmt: skip
"""How a field of a row is stored, by its annotation."""


def schema_of(row: type) -> pa.Schema:
    """The Parquet schema of a kind of row."""
    return pa.schema([(name, ARROW[hint]) for name, hint in get_type_hints(row).items()])


def check_output(folder: Path) -> None:
    """Raises UserError when the folder holds something already (nothing is ever overwritten), or cannot be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: exists and is not an empty folder; nothing is overwritten")
    nearest = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"--out {folder}: {nearest} is not a folder that can be written to")


def parameters_sha256(flat: Tensor, architecture: Architecture) -> str:
    """Digest of all parameters, in the order of their names, and of what is behind them."""
    digest = sha256()
    for name, values in sorted(views(flat, architecture.shapes).items()):
        digest.update(name.encode())
        digest.update(values.contiguous().numpy().tobytes())
    digest.update(flat[sum(map(prod, architecture.shapes.values())) :].contiguous().numpy().tobytes())
    return digest.hexdigest()


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


class Recorder:
    """Writes a run's folder as it goes. Raises UserError when the folder is taken or cannot be made."""

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        check_output(folder)
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "config.yaml").open("x", encoding="utf-8") as file:  # fails where another run was faster
                file.write(dump(experiment))
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be made: {error.strerror}") from None
        for part in ("rounds", "clients", "checkpoints"):
            (folder / part).mkdir()
        self.rounds: list[RoundRow] = []
        self.clients: list[ClientRow] = []
        self._events = SummaryWriter(str(folder / "tensorboard"))

    def add(self, row: RoundRow, clients: Sequence[ClientRow]) -> None:
        """Records one round: one Parquet file each, and TensorBoard scalars."""
        self.rounds.append(row)
        self.clients.extend(clients)
        name = f"round-{row.round:06d}.parquet"
        pq.write_table(pa.Table.from_pylist([asdict(row)], schema=schema_of(RoundRow)), self.folder / "rounds" / name)
        pq.write_table(
            pa.Table.from_pylist([asdict(one) for one in clients], schema=schema_of(ClientRow)), self.folder / "clients" / name
        )
        scalars = {"metric": row.metric, "loss": row.loss, "validation": row.validation, "train_loss": row.train_loss}
        scalars["bytes"] = row.bytes_down + row.bytes_up
        scalars["simulated_seconds"] = row.simulated_seconds
        scalars |= {f"class_metric/{device}": value for device, value in row.class_metrics.items()}
        for tag, value in scalars.items():
            if value is not None:
                self._events.add_scalar(tag, value, row.round)

    def finish(
        self, summary: Mapping[str, Any], state: ServerState, architecture: Architecture, tokenizer: Any = None,
        copies: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Writes the final model (a plain transformers checkpoint, its tokenizer beside it), what its subnetworks are cut by, `copies` of
        parameters that sizes have of their own, and the summary."""
        final = self.folder / "checkpoints" / "final"
        final.mkdir()
        save_file(
            {name: values.clone() for name, values in views(state.parameters, architecture.shapes).items()},
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
        self._events.close()
        write_json(self.folder / "summary.json", summary)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON through a temporary name, so that a reader never sees half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """A run's round records, in order. Raises UserError when there are none or one is damaged."""
    files = sorted((folder / "rounds").glob("*.parquet"))
    if not files:
        raise UserError(f"{folder}: no finished run here (rounds/ holds no records)")
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            rows += pq.ParquetFile(file).read().to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: damaged or not a record of a round: {str(error).splitlines()[0]}") from None
    return rows


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary. Raises UserError when it is missing or unreadable."""
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{folder}: no finished run here (summary.json is missing)")
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(summary, dict) or not {"name", "strategy", "tiers", "global", "bytes_full_size"} <= set(summary):
        raise UserError(f"{path}: not the summary of a run")
    return summary
