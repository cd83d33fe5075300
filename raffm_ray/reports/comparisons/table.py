"""The tables of a comparison: on a terminal, in Markdown, and what a page has. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raffm_ray.basics.formatting import counted, human_bytes, human_flops, human_joules, human_seconds
from raffm_ray.basics.tables import WordTable
from raffm_ray.data.metrics import unit
from raffm_ray.reports.comparisons.content import clients_are_measured
from raffm_ray.reports.comparisons.sentences import notes, with_error


def _metric_headings(content: Mapping[str, Any]) -> dict[str, str]:
    """Measure -> its heading; those of clients only where some were measured."""
    return METRIC_HEADINGS | (CLIENT_HEADINGS if clients_are_measured(content) else {})


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
