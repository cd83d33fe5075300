"""A picture of where every round's real time went."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raffm_ray.basics.formatting import human_seconds
from raffm_ray.basics.profiling import PHASES
from raffm_ray.reports.drawing import plt

COLORS = {
    "pretrain": "#c9b26b",
    "plan": "#7a6a53",
    "forecast": "#b5651d",
    "broadcast": "#86b93b",
    "cut": "#d9a400",
    "calibrate": "#9a4fa0",
    "train": "#3b6fb6",
    "return": "#17a2a8",
    "add": "#3d8f58",
    "evaluate": "#d1701c",
    "checkpoint": "#c0392b",
    "record": "#e377c2",
    "wait": "#b9b9b9",
    "other": "#4a4a4a",
}
COLUMNS = 100
"""At most; a column is the mean of several rounds where there are more."""
SEEN = 0.01
"""A phase with less than this part of all time is shown with the others that have less."""


def picture_of_profile(rounds: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Seconds by phase, one on the other, by round, and each phase's part of the whole run; None where nothing was recorded.

    `rounds`: their records, in order. Round 0, before training, is told in the title, since it is unlike the others.
    """
    seconds = {row["round"]: dict(row.get("phase_seconds") or {}) for row in rounds}
    numbers = [number for number, phases in seconds.items() if number and phases]
    if not numbers:
        return None
    table = np.array([[seconds[number].get(phase, 0.0) for phase in PHASES] for number in numbers])
    each = -(-len(numbers) // COLUMNS)
    places = [part.mean() for part in np.split(np.array(numbers), range(each, len(numbers), each))]
    heights = np.array([part.mean(0) for part in np.split(table, range(each, len(table), each))])
    totals = table.sum(0)
    seen = [position for position in range(len(PHASES)) if totals[position] >= SEEN * totals.sum()]
    names = list(PHASES)
    parts = [(f"{names[at]}: {PHASES[names[at]]}", totals[at], heights[:, at], COLORS[names[at]]) for at in seen]
    rest = [at for at in range(len(PHASES)) if at not in seen and totals[at]]
    if rest:
        told = ", ".join(names[at] for at in rest)
        parts.append((f"less than 1% each: {told}", totals[rest].sum(), heights[:, rest].sum(1), "#dddddd"))
    figure, axes = plt.subplots(figsize=(12, 4.2), layout="constrained")
    floor = np.zeros(len(places))
    for label, total, height, color in parts:
        axes.bar(
            places, height, 0.92 * each, floor, color=color, linewidth=0, label=f"{100 * total / totals.sum():4.1f}%  {label}"
        )
        floor = floor + height
    before = sum(seconds.get(0, {}).values())
    pretraining = seconds.get(0, {}).get("pretrain") or 0.0
    of_it = f" ({human_seconds(pretraining)} of it pretraining)" if pretraining else ""
    top = 1.15 * float(np.quantile(floor, 0.98)) if len(floor) > 20 else None
    higher = 0 if top is None else int((floor > top).sum())
    cut = f"; {higher} {'columns are' if higher > 1 else 'column is'} higher than shown" if higher else ""
    axes.set_title(
        f"where real time went: {human_seconds(totals.sum())} of rounds, {human_seconds(before)} before the first{of_it}{cut}"
    )
    axes.set(
        xlabel="round" if each == 1 else f"round (a column: mean of {each})",
        ylabel="seconds a round",
        xlim=(numbers[0] - 0.7, numbers[-1] + 0.7),
    )
    axes.set_ylim(0, top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", fontsize=8, frameon=False)
    return figure
