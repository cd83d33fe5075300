"""From the summaries of several strategies and seeds to one comparison: means, standard errors, tables. Pure."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from raffm_ray.basics.formatting import human_bytes, human_joules, human_seconds
from raffm_ray.data.metrics import shown, unit
from raffm_ray.server.strategies import STRATEGIES

Summaries = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""strategy -> seed -> the content of its `summary.json`."""
Statistic = Mapping[str, Any]
"""{mean, standard_error, values}."""

MEASURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "full": lambda summary: summary["global"],
    "worst_class": lambda summary: summary["worst_class"]["metric"],
    "curve_area": lambda summary: summary["curve_area"],
    "bytes": lambda summary: summary["bytes_down"] + summary["bytes_up"],
    "simulated_seconds": lambda summary: summary["simulated_seconds"],
    "energy_joules": lambda summary: summary["energy_joules"],
}
"""What is compared: name -> its value in a run's summary."""


def statistic(values: Sequence[float | None]) -> Statistic:
    """Mean and standard error of the mean, s / sqrt(n) with s over n - 1, of one value a seed.

    Both are None where a run has no value; the standard error also with a single seed.
    """
    known = [value for value in values if value is not None]
    whole = bool(known) and len(known) == len(values)
    error = float(np.std(known, ddof=1) / np.sqrt(len(known))) if whole and len(known) > 1 else None
    return {"mean": float(np.mean(known)) if whole else None, "standard_error": error, "values": list(values)}


def comparison_content(summaries: Summaries) -> dict[str, Any]:
    """The content of `comparison.json`. All runs have the same metric and device classes."""
    runs = next(iter(summaries.values()))
    first = next(iter(runs.values()))
    strategies = {}
    for name, by_seed in summaries.items():
        own = list(by_seed.values())
        strategies[name] = {
            "within_budgets": _budgeted(own[0]),
            **{measure: statistic([value(summary) for summary in own]) for measure, value in MEASURES.items()},
            "classes": {device: statistic([summary["tiers"][device]["metric"] for summary in own]) for device in first["tiers"]},
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
        "start": statistic([summary["start"] for summary in runs.values()]),
        "strategies": strategies,
    }


def _budgeted(summary: Mapping[str, Any]) -> bool:
    """Whether a run's strategy keeps to its devices' budgets."""
    return STRATEGIES[summary["strategy"]].budgeted


def progress(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[float | None]]:
    """{round, mean, standard_error} of the full model's metric over a strategy's seeds, of the rounds that all evaluated.

    `runs`: the records of rounds of every seed.
    """
    by_round = [{row["round"]: row["metric"] for row in rows if row["metric"] is not None} for rows in runs]
    shared = [number for number in by_round[0] if all(number in one for one in by_round)]
    found = [statistic([one[number] for one in by_round]) for number in shared]
    return {
        "round": list(shared),
        "mean": [one["mean"] for one in found],
        "standard_error": [one["standard_error"] for one in found],
    }


def with_error(metric: str, value: Statistic) -> str:
    """`97.1 ± 0.3`; without the error where there is one seed, `-` where there is no value."""
    if value["mean"] is None:
        return "-"
    error = value["standard_error"]
    return shown(metric, value["mean"]) + ("" if error is None else f" ± {shown(metric, error)}")


def _metrics(metric: str, one: Mapping[str, Any]) -> list[str]:
    return [with_error(metric, one[measure]) for measure in ("full", "worst_class", "curve_area")]


def _costs(one: Mapping[str, Any]) -> list[str]:
    moved, seconds, joules = (one[measure]["mean"] for measure in ("bytes", "simulated_seconds", "energy_joules"))
    return [human_bytes(moved), human_seconds(seconds), human_joules(joules), "kept" if one["within_budgets"] else "no budget"]


METRIC_HEADINGS = ("full model", "worst class", "mean over sizes")
COST_HEADINGS = ("bytes", "time*", "energy*", "budgets")


def title(content: Mapping[str, Any]) -> str:
    """What was compared, in a line."""
    metric, seeds = content["metric"], content["seeds"]
    sign = " in %" if unit(metric) else ""
    return f"{content['name']}: {metric}{sign}, {content['rounds']} rounds, {content['clients']} clients, {_seeds(seeds)}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


NOTES = (
    "mean ± standard error over seeds; mean over sizes: area under the curve from the smallest class's size to the full model",
    "bytes, time, energy: of the whole run, mean over seeds; * simulated devices, estimated from data sheets",
    "no budget: trains plans that its devices' budgets do not allow",
)


def tables(content: Mapping[str, Any]) -> list[Table]:
    """Two tables for a terminal: the headline with costs, and the classes. Each fits 100 columns with five classes."""
    metric, strategies = content["metric"], content["strategies"]
    headline = Table(title=title(content), box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    classes = Table(title="each class's own subnetwork", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for table, headings in (
        (headline, (*METRIC_HEADINGS, *COST_HEADINGS)),
        (classes, next(iter(strategies.values()))["classes"]),
    ):
        table.add_column("strategy", no_wrap=True)
        for heading in headings:
            table.add_column(heading.replace("_", " "), justify="right")
    for name, one in strategies.items():
        headline.add_row(name, *_metrics(metric, one), *_costs(one))
        classes.add_row(name, *(with_error(metric, value) for value in one["classes"].values()))
    return [headline, classes]


def notes(content: Mapping[str, Any]) -> list[str]:
    """What a reader of the tables has to know, a line each."""
    refused = {name: one["rejected_updates"] for name, one in content["strategies"].items() if one["rejected_updates"]}
    told = [f"updates refused (clients' records say why): {', '.join(f'{name} {count}' for name, count in refused.items())}"]
    start = f"before training the full model has {with_error(content['metric'], content['start'])}"
    return [start, *NOTES, *(told if refused else [])]


def headings_and_rows(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Everything in one table."""
    metric, strategies = content["metric"], content["strategies"]
    classes = [name.replace("_", " ") for name in next(iter(strategies.values()))["classes"]]
    rows = []
    for name, one in strategies.items():
        full, *others = _metrics(metric, one)
        rows.append([name, full, *(with_error(metric, value) for value in one["classes"].values()), *others, *_costs(one)])
    return ["strategy", METRIC_HEADINGS[0], *classes, *METRIC_HEADINGS[1:], *COST_HEADINGS], rows


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
    classes = list(next(iter(next(iter(summaries.values())).values()))["tiers"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["strategy", "seed", "within_budgets", "start", *MEASURES, *classes, "params_sha256"])
    for name, by_seed in summaries.items():
        for seed, summary in by_seed.items():
            measured = [value(summary) for value in MEASURES.values()]
            own = [summary["tiers"][device]["metric"] for device in classes]
            row = [name, seed, _budgeted(summary), summary["start"], *measured, *own, summary["params_sha256"]]
            writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()
