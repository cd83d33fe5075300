"""From what happened to what is recorded: rows of clients and rounds, and the summary. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raffm_ray.axes import Plan
from raffm_ray.devices import DEVICES
from raffm_ray.messages import Job, Report, Update
from raffm_ray.metrics import worst_name
from raffm_ray.record import ClientRow, RoundRow, parameters_sha256, peak_rss_bytes
from raffm_ray.server import training_flops
from raffm_ray.state import Round, ServerState, Setup

STATISTIC_BYTES = 8
"""Statistics travel as float64: their sums must not depend on how clients are grouped."""


@dataclass(frozen=True)
class Evaluation:
    """The metric and loss of the full model, and the metric of every class's subnetwork, on the held-out part."""

    metric: float
    loss: float
    class_metrics: dict[str, float]
    class_plans: dict[str, Plan]


def client_row(setup: Setup, work: Round, job: Job, report: Report) -> ClientRow:
    """What a client's round cost its simulated device."""
    device = DEVICES[setup.classes[job.client]]
    costs = setup.costs(Plan() if job.plan is None else work.package.plans[job.plan])
    up = (0 if job.plan is None else costs.bytes) + STATISTIC_BYTES * report.statistics_values
    flops = training_flops(setup, work, report)
    computing = device.compute_seconds(flops)
    return ClientRow(
        round=work.package.round, client=job.client, device=device.name, examples=report.examples, steps=report.steps,
        loss=report.loss, accepted=report.accepted, params=costs.params, bytes_down=costs.bytes, bytes_up=up,
        peak_memory_bytes=costs.memory_bytes, training_flops=flops, round_seconds=computing + device.transfer_seconds(costs.bytes + up),
        energy_joules=device.energy_joules(computing), seconds=report.seconds,
    )  # fmt: skip


def round_row(
    setup: Setup,
    work: Round | None,
    rows: Sequence[ClientRow],
    number: int,
    measured: Evaluation | None,
    ranked: bool,
    wall: float,
) -> RoundRow:
    """One round in the records; its simulated time is its slowest client's."""
    losses = [(row.loss, row.examples) for row in rows if row.loss == row.loss]
    weight = sum(examples for _, examples in losses)
    return RoundRow(
        round=number, clients=len(rows), learning_rate=work.package.learning_rate if work else 0.0,
        train_loss=sum(loss * examples for loss, examples in losses) / weight if weight else None,
        metric=measured.metric if measured else None, loss=measured.loss if measured else None,
        class_metrics=measured.class_metrics if measured else {},
        class_params={name: setup.costs(plan).params for name, plan in measured.class_plans.items()} if measured else {},
        bytes_down=sum(row.bytes_down for row in rows), bytes_up=sum(row.bytes_up for row in rows),
        round_seconds=max((row.round_seconds for row in rows), default=0.0), energy_joules=sum(row.energy_joules for row in rows),
        ranked=ranked, wall_seconds=wall,
    )  # fmt: skip


def client_rows(setup: Setup, work: Round | None, updates: Sequence[Update]) -> list[ClientRow]:
    """The rows of all clients of a round, in client order; none where there was no work."""
    if work is None:
        return []
    reports = [report for update in updates for report in update.reports]
    return [client_row(setup, work, job, report) for job, report in zip(work.jobs, reports, strict=True)]


def summarize(
    setup: Setup,
    rounds: Sequence[RoundRow],
    clients: Sequence[ClientRow],
    start: Evaluation,
    final: Evaluation,
    state: ServerState,
    name: str,
    metric: str,
) -> dict[str, Any]:
    """The content of `summary.json`. A class's bytes, seconds and joules are means over its clients' training rounds."""
    full = setup.costs(Plan())
    weakest = worst_name(metric, final.class_metrics)
    trained = [row for row in clients if row.round > 0]
    tiers = {}
    for device, plan in final.class_plans.items():
        rows = [row for row in trained if row.device == device]
        costs = setup.costs(plan)

        def mean(field: str, otherwise: float | None, rows: list[ClientRow] = rows) -> float | None:
            return sum(getattr(row, field) for row in rows) / len(rows) if rows else otherwise

        tiers[device] = {
            "clients": sum(one == device for one in setup.classes),
            "client_rounds": len(rows),
            "params": costs.params,
            "params_fraction": costs.params / full.params,
            "start": start.class_metrics[device],
            "metric": final.class_metrics[device],
            "bytes_down": mean("bytes_down", costs.bytes),
            "bytes_up": mean("bytes_up", costs.bytes),
            "peak_memory_bytes": max([row.peak_memory_bytes for row in rows], default=costs.memory_bytes),
            "round_seconds": mean("round_seconds", None),
            "energy_joules": mean("energy_joules", None),
        }
    return {
        "name": name,
        "strategy": setup.experiment.strategy.name,
        "seed": setup.experiment.seed,
        "rounds": setup.experiment.rounds,
        "clients": setup.experiment.clients.count,
        "metric": metric,
        "params": full.params,
        "start": start.metric,
        "global": final.metric,
        "tiers": tiers,
        "worst_class": {"name": weakest, "metric": final.class_metrics[weakest]},
        "bytes_down": sum(row.bytes_down for row in rounds),
        "bytes_up": sum(row.bytes_up for row in rounds),
        "bytes_full_size": 2 * full.bytes * len(trained),
        "simulated_seconds": sum(row.round_seconds for row in rounds),
        "energy_joules": sum(row.energy_joules for row in rounds),
        "clients_without_data": sum(count == 0 for count in setup.examples),
        "rejected_updates": sum(not row.accepted for row in clients),
        "round_wall_seconds": [row.wall_seconds for row in rounds if row.round > 0],
        "driver_peak_rss_bytes": peak_rss_bytes(),
        "params_sha256": parameters_sha256(state.parameters, setup.architecture),
    }
