"""The picture of one run and its baselines."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raffm_ray.basics.formatting import counted, human_bytes, magnitude, time_unit
from raffm_ray.data.metrics import scaled, unit, worst
from raffm_ray.reports.drawing import begins_at, plt, share_heights
from raffm_ray.runs.reader import is_unfinished, read_so_far, read_summary

COLORS = (
    "#3b6fb6",
    "#d1701c",
    "#3d8f58",
    "#9a4fa0",
    "#7a6a53",
    "#c0392b",
    "#17a2a8",
    "#d9a400",
    "#e377c2",
    "#4a4a4a",
    "#86b93b",
    "#1b2a6b",
)
"""One for every strategy shown; chosen to differ in lightness too."""
MARKERS = "os^DvPX<>*hd"
"""One for every strategy shown, for eyes and printers that do not see colours."""
GREY = "#8a8a8a"

Runs = Mapping[str, tuple[Path, Mapping[str, Any]]]
"""strategy -> (folder, summary); a run's own strategy first."""


def style(position: int) -> dict[str, Any]:
    """Colour and marker of the strategy at a position, the same in every picture; they repeat after twelve."""
    return {"color": COLORS[position % len(COLORS)], "marker": MARKERS[position % len(MARKERS)]}


def runs_of(folder: Path, unfinished: bool = False) -> Runs:
    """The run itself and its baselines; an `unfinished` one, if that is wanted, as far as it came. Raises UserError as `read_summary`, and
    `read_so_far`."""
    summary = read_so_far(folder) if unfinished and is_unfinished(folder) else read_summary(folder)
    runs = {str(summary["strategy"]): (folder, summary)}
    for name in summary.get("baselines", {}):
        runs[name] = (folder / "baselines" / name, read_summary(folder / "baselines" / name))
    return runs


def label_of(metric: str) -> str:
    """`held-out accuracy (%)`."""
    return f"held-out {metric}{' (%)' if unit(metric) else ''}"


def sizes_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points of a run's curve; those of its device types and the full model where no other sizes were measured."""
    if summary.get("curve"):
        return list(summary["curve"])
    full = {"params_fraction": 1.0, "metric": summary["full_model"]}
    known = {device_type["params_fraction"]: device_type for device_type in summary["device_types"].values()} | {1.0: full}
    return [{**known[size], "trained": True} for size in sorted(known)]


def draw_sizes(axes: Axes, points: Sequence[Mapping[str, Any]], metric: str, **drawn: Any) -> None:
    """A line through the points of a curve; sizes that nobody trained are hollow."""
    sizes = [100 * point["params_fraction"] for point in points]
    values = [scaled(metric, point["metric"]) for point in points]
    (line,) = axes.plot(sizes, values, **drawn)
    unseen = [position for position, point in enumerate(points) if not point["trained"]]
    look: dict[str, Any] = {
        "marker": line.get_marker(),
        "markersize": line.get_markersize(),
        "color": line.get_color(),
        "linestyle": "none",
    }
    axes.plot(
        [sizes[at] for at in unseen], [values[at] for at in unseen], markerfacecolor="white", zorder=line.zorder + 0.1, **look
    )


Rounds = Mapping[str, Sequence[Mapping[str, Any]]]
"""strategy -> the records of its rounds."""


def _curves(axes: Axes, runs: Rounds, metric: str, place: Callable[[Sequence[Mapping[str, Any]]], Sequence[float]]) -> None:
    """The full model's metric and the worst device type's, against a number of every round that `place` finds in all of a run's."""
    for position, (name, every) in enumerate(runs.items()):
        rows, places = zip(
            *((row, at) for row, at in zip(every, place(every), strict=True) if row["metric"] is not None), strict=True
        )
        full = [scaled(metric, row["metric"]) for row in rows]
        weakest = [scaled(metric, worst(metric, list(dict(row["device_type_metrics"]).values()))) for row in rows]
        drawn = {**style(position), "markersize": 3}
        axes.plot(places, full, label=f"{name}, full model", **drawn)
        axes.plot(places, weakest, label=f"{name}, worst device type", linestyle="--", **drawn)
    axes.set_ylabel(label_of(metric))


def _over_rounds(axes: Axes, runs: Rounds, metric: str) -> None:
    _curves(axes, runs, metric, lambda rows: [row["round"] for row in rows])
    axes.set(title=f"{metric} over rounds", xlabel="round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _over_bytes(axes: Axes, runs: Rounds, metric: str) -> None:
    def moved(rows: Sequence[Mapping[str, Any]]) -> list[float]:
        return list(accumulate(row["bytes_down"] + row["bytes_up"] for row in rows))

    scale, name = magnitude(max(moved(rows)[-1] for rows in runs.values()), "B")
    _curves(axes, runs, metric, lambda rows: [at / scale for at in moved(rows)])
    axes.set(title=f"{metric} over bytes", xlabel=f"{name} moved, down and up")


def _over_time(axes: Axes, runs: Rounds, metric: str) -> None:
    scale, name = time_unit(max(rows[-1]["simulated_seconds"] for rows in runs.values()))
    _curves(axes, runs, metric, lambda rows: [row["simulated_seconds"] / scale for row in rows])
    axes.set(title=f"{metric} over simulated time", xlabel=f"{name} of the simulated devices (estimated)")


def _over_energy(axes: Axes, runs: Rounds, metric: str) -> None:
    def spent(rows: Sequence[Mapping[str, Any]]) -> list[float]:
        return list(accumulate(row["energy_joules"] for row in rows))

    scale, name = magnitude(max(spent(rows)[-1] for rows in runs.values()), "J")
    _curves(axes, runs, metric, lambda rows: [at / scale for at in spent(rows)])
    axes.set(title=f"{metric} over energy", xlabel=f"{name} of the simulated devices (estimated)")


def _over_size(axes: Axes, runs: Runs, metric: str) -> None:
    own, (_, first) = next(iter(runs.items()))
    device_types = sorted(first["device_types"].items(), key=lambda item: item[1]["params_fraction"])
    sizes = [100 * device_type["params_fraction"] for _, device_type in device_types]
    starts = [scaled(metric, device_type["start"]) for _, device_type in device_types]
    axes.plot(sizes, starts, color=GREY, linestyle=":", marker="s", markersize=4, label="before training")
    for position, (name, (_, summary)) in enumerate(runs.items()):
        line = "-" if name == own else "--"
        draw_sizes(axes, sizes_of(summary), metric, **style(position), markersize=5, linestyle=line, label=name)
    for size in sizes:
        axes.axvline(size, color=GREY, alpha=0.25, linewidth=1, zorder=0)
    if untrained := any(not point["trained"] for point in sizes_of(first)):
        axes.plot(
            [],
            [],
            color=GREY,
            marker="o",
            markersize=5,
            markerfacecolor="white",
            linestyle="none",
            label="size that nobody trained",
        )
    axes.set(xlabel="parameters kept (% of the full model)", ylabel=label_of(metric))
    axes.set_title("subnetworks, and sizes that nobody trained" if untrained else "each device type's subnetwork", pad=8)
    axes.margins(x=0.08, y=0.1)
    names = axes.secondary_xaxis("top")
    low, high = axes.get_xlim()
    places = apart(sizes, LABEL_WIDTH * (high - low))
    names.set_xticks(places, [device.replace("_", " ") for device, _ in device_types], rotation=25, ha="left", fontsize=8)
    names.tick_params(length=0)
    names.spines["top"].set_visible(False)
    for size, place in zip(sizes, places, strict=True):
        axes.plot(
            [size, place], [0.97, 1.0], transform=axes.get_xaxis_transform(), color=GREY, alpha=0.4, linewidth=1, scalex=False
        )


LABEL_WIDTH = 0.055
"""Of the axis: what a slanted label needs to be read beside another."""


def apart(places: Sequence[float], least: float) -> list[float]:
    """Ascending places moved as little as needed to be `least` apart: those that touch are spread about their mean."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _spread(groups[-2], least)[-1] + least > _spread(groups[-1], least)[0]:
            last = groups.pop()
            groups[-1] += last
    return [place for group in groups for place in _spread(group, least)]


def _spread(group: Sequence[float], least: float) -> list[float]:
    middle = sum(group) / len(group)
    return [middle + least * (number - (len(group) - 1) / 2) for number in range(len(group))]


def bytes_of_full_round(summary: Mapping[str, Any]) -> float:
    """What a client would move in a round of full-size federated learning; of a run of an earlier version, the full model twice."""
    return float(summary.get("bytes_of_full_round", 2 * 4 * summary["params"]))


def _bytes(axes: Axes, runs: Runs) -> None:
    own = next(iter(runs.values()))[1]
    device_types = sorted(own["device_types"].items(), key=lambda item: item[1]["params_fraction"])
    full_size = bytes_of_full_round(own)
    moved = [100 * (device_type["bytes_down"] + device_type["bytes_up"]) / full_size for _, device_type in device_types]
    bars = axes.barh([name.replace("_", " ") for name, _ in device_types], moved, color=COLORS[0])
    axes.bar_label(
        bars,
        [human_bytes(device_type["bytes_down"] + device_type["bytes_up"]) for _, device_type in device_types],
        padding=5,
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
    whole = own["bytes_down"] + own["bytes_up"]
    axes.axvline(100 * whole / max(1, own["bytes_full_size"]), color=COLORS[1], linestyle="--", zorder=0)
    axes.set(title="bytes a client moves in a round", xlabel="% of full-size FedAvg's (dashed: this whole run)")
    axes.margins(x=0.2)


CURVES = {"rounds": _over_rounds, "bytes": _over_bytes, "time": _over_time, "energy": _over_energy}
"""Panels of the metric over what a run spends. All panels of the metric have the same axis."""


def picture(runs: Runs, rounds: Rounds) -> Figure:
    """Metric over rounds, bytes, simulated time and energy; the metric of every size; bytes by device type. Its panels are labelled `rounds`,
    `bytes`, `time`, `energy`, `sizes` and `moved`.
    `rounds`: of every run."""
    summary = next(iter(runs.values()))[1]
    figure, panels = plt.subplot_mosaic(
        [["rounds", "bytes", "sizes"], ["time", "energy", "moved"]], figsize=(16, 9), layout="constrained"
    )
    for name, draw in CURVES.items():
        draw(panels[name], rounds, summary["metric"])
        panels[name].grid(alpha=0.25)
    _over_size(panels["sizes"], runs, summary["metric"])
    panels["sizes"].grid(alpha=0.25, axis="y")
    _bytes(panels["moved"], runs)
    measured = [panels[name] for name in (*CURVES, "sizes")]
    share_heights(measured)
    for one in measured:
        begins_at(one)
        one.legend(fontsize=8 if len(runs) < 4 else 6, loc="best")
    begins_at(panels["sizes"], "x")
    for one in panels.values():
        one.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{summary['name']}: {counted(summary['clients'], 'client')}, {counted(summary['rounds'], 'round')}, seed {summary['seed']}"
    )
    return figure
