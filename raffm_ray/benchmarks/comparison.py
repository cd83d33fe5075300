"""Two results of the speed suite beside each other: what became slower."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.files import check_path, read_whole
from raffm_ray.basics.formatting import standard_output
from raffm_ray.basics.tables import WordTable

NOTICED = 1.1
"""From which ratio on a change is told, if the repetitions of the two do not overlap either."""


class Compared(NamedTuple):
    """A row that both results have. `first`, `second`: medians of ours, in `unit`; `own`: the second over the first; `beside_limit`: the same
    of the ratios to the limits, which were measured on the same machine at the same time; `verdict`: `slower`, `faster` or nothing."""

    case: str
    what: str
    unit: str
    first: float
    second: float
    own: float
    beside_limit: float
    verdict: str


def read_result(place: str) -> Mapping[str, Any]:
    """What is in a file that the suite wrote, or in that of its folder. Raises UserError for what is none."""
    check_path(path := Path(place))
    path = path / "bench.json" if path.is_dir() else path
    try:
        content = json.loads(read_whole(path))
        for case in content["cases"].values():
            for row in case["rows"]:
                if not len(row["ours"]) == len(row["limit"]) > 0 or not {"what", "unit", "at_least", "judged"} <= set(row):
                    raise ValueError("a row is not whole")
        return dict(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"bench compare: {place}: not a result of raffm-ray bench: {in_short(error)}") from None


def _values(row: Mapping[str, Any]) -> list[float]:
    """By repetition what is compared, less is better: ours beside the limit, or ours alone where the row is about that."""
    values = (
        row["ours"] if row["judged"] == "ours" else [ours / limit for ours, limit in zip(row["ours"], row["limit"], strict=True)]
    )
    return [1 / value for value in values] if row["at_least"] else list(values)


def _verdict(first: list[float], second: list[float]) -> str:
    low, high = (np.percentile(values, [25, 75]) for values in (first, second))
    if median(second) > NOTICED * median(first) and high[0] > low[1]:
        return "slower"
    return "faster" if median(first) > NOTICED * median(second) and low[0] > high[1] else ""


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Compared]:
    """The rows that both have, in the order of the first."""
    for name, case in first["cases"].items():
        others = {row["what"]: row for row in second["cases"].get(name, {"rows": []})["rows"]}
        for row in case["rows"]:
            if (other := others.get(row["what"])) is not None:
                here, there = median(row["ours"]), median(other["ours"])
                ratios = [median(np.divide(one["ours"], one["limit"]).tolist()) for one in (row, other)]
                yield Compared(
                    case=name,
                    what=row["what"],
                    unit=row["unit"],
                    first=here,
                    second=there,
                    own=there / here,
                    beside_limit=ratios[1] / ratios[0],
                    verdict=_verdict(_values(row), _values(other)),
                )


def table_of(rows: list[Compared], names: tuple[str, str]) -> Table:
    """A line a row."""
    table = WordTable(title=f"{names[1]} beside {names[0]}", box=SIMPLE_HEAD)
    table.add_column("case", no_wrap=True)
    table.add_column("")
    for heading in ("first", "second", "second / first", "beside the limits", ""):
        table.add_column(heading, justify="right")
    for row in rows:
        color = {"slower": "[red]slower[/]"}.get(row.verdict, row.verdict)
        told = [f"{value:.3g} {row.unit}" for value in (row.first, row.second)]
        table.add_row(row.case, row.what, *told, f"{row.own:.2f}", f"{row.beside_limit:.2f}", color)
    table.caption = (
        "medians; beside the limits: the same of the ratios to the limits of each result, which hold on a machine that is otherwise "
        f"busy; slower, faster: by {NOTICED - 1:.0%} or more, and the quartiles do not overlap"
    )
    return table


def compare(first: str, second: str) -> int:
    """Prints the ratios of two results. Raises UserError as `read_result`, and where they have no row in common."""
    one, other = read_result(first), read_result(second)
    if not (rows := list(compared(one, other))):
        raise UserError(f"bench compare: {first} and {second} have no case in common")
    console = standard_output()
    console.print(table_of(rows, (first, second)))
    machines = [content.get("machine", {}).get("processor") for content in (one, other)]
    if machines[0] != machines[1]:
        console.print(f"note: they are of two machines: {machines[0]}, {machines[1]}", highlight=False)
    if one.get("quick") or other.get("quick"):
        console.print("note: of a shortened suite the numbers mean nothing", highlight=False)
    return 0
