"""What pictures are drawn from, as CSV: a row a point, numbers in full."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from raffm_ray.basics.profiling import PHASES
from raffm_ray.data.label_skew.label_distribution import Indices, LabelDistribution
from raffm_ray.data.metrics import worst
from raffm_ray.reports.page import csv_text
from raffm_ray.reports.run_picture import Rounds, Runs, bytes_of_full_round, sizes_of
from raffm_ray.subnetworks.unit_coverage import Units

MOST_ROWS = 4000
"""Of data that a page holds; more are in a file beside it."""
SPENT: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], Sequence[float]]] = {
    "bytes_moved": lambda rows: list(accumulate(row["bytes_down"] + row["bytes_up"] for row in rows)),
    "simulated_seconds": lambda rows: [row["simulated_seconds"] for row in rows],
    "energy_joules": lambda rows: list(accumulate(row["energy_joules"] for row in rows)),
}
"""What a run has spent at the end of every round."""


def rounds_csv(runs: Rounds, metric: str) -> str:
    """The metric of evaluated rounds, and what was spent up to each."""
    rows = []
    for name, every in runs.items():
        spent = list(zip(*(values(every) for values in SPENT.values()), strict=True))
        for row, so_far in zip(every, spent, strict=True):
            if row["metric"] is not None:
                weakest = worst(metric, list(dict(row["device_type_metrics"]).values()))
                rows.append([name, row["round"], row["metric"], weakest, *so_far])
    return csv_text(["strategy", "round", f"{metric}_full_model", f"{metric}_worst_device_type", *SPENT], rows)


def sizes_csv(runs: Runs, metric: str) -> str:
    """The metric over sizes, of every strategy and before training."""
    first = next(iter(runs.values()))[1]
    rows = [
        ["before training", device_type["params_fraction"], device_type["start"], ""]
        for device_type in first["device_types"].values()
    ]
    for name, (_, summary) in runs.items():
        rows += [[name, one["params_fraction"], one["metric"], one["trained"]] for one in sizes_of(summary)]
    return csv_text(["strategy", "params_fraction", metric, "trained"], rows)


def moved_csv(summary: Mapping[str, Any]) -> str:
    """Bytes of a client's round by device type."""
    full_size = bytes_of_full_round(summary)
    rows = [
        [
            name,
            device_type["bytes_down"],
            device_type["bytes_up"],
            (device_type["bytes_down"] + device_type["bytes_up"]) / full_size,
        ]
        for name, device_type in summary["device_types"].items()
    ]
    return csv_text(["device_type", "bytes_down", "bytes_up", "fraction_of_full_size"], rows)


def shares_csv(label_distribution: LabelDistribution, devices: Mapping[str, Indices]) -> str | None:
    """Who owns how many examples of which class; None where there are more than `MOST_ROWS` rows."""
    if len(label_distribution.clients) > MOST_ROWS:
        return None
    device_of = {int(client): name for name, clients in devices.items() for client in clients}
    names = label_distribution.class_names
    rows = [
        [client, device_of.get(client, ""), names[label] if names else "", count]
        for client, label, count in zip(
            *(values.tolist() for values in (label_distribution.clients, label_distribution.labels, label_distribution.counts)),
            strict=True,
        )
    ]
    return csv_text(["client", "device_type", "class", "examples"], rows)


def units_csv(units: Sequence[Units]) -> str | None:
    """Which device type keeps which unit; None where there are more than `MOST_ROWS` units."""
    if sum(len(one.reached) for one in units) > MOST_ROWS:
        return None
    rows = [
        [one.axis, number, reached, *(int(kept[number]) for kept in one.kept.values())]
        for one in units
        for number, reached in enumerate(one.reached.tolist())
    ]
    return csv_text(["axis", "unit", "reached", *(f"kept_{name}" for name in units[0].kept)], rows)


def profile_csv(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Real seconds of every round by phase."""
    found = [(row["round"], dict(row.get("phase_seconds") or {})) for row in rounds]
    return csv_text(["round", *PHASES], [[number, *(phases.get(name) for name in PHASES)] for number, phases in found])
