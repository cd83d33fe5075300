"""The picture of all sizes and export formats: metric, bytes and latency."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raffm_ray.basics.formatting import rounded
from raffm_ray.data.metrics import scaled, shown, unit
from raffm_ray.deployment.model_card import NAMES, at_once
from raffm_ray.reports.drawing import plt, save

MARKS = {"torch": ("o", "#8ab8de", 11, 4), "onnx": ("s", "#2ca02c", 6, 1.5), "int8": ("^", "#d62728", 6, 1.5)}
"""Mark, colour, and the sizes of marks and lines: where forms agree, the first is seen behind the second."""


def write_picture(told: Mapping[str, Mapping[str, Any]], origin: str, folder: Path) -> None:
    """Writes `compare.png` and `compare.md` of what `deploy` measured."""
    metric = next(iter(told.values()))["metric_name"]
    ordered = sorted(told.items(), key=lambda item: -item[1]["params"])
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    label = f"{metric} (held out{', ' + unit(metric) if unit(metric) else ''})"
    for form, (mark, colour, mark_size, width) in MARKS.items():
        points = [(one["layer_fraction"], one["forms"][form]) for _, one in ordered if form in one["forms"]]
        if not points:
            continue
        values = [scaled(metric, values["metric"]) for _, values in points]
        drawn = {"marker": mark, "color": colour, "label": NAMES[form], "markersize": mark_size, "linewidth": width}
        axes[0].plot([100 * size for size, _ in points], values, **drawn)
        axes[1].plot([values["bytes"] / 1e6 for _, values in points], values, **drawn)
        axes[2].plot([values["median_ms"] for _, values in points], values, **drawn)
        for (size, at), value in zip(points, values, strict=True):
            if form == "torch":
                axes[1].annotate(
                    f"{100 * size:.0f}%",
                    (at["bytes"] / 1e6, value),
                    textcoords="offset points",
                    xytext=(0, 9),
                    ha="center",
                    fontsize=8,
                )
    axes[0].set(xlabel="parameters in layers that are kept (%)", ylabel=label, title="size")
    axes[1].set(xlabel="file (MB)", title="bytes on disk")
    axes[2].set(xlabel=f"median of an answer (ms, {at_once(ordered[0][1])}, one thread)", title="time")
    for one in axes:
        one.grid(alpha=0.3)
        one.margins(y=0.15)
    axes[0].legend()
    figure.suptitle(f"Cut out of {origin}")
    save(figure, folder / "compare.png")
    lines = [
        f"| size | form | parameters | {label} | bytes | MACs | memory (estimated, 32 bit floats) | median ms | 95th percentile ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in ordered:
        for form, values in one["forms"].items():
            lines.append(
                f"| {name} | {NAMES[form]} | {one['params']:,} | {shown(metric, values['metric'])} | {values['bytes']:,} | {one['macs']:,} | "
                f"{one['inference_bytes']:,} | {rounded(values['median_ms'])} | {rounded(values['p95_ms'])} |"
            )
    lines += ["", f"Times are of {at_once(ordered[0][1])} of middling length, with one thread."]
    (folder / "compare.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
