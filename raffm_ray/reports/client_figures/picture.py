"""A picture of clients' metrics: how they are spread, and by device type."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raffm_ray.data.metrics import scaled, unit
from raffm_ray.reports.drawing import begins_at, plt

PANELS = ("clients", "clients by device type")
COLORS = {"own": "#3b6fb6", "full": "#555555", "personal": "#2e8b57", "tuned": "#8e44ad"}
LABELS = {
    "own": "each client's own subnetwork",
    "full": "the full model",
    "personal": "own subnetwork, own parameters",
    "tuned": "own subnetwork, tuned",
}
BARS = 20
FEW = 5
"""A device type with fewer clients is drawn as points alone: of so few, quartiles say nothing."""


def picture_of_clients(rows: Sequence[Mapping[str, Any]], metric: str, summary: Mapping[str, Any]) -> Figure:
    """Two panels: a histogram of clients by metric, of their own subnetworks, of the full model and of what else they were measured with; boxes by device type, of own subnetworks.

    `rows`: of `evaluations/` of one round, of clients whose metric is defined; `summary`: the content of `client_metrics`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    _histogram(left, rows, metric, summary["own"])
    _by_device_type(right, rows, metric, list(summary["own"]["device_types"]))
    return figure


def _values(rows: Sequence[Mapping[str, Any]], metric: str, **wanted: str) -> list[float]:
    return [scaled(metric, row["metric"]) for row in rows if all(row[name] == value for name, value in wanted.items())]


def _label(metric: str) -> str:
    return f"{metric} of a client{f' ({unit(metric)})' if unit(metric) else ''}"


def _histogram(axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str, own: Mapping[str, Any]) -> None:
    by_model = {model: _values(rows, metric, model=model) for model in COLORS}
    finite = np.array([value for values in by_model.values() for value in values if np.isfinite(value)])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BARS + 1)
    axes.hist(by_model["own"], bins=edges.tolist(), color=COLORS["own"], label=LABELS["own"])
    for model, values in by_model.items():
        if model != "own" and values:
            axes.hist(values, bins=edges.tolist(), histtype="step", color=COLORS[model], linewidth=1.5, label=LABELS[model])
    for name, style, key in (("mean", "-", "mean_over_clients"), ("worst tenth", ":", "worst_tenth")):
        axes.axvline(scaled(metric, own[key]), color="#d1701c", linestyle=style, linewidth=1.5, label=f"{name}, own subnetworks")
    axes.set(title="clients by what they get", xlabel=_label(metric), ylabel="clients", label=PANELS[0])
    begins_at(axes, "x")
    axes.legend(fontsize=8)


def _by_device_type(axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str, names: Sequence[str]) -> None:
    parts = [_values(rows, metric, model="own", device_type=name) for name in names]
    boxed = [number for number, part in enumerate(parts, 1) if len(part) >= FEW]
    axes.set_xlim(0.5, len(parts) + 0.5)
    drawn = axes.boxplot(
        [parts[number - 1] for number in boxed],
        positions=boxed,
        whis=(10, 90),
        showfliers=False,
        patch_artist=True,
        widths=0.6,
        showmeans=True,
    )
    for box in drawn["boxes"]:
        box.set(facecolor=COLORS["own"], alpha=0.5)
    for line in drawn["medians"]:
        line.set(color="#d1701c", linewidth=2)
    for number, part in enumerate(parts, 1):
        beside = np.linspace(-0.2, 0.2, len(part)) if len(part) > 1 else np.zeros(1)
        few = number not in boxed
        axes.plot(number + beside, part, ".", color="#222222", markersize=7 if few else 3, alpha=0.8 if few else 0.4)
    told = [f"{name.replace('_', chr(10), 1).replace('_', ' ')}\n({len(part)})" for name, part in zip(names, parts, strict=True)]
    axes.set_xticks(range(1, len(names) + 1), told, fontsize=8)
    axes.set(title="by device type (number of clients)", ylabel=_label(metric), label=PANELS[1])
    begins_at(axes)
