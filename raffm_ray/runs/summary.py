"""Computes the rows of the records and the content of `summary.json`. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import pyarrow as pa

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.machine import peak_rss_bytes
from raffm_ray.clients.messages import Report, Update
from raffm_ray.data.metrics import worst_name
from raffm_ray.runs.reader import FORMER_KEYS
from raffm_ray.runs.recorder import parameters_sha256
from raffm_ray.runs.rounds.client_totals import ClientTotals, DeviceTotals
from raffm_ray.runs.rounds.rows import ClientRow, RoundRow
from raffm_ray.server.clock import Visit
from raffm_ray.server.round_schedule import peak_memory_bytes
from raffm_ray.server.state import Round, ServerState, Setup
from raffm_ray.server.workload import flops_per_example


@dataclass(frozen=True)
class Evaluation:
    """The metric and loss of the full model, and the metric of every device type's subnetwork, on the held-out part.

    `validation`: what `evaluation.watch` names, on the validation part; `validation_metric`, `validation_device_type_metrics`: the same two on it.
    None and nothing where there is none. `clients`: a table of `client_metrics.request.SCHEMA`, None where no clients are measured.
    """

    metric: float
    loss: float
    device_type_metrics: dict[str, float]
    device_type_plans: dict[str, Plan]
    validation: float | None = None
    validation_metric: float | None = None
    validation_device_type_metrics: dict[str, float] = field(default_factory=dict)
    clients: pa.Table | None = None


def client_row(setup: Setup, work: Round, visit: Visit, report: Report) -> ClientRow:
    """What a client's round cost its simulated device. `report`: what came back, or of those who did not train the planned one."""
    job, cost = visit.job, visit.cost
    costs = setup.costs(Plan() if job.plan is None else work.context.plans[job.plan])
    peak, flops = peak_memory_bytes(setup, work.context, job), flops_per_example(setup, work.context, visit.report)
    charged = replace(costs, training_flops=ceil(flops), memory_bytes=peak)
    return ClientRow(
        round=work.context.round,
        client=job.client,
        device=setup.device_types[job.client],
        outcome=visit.outcome,
        examples=report.examples,
        steps=report.steps,
        loss=report.loss,
        accepted=not report.refused,
        refused=report.refused,
        statistics_refused=report.statistics_refused,
        params=costs.params,
        bytes_down=cost.bytes_down,
        bytes_up=cost.bytes_up,
        peak_memory_bytes=peak,
        training_flops=cost.flops,
        round_seconds=cost.seconds,
        energy_joules=cost.energy_joules,
        seconds=report.seconds,
        flops_per_example=flops,
        over_budget="; ".join(setup.budgets[setup.device_types[job.client]].exceeded(charged)),
        frozen_bytes_down=cost.frozen_bytes_down,
    )


def round_row(
    setup: Setup,
    work: Round | None,
    rows: Sequence[ClientRow],
    measured: Evaluation | None,
    ranked: bool,
    phases: Mapping[str, float],
) -> RoundRow:
    """One round in the records. `phases`: all of its real seconds."""
    outcomes = [row.outcome for row in rows]
    losses = [(row.loss, row.examples) for row in rows if row.loss == row.loss]
    weight = sum(examples for _, examples in losses)
    return RoundRow(
        round=work.context.round if work else 0,
        drawn=len(work.chosen) if work else 0,
        selected=len(rows),
        arrived=outcomes.count("used"),
        late=outcomes.count("late") + outcomes.count("stale"),
        dropped=outcomes.count("dropped"),
        refused=sum(not row.accepted for row in rows),
        learning_rate=work.context.learning_rate if work else 0.0,
        train_loss=sum(loss * examples for loss, examples in losses) / weight if weight else None,
        metric=measured.metric if measured else None,
        loss=measured.loss if measured else None,
        validation=measured.validation if measured else None,
        device_type_metrics=measured.device_type_metrics if measured else {},
        device_type_params={name: setup.costs(plan).params for name, plan in measured.device_type_plans.items()}
        if measured
        else {},
        bytes_down=sum(row.bytes_down for row in rows),
        bytes_up=sum(row.bytes_up for row in rows),
        round_seconds=work.seconds if work else 0.0,
        simulated_seconds=work.start_seconds + work.seconds if work else 0.0,
        energy_joules=sum(row.energy_joules for row in rows),
        ranked=ranked,
        wall_seconds=sum(phases.values()),
        phase_seconds=dict(phases),
        flops=sum(row.training_flops for row in rows),
        peak_memory_bytes=max([row.peak_memory_bytes for row in rows], default=0),
        validation_metric=measured.validation_metric if measured else None,
        validation_device_type_metrics=measured.validation_device_type_metrics if measured else {},
        frozen_bytes_down=sum(row.frozen_bytes_down for row in rows),
    )


def client_rows(setup: Setup, work: Round | None, updates: Sequence[Update]) -> list[ClientRow]:
    """The rows of all clients of a round, in client order; none where there was no work."""
    if work is None:
        return []
    reports = {report.client: report for update in updates for report in update.reports}
    return [client_row(setup, work, visit, reports.get(visit.job.client, visit.report)) for visit in work.visits]


def recorded_evaluation(row: RoundRow, plans: Mapping[str, Plan]) -> Evaluation:
    """The evaluation of a round that has one, from its row and its device types' plans."""
    assert row.metric is not None
    assert row.loss is not None
    return Evaluation(
        metric=row.metric,
        loss=row.loss,
        device_type_metrics=row.device_type_metrics,
        device_type_plans=dict(plans),
        validation=row.validation,
        validation_metric=row.validation_metric,
        validation_device_type_metrics=row.validation_device_type_metrics,
    )


def _validated(metric: str, final: Evaluation) -> dict[str, Any] | None:
    """What choices may rest on: of the validation part; None where there is none."""
    if final.validation_metric is None:
        return None
    weakest = worst_name(metric, final.validation_device_type_metrics)
    worst_device_type = {"name": weakest, "metric": final.validation_device_type_metrics[weakest]}
    return {
        "full_model": final.validation_metric,
        "device_types": dict(final.validation_device_type_metrics),
        "worst_device_type": worst_device_type,
    }


def with_former_keys(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary with `global` and `tiers` besides: what others read since the first versions. This project reads the keys of `FORMER_KEYS`."""
    return {**summary, **{FORMER_KEYS[now]: summary[now] for now in ("full_model", "device_types")}}


def kept_bytes(setup: Setup) -> int:
    """Of the full model, what a device is sent once and keeps."""
    full = setup.costs(Plan())
    return full.bytes - full.bytes_up if setup.experiment.fleet.keeps_frozen else 0


def bytes_of_full_round(setup: Setup) -> int:
    """What a client would move in a round of full-size federated learning, besides `kept_bytes`."""
    full = setup.costs(Plan())
    return full.bytes + full.bytes_up - kept_bytes(setup)


def start_of(setup: Setup, metric: str, held_out: int) -> dict[str, Any]:
    """The content of `start.json`: what is said of a run that is not finished, and no record holds."""
    full = setup.costs(Plan())
    return {
        "metric": metric,
        "held_out_examples": held_out,
        "params": full.params,
        "bytes_of_full_round": bytes_of_full_round(setup),
    }


def summarize(
    setup: Setup,
    rounds: Sequence[RoundRow],
    clients: ClientTotals,
    final: Evaluation,
    state: ServerState,
    metric: str,
    held_out: int,
) -> dict[str, Any]:
    """The content of `summary.json`. A device type's bytes, seconds and joules are means over its clients' training rounds, those cut short
    included, and its FLOPs (see `ClientRow`); `over_budget`: in how many of them a budget was exceeded. What is wasted is of updates that were
    never used, also those still on their way.

    `rounds` begin with round 0, the start. In the result, `rounds`: how many were run; `best_round`: the best validated one, None without validation.
    """
    full = setup.costs(Plan())
    weakest = worst_name(metric, final.device_type_metrics)
    unused = [late.visit.cost for late in state.clock.late]
    device_types = {}
    for device, plan in final.device_type_plans.items():
        costs, did = setup.costs(plan), clients.device_types.get(device) or DeviceTotals()
        device_types[device] = {
            "clients": sum(one == device for one in setup.device_types),
            "client_rounds": did.client_rounds,
            "params": costs.params,
            "params_fraction": costs.params / full.params,
            "start": rounds[0].device_type_metrics[device],
            "metric": final.device_type_metrics[device],
            "bytes_down": did.mean("bytes_down", costs.bytes),
            "bytes_up": did.mean("bytes_up", costs.bytes_up),
            "peak_memory_bytes": costs.memory_bytes if did.peak_memory_bytes is None else did.peak_memory_bytes,
            "round_seconds": did.mean("round_seconds", None),
            "energy_joules": did.mean("energy_joules", None),
            "flops": did.mean("training_flops", None),
            "flops_per_example": did.mean("flops_per_example", None),
            "over_budget": did.over_budget,
        }
    summary: dict[str, Any] = {
        "name": setup.experiment.name,
        "strategy": setup.experiment.strategy.name,
        "salience": setup.experiment.salience.metric if setup.strategy.salience else None,
        "seed": setup.experiment.seed,
        "attention": setup.architecture.attention,
        "precision": setup.experiment.local.precision,
        "revisions": {"task": setup.experiment.task.revision, "model": setup.experiment.model.revision},
        "rounds": rounds[-1].round,
        "best_round": state.best.round if state.best else None,
        "clients": setup.experiment.clients.count,
        "held_out_examples": held_out,
        "metric": metric,
        "params": full.params,
        "residual_pace": state.pace,
        "mixture": None if state.mixture is None else dict(zip(setup.budgets, state.mixture.weights.tolist(), strict=True)),
        "start": rounds[0].metric,
        "full_model": final.metric,
        "device_types": device_types,
        "worst_device_type": {"name": weakest, "metric": final.device_type_metrics[weakest]},
        "validation": _validated(metric, final),
        "bytes_down": sum(row.bytes_down for row in rounds),
        "bytes_up": sum(row.bytes_up for row in rounds),
        "frozen_bytes_down": sum(row.frozen_bytes_down for row in rounds),
        "bytes_of_full_round": bytes_of_full_round(setup),
        "bytes_full_size": bytes_of_full_round(setup) * sum(row.drawn for row in rounds) + kept_bytes(setup) * len(clients.seen),
        "simulated_seconds": state.clock.seconds,
        "energy_joules": sum(row.energy_joules for row in rounds),
        "flops": sum(flops) if None not in (flops := [row.flops for row in rounds]) else None,
        "wasted_bytes": state.clock.wasted_bytes + sum(cost.bytes_down + cost.bytes_up for cost in unused),
        "wasted_joules": state.clock.wasted_joules + sum(cost.energy_joules for cost in unused),
        "clients_without_data": sum(count == 0 for count in setup.examples) - len(setup.unseen),
        "rejected_updates": clients.rejected,
        "round_wall_seconds": [row.wall_seconds for row in rounds if row.round > 0],
        "driver_peak_rss_bytes": peak_rss_bytes(),
        "params_sha256": parameters_sha256(state.parameters, setup.architecture, state.frozen_now),
    }
    return with_former_keys(summary)
