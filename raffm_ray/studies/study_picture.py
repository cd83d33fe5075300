"""The picture of a study: its trials, the best ones among them, and which settings mattered."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from raffm_ray.basics.formatting import time_unit
from raffm_ray.data.metrics import scaled, unit
from raffm_ray.reports.drawing import begins_at, panels_of, plt, save
from raffm_ray.reports.run_picture import COLORS, GREY

NAMES = {"full_model": "full model", "worst_device_type": "worst device type", "curve_area": "mean over sizes"}
MOST_PAIRS = 3
PANELS = ("history", *(f"pair {number + 1}" for number in range(MOST_PAIRS)), "importances")
Row = Mapping[str, Any]


def _scale(content: Mapping[str, Any], measure: str) -> tuple[float, str]:
    """(what values are multiplied by, label of the axis) of a measure."""
    metric = content["metric"]
    if measure in NAMES:
        sign = f" ({unit(metric)})" if unit(metric) else ""
        return scaled(metric, 1.0), f"validation {metric} of the {NAMES[measure]}{sign}".replace("of the mean", "mean")
    largest = max(row["values"][measure] for row in content["trials"] if row["values"])
    if measure == "simulated_seconds":
        seconds, name = time_unit(largest)
        return 1 / seconds, f"{name} of the simulated devices (estimated)"
    what, sign = ("bytes moved", "B") if measure == "bytes" else ("energy (estimated)", "J")
    power = next((power for power in (12, 9, 6, 3) if largest >= 10**power), 0)
    return 10.0**-power, f"{what} ({ {12: 'T', 9: 'G', 6: 'M', 3: 'k', 0: ''}[power] }{sign})"


def _numbered(axes: Axes, places: Mapping[int, tuple[float, float]]) -> None:
    """Trials' numbers, above and below in turn from left to right, so that neighbours leave each other room."""
    for position, (number, place) in enumerate(sorted(places.items(), key=lambda item: item[1])):
        above = position % 2 == 0
        drawn: dict[str, Any] = {"ha": "center", "va": "bottom" if above else "top", "fontsize": 8, "color": "#222222"}
        axes.annotate(str(number), place, textcoords="offset points", xytext=(0, 9 if above else -9), **drawn)


def _view(values: Sequence[float], shown: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: without what is further from the quartiles than 1.5 times their distance (Tukey's fences), but with all
    of `shown`, and a margin."""
    low, high = np.quantile(values, (0.25, 0.75))
    reach = 1.5 * (high - low)
    kept = [*(value for value in values if low - reach <= value <= high + reach), *shown]
    margin = 0.08 * (max(kept) - min(kept)) or 0.5 * abs(max(kept)) or 1.0
    return min(kept) - margin, max(kept) + margin


def _pair(axes: Axes, content: Mapping[str, Any], first: str, second: str) -> None:
    """Trials by two objectives; the front is numbered and joined where there are only these two."""
    scales, labels = zip(*(_scale(content, name) for name in (second, first)), strict=True)

    def places(rows: Sequence[Row]) -> dict[int, tuple[float, float]]:
        return {row["number"]: (row["values"][second] * scales[0], row["values"][first] * scales[1]) for row in rows}

    rows = [row for row in content["trials"] if row["values"]]
    front = places([row for row in rows if row["number"] in content["front"]])
    others = places([row for row in rows if row["number"] not in content["front"] and row["feasible"]])
    missed = places([row for row in rows if not row["feasible"]])
    asked = places([row for row in rows if row["enqueued"]])
    drawn: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    axes.plot(*_columns(others), "o", color=GREY, alpha=0.7, label="other trials", **drawn)
    if missed:
        axes.plot(*_columns(missed), "x", color=GREY, label="miss a constraint", **drawn)
    line = "-" if len(content["objectives"]) == 2 else "none"
    joined = dict(sorted(front.items(), key=lambda item: item[1]))
    axes.plot(*_columns(joined), color=COLORS[0], marker="o", linestyle=line, markersize=7, linewidth=1.3, label="front")
    if content["best"] is not None:
        best = [[value] for value in front[content["best"]]]
        axes.plot(*best, "*", color=COLORS[1], markersize=15, linestyle="none", label="best by the rule", zorder=4)
    if asked:
        look: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.8, "markeredgecolor": COLORS[2]}
        axes.plot(*_columns(asked), "s", linestyle="none", label="asked for first", zorder=3, **look)
    _numbered(axes, {**asked, **front})
    every, shown = list(places(rows).values()), [*front.values(), *asked.values()]
    (left, right), (bottom, top) = (_view([one[at] for one in every], [one[at] for one in shown]) for at in (0, 1))
    outside = sum(not (left <= x <= right and bottom <= y <= top) for x, y in every)
    axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(left, right), ylim=(bottom, top))
    if outside:
        axes.set_title(f"{outside} far off {'is' if outside == 1 else 'are'} not shown", fontsize=9, loc="right", color="#555555")


def _columns(places: Mapping[int, tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in places.values()], [y for _, y in places.values()]


def _history(axes: Axes, content: Mapping[str, Any]) -> None:
    """The objective's value trial by trial, and the best one so far."""
    (measure, direction), trials = next(iter(content["objectives"].items())), content["trials"]
    scale, label = _scale(content, measure)
    rows = [row for row in trials if row["values"]]
    for chosen, marker, color, name in ((True, "o", COLORS[0], "finished"), (False, "x", GREY, "misses a constraint")):
        some = [row for row in rows if row["feasible"] is chosen]
        if some:
            drawn: dict[str, Any] = {"linestyle": "none", "color": color, "label": name, "markersize": 6}
            axes.plot([row["number"] for row in some], [row["values"][measure] * scale for row in some], marker, **drawn)
    feasible = [row for row in rows if row["feasible"]]
    better = max if direction == "maximize" else min
    so_far = list(accumulate((row["values"][measure] * scale for row in feasible), better))
    axes.step([row["number"] for row in feasible], so_far, where="post", color=COLORS[1], label="best so far")
    stopped = [(row["number"], list(row["by_round"].values())[-1] * scale) for row in trials if row["state"] == "pruned"]
    if stopped:
        axes.plot(*zip(*stopped, strict=True), "v", color=COLORS[3], linestyle="none", label="pruned, last value")
    if content["best"] is not None:
        row = next(row for row in rows if row["number"] == content["best"])
        place = (row["number"], row["values"][measure] * scale)
        axes.plot([place[0]], [place[1]], "*", color=COLORS[1], markersize=15, linestyle="none", label="best", zorder=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="trial by trial", xlabel="trial", ylabel=label)
    axes.margins(0.08)


def _importances(axes: Axes, content: Mapping[str, Any]) -> None:
    shares = dict(reversed(content["importances"].items()))
    axes.barh(list(shares), [100 * share for share in shares.values()], color=COLORS[0])
    axes.set(title="which settings mattered", xlabel="share in being among the best trials (%, PED-ANOVA)")


def draw_study(content: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """Writes the picture of a `study.json`: of one objective its history, of several every pair, three pairs at most. Returns its panels
    `history` or `pair 1` and so on, and `importances`, each as a PNG. Nothing is drawn where no trial was finished."""
    if not any(row["values"] for row in content["trials"]):
        return {}
    pairs = list(combinations(content["objectives"], 2))[:MOST_PAIRS]
    count = max(1, len(pairs)) + bool(content["importances"])
    rows, columns = (2, 2) if count == 4 else (1, count)
    size = (1 + 6.2 * columns, 0.6 + 4.8 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for number, (axes, pair) in enumerate(zip(panels.flat, pairs, strict=False)):
        _pair(axes, content, *pair)
        axes.set_label(f"pair {number + 1}")
    if not pairs:
        _history(panels.flat[0], content)
        panels.flat[0].set_label("history")
    for axes in panels.flat[: max(1, len(pairs))]:
        axes.grid(alpha=0.25)
        begins_at(axes, "xy" if pairs else "y")
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3, frameon=False)
    if content["importances"]:
        _importances(panels.flat[-1], content)
        panels.flat[-1].set_label("importances")
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    seeds, done = content["seeds"], sum(bool(row["values"]) for row in content["trials"])
    told = f"means over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    front = f", {len(content['front'])} of them on the front" if pairs else ""
    figure.suptitle(f"{content['name']}: {done} of {len(content['trials'])} trials finished{front}; {told}")
    save(figure, path)
    return panels_of(figure, path, [[name for name in PANELS if name != "importances"], ["importances"]])
