"""From the summaries of several strategies and seeds to the numbers of a comparison. Pure."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from raffm_ray.reports.seed_statistics import paired_difference, statistic

Summaries = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""strategy -> seed -> the content of its `summary.json`."""
MEASURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "full_model": lambda summary: summary["full_model"],
    "worst_device_type": lambda summary: summary["worst_device_type"]["metric"],
    "curve_area": lambda summary: summary["curve_area"],
    "bytes": lambda summary: summary["bytes_down"] + summary["bytes_up"],
    "simulated_seconds": lambda summary: summary["simulated_seconds"],
    "energy_joules": lambda summary: summary["energy_joules"],
    "flops": lambda summary: summary.get("flops"),
    "flops_a_client": lambda summary: _over_clients(summary, lambda one: one.get("flops")),
    "over_budget": lambda summary: (
        _over_clients(summary, lambda one: one["over_budget"] / max(1, one["client_rounds"]))
        if all("over_budget" in one for one in summary["device_types"].values())
        else None
    ),
}
"""What is compared: name -> its value in a run's summary. `flops_a_client`: of a client's round; `over_budget`: in what share of them a
client was charged more than its device's budget."""
CLIENT_MEASURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "worst_tenth": lambda summary: _of_clients(summary, lambda own: own["worst_tenth"]),
    "device_type_gap": lambda summary: _of_clients(summary, lambda own: own["device_type_gap"]["gap"]),
}
"""What is compared of clients on their own held-out examples, each with its own subnetwork, and its own parameters where it keeps some: name -> its value in a run's summary."""


def _of_clients(summary: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float]) -> float | None:
    """None where no clients were measured."""
    found = summary.get("client_metrics") or {}
    own = found.get("personal") or found.get("own")
    return value(own) if own else None


def measures_of_clients(summaries: Iterable[Mapping[str, Any]]) -> Mapping[str, Callable[[Mapping[str, Any]], float | None]]:
    """`CLIENT_MEASURES`, none where no run measured clients."""
    return CLIENT_MEASURES if any(one.get("client_metrics") for one in summaries) else {}


def clients_are_measured(content: Mapping[str, Any]) -> bool:
    """Whether a comparison has values of `CLIENT_MEASURES`."""
    return any(one.get("worst_tenth", {}).get("mean") is not None for one in content["strategies"].values())


def _over_clients(summary: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    """A device type's value, on average over all rounds of clients; None where the run's records lack it."""
    pairs: list[tuple[float | None, int]] = [
        (value(one), one["client_rounds"]) for one in summary["device_types"].values() if one["client_rounds"]
    ]
    if not pairs or any(one is None for one, _ in pairs):
        return None
    return sum((one or 0.0) * count for one, count in pairs) / sum(count for _, count in pairs)


def comparison_content(summaries: Summaries) -> dict[str, Any]:
    """The content of `comparison.json`. All runs have the same metric and device types."""
    runs = next(iter(summaries.values()))
    first = next(iter(runs.values()))
    strategies = {}
    for name, by_seed in summaries.items():
        own = list(by_seed.values())
        strategies[name] = {
            "rounds": own[0]["rounds"],
            "strategy": own[0]["strategy"],
            "salience": own[0].get("salience"),
            **{
                measure: statistic([value(summary) for summary in own])
                for measure, value in {**MEASURES, **CLIENT_MEASURES}.items()
            },
            "device_types": {
                device: statistic([summary["device_types"][device]["metric"] for summary in own])
                for device in first["device_types"]
            },
            "rejected_updates": sum(summary["rejected_updates"] for summary in own),
            "curves": [summary["curve"] for summary in own],
        }
    return {
        "name": first["name"],
        "metric": first["metric"],
        "rounds": first["rounds"],
        "clients": first["clients"],
        "params": first["params"],
        "seeds": list(dict.fromkeys(seed for by_seed in summaries.values() for seed in by_seed)),
        "held_out_examples": first.get("held_out_examples"),
        "start": statistic([summary["start"] for summary in runs.values()]),
        "strategies": strategies,
        "differences": differences(summaries),
        "hints": {name: [one.get("hints", []) for one in by_seed.values()] for name, by_seed in summaries.items()},
    }


def differences(summaries: Summaries) -> dict[str, dict[str, Any]]:
    """By other strategy and measure, the first strategy's value less that one's: `paired_difference` over the seeds that both have."""
    (_, own), *others = summaries.items()
    found: dict[str, dict[str, Any]] = {}
    for name, by_seed in others:
        shared = [seed for seed in own if seed in by_seed]
        if shared:
            found[name] = {
                measure: paired_difference(
                    *([float(MEASURES[measure](one[seed]) or 0.0) for seed in shared] for one in (own, by_seed))
                )
                for measure in ("full_model", "worst_device_type")
            }
    return found


def rows_of_runs(summaries: Summaries) -> str:
    """`comparison.csv`: a row a run, numbers in full."""
    text = io.StringIO()
    device_types = list(next(iter(next(iter(summaries.values())).values()))["device_types"])
    writer = csv.writer(text, lineterminator="\n")
    measures = {**MEASURES, **measures_of_clients([one for by_seed in summaries.values() for one in by_seed.values()])}
    writer.writerow(["strategy", "seed", "rounds", "start", *measures, *device_types, "params_sha256"])
    for name, by_seed in summaries.items():
        for seed, summary in by_seed.items():
            measured = [value(summary) for value in measures.values()]
            own = [summary["device_types"][device]["metric"] for device in device_types]
            row = [name, seed, summary["rounds"], summary["start"], *measured, *own, summary["params_sha256"]]
            writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()
