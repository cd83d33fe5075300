"""The table at the end of a run."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raffm_ray.basics.formatting import counted, human_bytes, human_joules, human_seconds
from raffm_ray.data.metrics import shown, unit


def extended(summary: Mapping[str, Any]) -> str:
    """`extended from 40 to 80 rounds`, of a run that was; otherwise nothing."""
    steps = summary.get("extensions") or []
    return (
        f"extended from {steps[0]['from_rounds']} to {' and to '.join(str(one['to_rounds']) for one in steps)} rounds"
        if steps
        else ""
    )


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The table at a run's end: the full model and every class, this strategy and its baselines. It fits 80 columns."""
    baselines, metric = summary.get("baselines", {}), summary["metric"]
    title = f"{summary['name']}: {metric}{' in %' if unit(metric) else ''} after {counted(summary['rounds'], 'round')}, {counted(summary['clients'], 'client')}"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("params", "start", summary["strategy"], *baselines, "bytes", "time*", "energy*", "peak*"):
        table.add_column(heading, justify="right", no_wrap=True)
    full = [f"{summary['params']:,}", shown(metric, summary["start"]), shown(metric, summary["global"])]
    full += [shown(metric, other["global"]) for other in baselines.values()]
    table.add_row("full model", *full, "", "", "", "", end_section=True)
    for name, tier in summary["tiers"].items():
        row = [f"{100 * tier['params_fraction']:.0f}%", shown(metric, tier["start"]), shown(metric, tier["metric"])]
        row += [shown(metric, other["tiers"][name]["metric"]) for other in baselines.values()]
        row += [human_bytes(tier["bytes_down"] + tier["bytes_up"]), human_seconds(tier["round_seconds"])]
        row += [human_joules(tier["energy_joules"]), human_bytes(tier["peak_memory_bytes"])]
        table.add_row(name, *row)
    runs = {summary["strategy"]: summary, **baselines}
    moved = ", ".join(f"{name} {human_bytes(one['bytes_down'] + one['bytes_up'])}" for name, one in runs.items())
    worst_class = ", ".join(f"{name} {shown(metric, one['worst_class']['metric'])}" for name, one in runs.items())
    over_sizes = ", ".join(f"{name} {shown(metric, one['curve_area'])}" for name, one in runs.items() if one["curve"])
    longer = f"{told}\n" if (told := extended(summary)) else ""
    table.caption = (
        f"worst class: {worst_class}" + (f"; mean over sizes: {over_sizes}" if over_sizes else "") + "\n"
        f"{longer}"
        "bytes, time, energy: of one client in one round, down and up; peak: of memory\n"
        "* simulated device, estimated from data sheets\n"
        f"moved in the whole run: {moved}"
    )
    return table
