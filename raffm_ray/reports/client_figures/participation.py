"""Who took part: a picture of how often clients of each device type were chosen, arrived and were dropped, and a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raffm_ray.basics.formatting import counted
from raffm_ray.reports.drawing import begins_at, panels_of, plt, save
from raffm_ray.reports.page import Cell, Picture, Section, Table, csv_text

TITLE = "Who took part"
PANELS = ("rounds of a client", "clients by rounds")
COLORS = {"arrived": "#3b6fb6", "late": "#d1a01c", "dropped": "#b03a3a"}
LABELS = {"arrived": "arrived in time", "late": "came late", "dropped": "dropped out"}
BARS = 30


def picture_of_participation(found: Mapping[str, Any]) -> Figure:
    """Two panels: by device type, how many rounds its clients were chosen for on average, by what came of it; a histogram of clients by the rounds in which
    they arrived. `found`: the content of `participation`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    _by_device_type(left, found["device_types"])
    _histogram(right, {int(times): clients for times, clients in found["clients_by_times_arrived"].items()})
    return figure


def _by_device_type(axes: Axes, device_types: Mapping[str, Mapping[str, int]]) -> None:
    bottom = np.zeros(len(device_types))
    for what, color in COLORS.items():
        mean = np.array([one[what] / max(1, one["clients"]) for one in device_types.values()])
        axes.bar(range(len(mean)), mean, bottom=bottom, color=color, label=LABELS[what], width=0.6)
        bottom += mean
    chosen, clients = (sum(one[key] for one in device_types.values()) for key in ("chosen", "clients"))
    axes.axhline(chosen / max(1, clients), color="#222222", linestyle=":", linewidth=1.5, label="mean of all clients")
    told = [f"{name.replace('_', chr(10), 1).replace('_', ' ')}\n({one['clients']})" for name, one in device_types.items()]
    axes.set_xticks(range(len(told)), told, fontsize=8)
    axes.set(title="how often a client was chosen (number of clients)", ylabel="rounds of a client", label=PANELS[0])
    begins_at(axes)
    axes.set_ylim(top=1.3 * max(1e-9, float(bottom.max(initial=0.0))))  # the legend is above the bars
    axes.legend(fontsize=8, ncols=4, loc="upper center")


def _histogram(axes: Axes, clients: Mapping[int, int]) -> None:
    last = max(clients, default=0)
    width = -(-(last + 1) // BARS)
    edges = np.arange(0, last + width + 1, width) - 0.5
    axes.hist(list(clients), bins=edges.tolist(), weights=list(clients.values()), color=COLORS["arrived"])
    axes.set(title="clients by the rounds in which they arrived", xlabel="rounds", ylabel="clients", label=PANELS[1])
    begins_at(axes)


def participation_section(into: Path, summary: Mapping[str, Any]) -> Section:
    """The section; it is empty of a run that is not finished, or of an earlier version. Writes `participation.png` into `into`."""
    found = summary.get("participation")
    if not found:
        return Section(TITLE)
    figure = picture_of_participation(found)
    save(figure, into / "participation.png")
    panels = panels_of(figure, into / "participation.png", [[panel] for panel in PANELS])
    device_types, fair = found["device_types"], found["jain_index"]
    each = ", ".join(
        f"{name.replace('_', ' ')} {one['chosen'] / max(1, one['clients']):.3g}" for name, one in device_types.items()
    )
    keys = ("clients", "chosen", *COLORS)
    told = "not defined" if fair is None else f"{fair:.3f}"
    pictures = [
        Picture(
            name="participation_by_device_type",
            image=panels[PANELS[0]],
            alt=f"Stacked bars: rounds for which a client was chosen on average, by device type: {each}.",
            caption="Rounds for which a client of each device type was chosen on average, by what came of it.",
            data=csv_text(["device_type", *keys], [[name, *(one[key] for key in keys)] for name, one in device_types.items()]),
        ),
        Picture(
            name="clients_by_rounds",
            image=panels[PANELS[1]],
            alt=f"Histogram of clients by the rounds in which they arrived. Never: {counted(found['never_arrived'], 'client')}.",
            caption=f"Clients by the rounds in which their update arrived in time. Jain's index: {told} (1: all as often).",
            data=csv_text(["rounds_arrived", "clients"], [list(one) for one in found["clients_by_times_arrived"].items()]),
        ),
    ]
    rows = [
        [Cell(name.replace("_", " ")), *(Cell(f"{one[key]:,}", one[key]) for key in keys)] for name, one in device_types.items()
    ]
    table = Table(
        caption="How often the clients of each device type were chosen, and what came of it; clients that have examples to train on.",
        headings=["device type", "clients", "chosen", *LABELS.values()],
        rows=rows,
    )
    return Section(TITLE, tables=[table], pictures=pictures)
