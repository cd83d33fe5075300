"""A run's rounds as metrics of Ray, which every node exports to Prometheus: told once a round, whatever the number of clients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

from raffm_ray.pool.worker_pool import Pool
from raffm_ray.runs.callbacks import Callback
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.settings.experiment import Experiment

COMMON = ("run", "strategy")
"""What every metric is labelled by."""


@dataclass(frozen=True)
class Exported:
    """A metric: its kind, what it is, the label of its parts ("" where it has none), and what a round adds to each, or sets it to."""

    kind: Literal["counter", "gauge"]
    what: str
    label: str
    values: Callable[[RoundRow], Mapping[str, float]]


EXPORTED: dict[str, Exported] = {
    "raffm_rounds": Exported(kind="counter", what="rounds that ended", label="", values=lambda row: {"": min(1, row.round)}),
    "raffm_round_seconds": Exported(
        kind="counter", what="real seconds of rounds", label="", values=lambda row: {"": row.wall_seconds}
    ),
    "raffm_phase_seconds": Exported(
        kind="counter", what="real seconds of rounds by phase", label="phase", values=lambda row: row.phase_seconds
    ),
    "raffm_clients": Exported(
        kind="counter",
        what="clients by what became of their round",
        label="outcome",
        values=lambda row: {"arrived": row.arrived, "late": row.late, "dropped": row.dropped},
    ),
    "raffm_bytes": Exported(
        kind="counter",
        what="bytes that simulated devices moved",
        label="direction",
        values=lambda row: {"down": row.bytes_down, "up": row.bytes_up},
    ),
    "raffm_refused_updates": Exported(
        kind="counter", what="clients' updates that were not used", label="", values=lambda row: {"": row.refused}
    ),
    "raffm_simulated_seconds": Exported(
        kind="gauge", what="virtual time at a round's end", label="", values=lambda row: {"": row.simulated_seconds}
    ),
    "raffm_train_loss": Exported(
        kind="gauge", what="mean loss of a round's clients", label="", values=lambda row: _known({"": row.train_loss})
    ),
    "raffm_metric": Exported(
        kind="gauge",
        what="the task's metric on the held-out part",
        label="model",
        values=lambda row: _known({"full model": row.metric, **row.device_type_metrics}),
    ),
}
"""Of every round. Ray puts `ray_` before the names, and `_total` behind those of counters."""
LOST_WORKERS = "raffm_lost_workers"
"""A counter of what the pool saw: actors that died or hung and were replaced."""


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def exporting(experiment: Experiment, pool: Pool) -> Callback:
    """Exports every round's metrics. Ray must be running in this process."""
    common = dict(zip(COMMON, (experiment.name, experiment.strategy.name), strict=True))
    made = {name: _made(name, one) for name, one in EXPORTED.items()}
    lost = Counter(LOST_WORKERS, description="actors that died or hung and were replaced", tag_keys=COMMON)
    told = 0

    def export(row: RoundRow) -> None:
        nonlocal told
        for name, one in EXPORTED.items():
            for part, value in one.values(row).items():
                _tell(made[name], value, common | ({one.label: part} if one.label else {}))
        _tell(lost, pool.lost_workers - told, common)
        told = pool.lost_workers

    return Callback(round=export)


def _made(name: str, one: Exported) -> Any:
    keys = COMMON + ((one.label,) if one.label else ())
    return {"counter": Counter, "gauge": Gauge}[one.kind](name, description=one.what, tag_keys=keys)


def _tell(metric: Any, value: float, labels: dict[str, str]) -> None:
    if isinstance(metric, Counter):
        if value > 0:  # Ray refuses to add nothing
            metric.inc(value, labels)
    else:
        metric.set(value, labels)
