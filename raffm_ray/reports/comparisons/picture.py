"""The picture of a comparison: every strategy's metric over rounds, bytes, energy and size, and a chart of all measures."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from raffm_ray.basics.formatting import counted, human_bytes, human_joules
from raffm_ray.data.metrics import METRICS, scaled
from raffm_ray.reports.drawing import begins_at, panels_of, plt, save, share_heights
from raffm_ray.reports.run_picture import GREY, draw_sizes, label_of, style

DRAWN_SIZES = 60
"""Sizes at which the curves of several seeds are averaged."""


def mean_curve(curves: list[list[Mapping[str, Any]]]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(sizes as fractions, mean metric, standard error) over the seeds' curves, each interpolated linearly in the range they share."""
    low = max(curve[0]["params_fraction"] for curve in curves)
    sizes = np.linspace(low, min(curve[-1]["params_fraction"] for curve in curves), DRAWN_SIZES)
    values = np.array(
        [
            np.interp(sizes, [point["params_fraction"] for point in curve], [point["metric"] for point in curve])
            for curve in curves
        ]
    )
    error = values.std(axis=0, ddof=1) / np.sqrt(len(curves)) if len(curves) > 1 else np.zeros(len(sizes))
    return sizes, values.mean(axis=0), error


def _wrapped(name: str) -> str:
    """A line a setting."""
    return name.replace(", ", "\n")


def _curves(axes: Axes, content: Mapping[str, Any]) -> None:
    metric = content["metric"]
    for position, (name, one) in enumerate(content["strategies"].items()):
        drawn = {
            **style(position),
            "markersize": 5,
            "linewidth": 2.6 if position == 0 else 1.3,
            "zorder": 3 if position == 0 else 2,
        }
        if not all(one["curves"]):
            continue
        if len(one["curves"]) == 1:
            draw_sizes(axes, one["curves"][0], metric, label=_wrapped(name), **drawn)
            continue
        sizes, mean, error = mean_curve(one["curves"])
        shown, low, high = ([scaled(metric, value) for value in values] for values in (mean, mean - error, mean + error))
        axes.plot(100 * sizes, shown, label=_wrapped(name), markevery=(position, 12), **drawn)
        axes.fill_between(100 * sizes, low, high, color=drawn["color"], alpha=0.15, linewidth=0)
    axes.set(title="every size, trained or not", xlabel="parameters kept (% of the full model)", ylabel=label_of(metric))


def _over(axes: Axes, content: Mapping[str, Any], spent: str) -> None:
    """The full model's metric over a key of `progress`."""
    metric = content["metric"]
    for position, (name, one) in enumerate(content["strategies"].items()):
        places, mean = one["progress"][spent], np.array(one["progress"]["mean"], dtype=float)
        error = np.array([value or 0.0 for value in one["progress"]["standard_error"]])
        shown, low, high = ([scaled(metric, value) for value in values.tolist()] for values in (mean, mean - error, mean + error))
        color = style(position)["color"]
        axes.plot(
            places,
            shown,
            color=color,
            label=_wrapped(name),
            linewidth=2.6 if position == 0 else 1.3,
            zorder=3 if position == 0 else 2,
        )
        axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    title, label, human = OVER[spent]
    axes.set(title=f"full model over {title}", xlabel=label, ylabel=label_of(metric))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=spent == "round"))
    if human is not None:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))


OVER: dict[str, tuple[str, str, Callable[[float], str] | None]] = {
    "round": ("rounds", "round", None),
    "bytes": ("bytes", "bytes of all clients, down and up", human_bytes),
    "energy_joules": ("energy", "energy of all clients (estimated)", human_joules),
}
"""What the metric is drawn over, a key of `progress` -> its name, its label, and how a value is written."""


STANDS = {
    "full_model": ("full model", "s", 0.22),
    "curve_area": ("mean over sizes", "o", 0.0),
    "worst_device_type": ("worst device type", "v", -0.22),
}
"""measure -> (what it is called, marker, place in a strategy's row)."""


def _stands(axes: Axes, content: Mapping[str, Any]) -> None:
    metric, strategies = content["metric"], content["strategies"]
    names = list(strategies)
    for position, name in enumerate(names):
        row, color = len(names) - 1 - position, style(position)["color"]
        for measure, (_, marker, place) in STANDS.items():
            value = strategies[name][measure]
            if value["mean"] is not None:
                spread = scaled(metric, value["standard_error"] or 0.0)
                drawn: dict[str, Any] = {"color": color, "markersize": 7, "capsize": 2}
                axes.errorbar(scaled(metric, value["mean"]), row + place, xerr=spread, fmt=marker, **drawn)
        axes.axhline(row - 0.5, color=GREY, alpha=0.2, linewidth=0.8)
    for called, marker, _ in STANDS.values():
        axes.plot([], [], marker, color=GREY, markersize=7, label=called)
    axes.set_yticks(
        range(len(names))[::-1],
        [f"{_wrapped(name)}{' (over budget)' if strategies[name]['over_budget']['mean'] else ''}" for name in names],
    )
    for label, position in zip(axes.get_yticklabels(), range(len(names)), strict=True):
        label.set_color(style(position)["color"])
    axes.set(title="how they stand", xlabel=label_of(metric), ylim=(-0.5, len(names) - 0.5))
    if not METRICS[metric].higher:
        axes.invert_xaxis()
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)


def draw_comparison(content: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """Writes the picture of a `comparison.json`; returns its panels, the keys of `OVER`, `sizes` (where sizes were measured) and `stands`, each as a
    PNG. Bands and bars are standard errors over seeds."""
    lines = [len(_wrapped(name).splitlines()) for name in content["strategies"]]
    height = max(3.2, 1.8 + sum(max(0.36, 0.22 * count) for count in lines))
    drawn: dict[str, Callable[[Axes, Mapping[str, Any]], None]] = {
        "sizes": _curves,
        "stands": _stands,
        **{spent: partial(_over, spent=spent) for spent in OVER},
    }
    places: list[Any] = [list(OVER), ["sizes", "stands", "stands"]]
    if not any(all(one["curves"]) for one in content["strategies"].values()):
        del drawn["sizes"]
        places[1] = ["stands"] * 3
    figure, panels = plt.subplot_mosaic(places, figsize=(17, 4.8 + height), height_ratios=[4.8, height], layout="constrained")
    for name, draw in drawn.items():
        draw(panels[name], content)
    share_heights([panels[name] for name in drawn if name != "stands"])
    for name in drawn:
        panels[name].grid(alpha=0.25, axis="x" if name == "stands" else "both")
        panels[name].spines[["top", "right"]].set_visible(False)
        begins_at(panels[name], {"sizes": "xy", "stands": "x"}.get(name, "y"))
        if name != "stands" and max(lines) < 3:  # longer names leave no room; beside the last panel they stand in their colours
            panels[name].legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    seeds = len(content["seeds"])
    spread = f"{seeds} seeds, bands and bars: standard error" if seeds > 1 else f"seed {content['seeds'][0]}"
    figure.suptitle(
        f"{content['name']}: {counted(content['clients'], 'client')}, {counted(content['rounds'], 'round')}, {spread}"
    )
    save(figure, path)
    return panels_of(figure, path, [(*OVER, "sizes"), ("stands",)])
