"""From the summaries of several strategies and seeds to one comparison: means, standard errors, tables. Pure."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raffm_ray.basics.formatting import counted, human_bytes, human_flops, human_joules, human_seconds
from raffm_ray.basics.tables import WordTable
from raffm_ray.data.metrics import shown, unit
from raffm_ray.reports.seed_statistics import (
    CLIENT_MEASURES,
    CLIENT_NOTE,
    Statistic,
    error_of_share,
    measures_of_clients,
    paired_difference,
    statistic,
    told_difference,
    told_of_target,
    told_of_tuning,
)

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


def with_error(metric: str, value: Statistic) -> str:
    """`97.1 ± 0.3`; without the error where there is one seed, `-` where there is no value."""
    if value["mean"] is None:
        return "-"
    error = value["standard_error"]
    return shown(metric, value["mean"]) + ("" if error is None else f" ± {shown(metric, error)}")


def _metric_headings(content: Mapping[str, Any]) -> dict[str, str]:
    """Measure -> its heading; those of clients only where some were measured."""
    measured = any(one.get("worst_tenth", {}).get("mean") is not None for one in content["strategies"].values())
    return METRIC_HEADINGS | (CLIENT_HEADINGS if measured else {})


def _metrics(content: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    return [with_error(content["metric"], one[measure]) for measure in _metric_headings(content)]


def _costs(one: Mapping[str, Any]) -> list[str]:
    moved, seconds, joules, flops = (
        one[measure]["mean"] for measure in ("bytes", "simulated_seconds", "energy_joules", "flops_a_client")
    )
    over = one["over_budget"]["mean"]
    kept = "-" if over is None else "kept" if over == 0 else f"over {over:.0%}"
    return [human_flops(flops), human_bytes(moved), human_seconds(seconds), human_joules(joules), kept]


METRIC_HEADINGS = {"full_model": "full model", "worst_device_type": "worst device type", "curve_area": "mean over sizes"}
CLIENT_HEADINGS = {"worst_tenth": "worst tenth", "device_type_gap": "gap"}
COST_HEADINGS = ("FLOPs", "bytes", "time*", "energy*", "budgets")


def title(content: Mapping[str, Any]) -> str:
    """What was compared, in a line."""
    metric, seeds = content["metric"], content["seeds"]
    sign = " in %" if unit(metric) else ""
    return f"{content['name']}: {metric}{sign}, {counted(content['rounds'], 'round')}, {counted(content['clients'], 'client')}, {_seeds(seeds)}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


NOTES = (
    "mean ± standard error over seeds; mean over sizes: area under the curve from the smallest device type's size to the full model",
    "FLOPs: charged to a client in a round; bytes, time, energy: of the whole run; means over seeds; * simulated devices, estimated from data sheets",
    "budgets: in what share of clients' rounds more was charged than their devices allow",
)


def tables(content: Mapping[str, Any]) -> list[Table]:
    """Two tables for a terminal: the headline with costs, and the device types. Each fits 100 columns with five of them."""
    metric, strategies = content["metric"], content["strategies"]
    headline = WordTable(title=title(content), box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    device_types = WordTable(title="each device type's own subnetwork", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for table, headings in (
        (headline, (*_metric_headings(content).values(), *COST_HEADINGS)),
        (device_types, next(iter(strategies.values()))["device_types"]),
    ):
        table.add_column("strategy", no_wrap=True)
        for heading in headings:
            table.add_column(heading.replace("_", " "), justify="right")
    for name, one in strategies.items():
        headline.add_row(name, *_metrics(content, one), *_costs(one))
        device_types.add_row(name, *(with_error(metric, value) for value in one["device_types"].values()))
    return [headline, device_types]


def notes(content: Mapping[str, Any], differences: bool = True) -> list[str]:
    """What a reader of the tables has to know, a line each; with what seeds and held-out examples tell of `differences`."""
    refused = {name: one["rejected_updates"] for name, one in content["strategies"].items() if one["rejected_updates"]}
    told = [f"updates refused (clients' records say why): {', '.join(f'{name} {count}' for name, count in refused.items())}"]
    start = f"before training the full model has {with_error(content['metric'], content['start'])}"
    return [
        start,
        *(_told_of_seeds(content) if differences else []),
        *_told_of_the_paper(content),
        *NOTES,
        *([CLIENT_NOTE] if len(_metric_headings(content)) > len(METRIC_HEADINGS) else []),
        *_told_of_equals(content),
        *told_of_tuning(content),
        *told_of_target(content),
        *told_of_lacks(
            "charged FLOPs and budgets",
            [name for name, one in content["strategies"].items() if one["over_budget"]["mean"] is None],
        ),
        *(told if refused else []),
    ]


def _told_of_seeds(content: Mapping[str, Any]) -> list[str]:
    metric, first = content["metric"], next(iter(content["strategies"]))
    lines = [
        told_difference(metric, (first, name), what, one[measure])
        for name, one in content["differences"].items()
        for what, measure in (("full model", "full_model"), ("worst device type", "worst_device_type"))
    ]
    full, examples = content["strategies"][first]["full_model"]["mean"], content["held_out_examples"]
    error = None if full is None else error_of_share(metric, full, examples)
    if error is not None:
        lines.append(
            f"with {examples:,} held-out examples, {metric} of {shown(metric, full)} has a standard error of {shown(metric, error)}"
        )
    return lines


def _told_of_the_paper(content: Mapping[str, Any]) -> list[str]:
    """What of a strategy is RaFFM as its paper or its published code has it."""
    found = []
    for name, one in content["strategies"].items():
        if one["strategy"] == "raffm_reference":
            found.append(f"{name} is close to its published code")
        elif one["strategy"] == "raffm":
            salience = "with the paper's salience (l1)" if one["salience"] == "l1" else "not the paper's"
            found.append(f"{name} is this project's variant, {salience}")
    return [f"RaFFM (arXiv 2310.00247): {'; '.join(found)}"] if found else []


def _told_of_equals(content: Mapping[str, Any]) -> list[str]:
    """What was held equal, and how equal it came out."""
    equal = content.get("equal")
    if not equal:
        return []
    counts = ", ".join(f"{name} {one['rounds']}" for name, one in content["strategies"].items())
    line = f"equal {equal['resource']}: budgets in its unit; rounds: {counts}"
    measure = {"compute": "flops", "bytes": "bytes", "time": "simulated_seconds"}.get(equal["resource"])
    if equal["allowed"] and measure:
        allowed, strategies = equal["allowed"], content["strategies"].items()
        shares = [f"{name} {one[measure]['mean'] / allowed:.1%}" for name, one in strategies if one[measure]["mean"]]
        line += f"; charged of what is allowed: {', '.join(shares)}"
    return [line]


def told_of_lacks(what: str, runs: Sequence[str]) -> list[str]:
    """A line about what is not in the records of some runs; none where there are no such runs."""
    return [f"{what} are not in the records of {', '.join(runs)}: an earlier version made them"] if runs else []


def headings_and_rows(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Everything in one table."""
    metric, strategies = content["metric"], content["strategies"]
    device_types = [name.replace("_", " ") for name in next(iter(strategies.values()))["device_types"]]
    rows = []
    for name, one in strategies.items():
        full, *others = _metrics(content, one)
        rows.append([name, full, *(with_error(metric, value) for value in one["device_types"].values()), *others, *_costs(one)])
    first, *more = _metric_headings(content).values()
    return ["strategy", first, *device_types, *more, *COST_HEADINGS], rows


def orders(content: Mapping[str, Any], one: Mapping[str, Any]) -> list[float | None]:
    """The numbers that a strategy's cells of `headings_and_rows` are sorted by."""
    _, *metrics = _metric_headings(content)
    costs = ("flops_a_client", "bytes", "simulated_seconds", "energy_joules", "over_budget")
    values = [
        one["full_model"],
        *one["device_types"].values(),
        *(one[measure] for measure in (*metrics, *costs)),
    ]
    return [None, *(value["mean"] for value in values)]


def markdown(content: Mapping[str, Any]) -> str:
    """`headings_and_rows` in Markdown."""
    headings, rows = headings_and_rows(content)
    rule = ["---", *["---:"] * (len(headings) - 1)]
    lines = [f"# {title(content)}", "", *(f"| {' | '.join(row)} |" for row in [headings, rule, *rows]), ""]
    lines.append(" ".join(f"{note[:1].upper()}{note[1:]}." for note in notes(content)))
    return "\n".join(lines).replace("*", "\\*") + "\n"


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
