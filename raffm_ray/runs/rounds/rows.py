"""The rows of a run's records: one of a client in a round, one of a round, and how they are stored."""

from dataclasses import dataclass, field
from typing import Any, get_type_hints

import pyarrow as pa


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
    `aggregation_error`: of merged adapters, None where it is not measured. `flops`: of all clients' work; `peak_memory_bytes`: the most that one of them needed.
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
    aggregation_error: float | None = None


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
