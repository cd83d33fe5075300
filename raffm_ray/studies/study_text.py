"""What is said of a study on a terminal: the table of its best trials, and what a reader has to know of it. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raffm_ray.basics.formatting import human_bytes, human_flops, human_joules, human_seconds, setting_text
from raffm_ray.basics.tables import WordTable
from raffm_ray.data.metrics import unit
from raffm_ray.reports.comparisons.sentences import with_error
from raffm_ray.reports.seed_statistics import Statistic
from raffm_ray.studies.trial import HELD_OUT

COSTS = {
    "bytes": human_bytes,
    "simulated_seconds": human_seconds,
    "energy_joules": human_joules,
    "flops": human_flops,
    "flops_a_client": human_flops,
    "over_budget": "{:.0%}".format,
}


def said(measure: str, metric: str, value: Statistic) -> str:
    """`full_model 93.1 ± 0.2%`, `bytes 12.3 MB`."""
    if measure not in COSTS:
        return f"{measure} {with_error(metric, value)}{unit(metric)}"
    return f"{measure} {COSTS[measure](value['mean'])}" if value["mean"] is not None else f"{measure} -"


def reasons_text(reasons: Iterable[str]) -> str:
    """Every reason once."""
    return "; ".join(dict.fromkeys(reasons))


def table(content: Mapping[str, Any]) -> Table:
    """The best trials, and those that came first because they were asked for, with their values and settings."""
    shown = [row for row in content["trials"] if row["number"] in content["front"]]
    first = next(iter(content["objectives"]))
    shown.sort(key=lambda row: row["values"][first], reverse=content["objectives"][first] == "maximize")
    shown += [row for row in content["trials"] if row["enqueued"] and row["values"] and row not in shown]
    title = f"{content['name']}: {'the front' if len(content['objectives']) > 1 else 'the best trial'}"
    result = WordTable(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    result.add_column("trial", justify="right", no_wrap=True)
    for measure in content["objectives"]:
        result.add_column(measure.replace("_", " "), justify="right", no_wrap=True)
    reported = [name for name in content["objectives"] if name in HELD_OUT]
    for measure in reported:
        result.add_column(f"{measure.replace('_', ' ')},\nheld out", justify="right", no_wrap=True)
    if len(content["objectives"]) > 1:
        result.add_column("file", no_wrap=True)
    result.add_column("settings", overflow="fold")
    for row in shown:
        marks = ("*" if row["number"] == content["best"] else "") + ("" if row["number"] in content["front"] else "°")
        cells = [said(name, content["metric"], row["measures"][name]).split(" ", 1)[1] for name in content["objectives"]]
        cells += [
            said(name, content["metric"], row["held_out"][name]).split(" ", 1)[1] if row["held_out"] else "" for name in reported
        ]
        settings = [f"{key}={setting_text(key, value)}" for key, value in row["settings"].items()]
        if len(content["objectives"]) > 1:
            cells.append(row["file"].removesuffix(".yaml"))
        result.add_row(f"{row['number']}{marks}", *cells, " ".join(settings))
    return result


def notes(content: Mapping[str, Any], marks: bool = True) -> list[str]:
    """What a reader of the table has to know, a line each; with what the `marks` in the table mean."""
    rows = content["trials"]
    ended = {state: [row for row in rows if row["state"] == state] for state in ("complete", "pruned", "failed")}
    counted = ", ".join(f"{len(some)} {state}" for state, some in ended.items() if some)
    missed = sum(row["state"] == "complete" and not row["feasible"] for row in rows)
    lines = [f"{len(rows)} trials: {counted}" + (f"; {missed} of them do not meet the constraints" if missed else "")]
    if ended["failed"]:
        lines.append(f"failed: {reasons_text(row['reason'] for row in ended['failed'])}")
    if content["best"] is None:
        lines.append(f"no finished trial meets every constraint ({', '.join(content['constraints'])})")
    elif marks:
        asked = any(row["enqueued"] and row["values"] and row["number"] not in content["front"] for row in rows)
        lines.append(f"* best: {content['rule']}" + "; ° came first because it was asked for, and is not on the front" * asked)
    lines += content.get("hints", [])
    lines.append("chosen on the validation part; the held-out part is measured for what is chosen, and decides nothing")
    if content["importances"]:
        lines.append("importance: " + ", ".join(f"{key} {100 * share:.0f}%" for key, share in content["importances"].items()))
    return lines
