"""Pictures of a run, and one HTML page that carries them (no network needed to read it)."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("Agg")
import pyarrow.parquet as pq
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raffm_ray.display import human_bytes, human_joules, human_seconds, time_unit
from raffm_ray.errors import UserError
from raffm_ray.metrics import METRICS, scaled, shown, unit, worst
from raffm_ray.share_picture import picture_of_shares
from raffm_ray.shares import read_shares

COLORS = ("#3b6fb6", "#d1701c", "#3d8f58", "#9a4fa0", "#7a6a53")
"""One for every strategy shown; chosen to differ in lightness too."""


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """A run's round records, in order. Raises UserError when there are none or one is damaged."""
    files = sorted((folder / "rounds").glob("*.parquet"))
    if not files:
        raise UserError(f"{folder}: no finished run here (rounds/ holds no records)")
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            rows += pq.ParquetFile(file).read().to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: damaged or not a record of a round: {str(error).splitlines()[0]}") from None
    return rows


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary. Raises UserError when it is missing or unreadable."""
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{folder}: no finished run here (summary.json is missing)")
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(summary, dict) or not {"name", "strategy", "tiers", "global", "bytes_full_size"} <= set(summary):
        raise UserError(f"{path}: not the summary of a run")
    return summary


def _runs(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The run itself and its baselines, by strategy."""
    summary = read_summary(folder)
    runs = {str(summary["strategy"]): (folder, summary)}
    for name in summary.get("baselines", {}):
        runs[name] = (folder / "baselines" / name, read_summary(folder / "baselines" / name))
    return runs


def _label(metric: str) -> str:
    return f"held-out {metric}{' (%)' if unit(metric) else ''}"


def _curves(axes: Axes, runs: Mapping[str, tuple[Path, dict[str, Any]]], metric: str, over: str, scale: float = 1.0) -> None:
    """The full model's metric and the worst class's, against a column of the rounds' records divided by `scale`."""
    for (name, (folder, _)), color in zip(runs.items(), COLORS, strict=False):
        rows = [row for row in read_rounds(folder) if row["metric"] is not None]
        places = [row[over] / scale for row in rows]
        worst_class = [scaled(metric, worst(metric, list(dict(row["class_metrics"]).values()))) for row in rows]
        full = [scaled(metric, row["metric"]) for row in rows]
        axes.plot(places, full, color=color, marker="o", markersize=3, label=f"{name}, full model")
        axes.plot(places, worst_class, color=color, linestyle="--", marker="o", markersize=3, label=f"{name}, worst class")
    axes.set_ylabel(_label(metric))


def _over_rounds(axes: Axes, runs: Mapping[str, tuple[Path, dict[str, Any]]], metric: str) -> None:
    _curves(axes, runs, metric, "round")
    axes.set(title=f"{metric} over rounds", xlabel="round")


def _over_time(axes: Axes, runs: Mapping[str, tuple[Path, dict[str, Any]]], metric: str) -> None:
    scale, name = time_unit(max(summary["simulated_seconds"] for _, summary in runs.values()))
    _curves(axes, runs, metric, "simulated_seconds", scale)
    axes.set(title=f"{metric} over simulated time", xlabel=f"{name} of the simulated devices (estimated)")


def _over_size(axes: Axes, runs: Mapping[str, tuple[Path, dict[str, Any]]], metric: str) -> None:
    own, first = next(iter(runs.items()))
    tiers = sorted(first[1]["tiers"].items(), key=lambda item: item[1]["params_fraction"])
    sizes = [100 * tier["params_fraction"] for _, tier in tiers]
    axes.plot(
        sizes,
        [scaled(metric, tier["start"]) for _, tier in tiers],
        color="#8a8a8a",
        linestyle=":",
        marker="s",
        markersize=4,
        label="before training",
    )
    for (name, (_, summary)), color in zip(runs.items(), COLORS, strict=False):
        points = sorted((100 * tier["params_fraction"], scaled(metric, tier["metric"])) for tier in summary["tiers"].values())
        axes.plot(
            *zip(*points, strict=True), color=color, linestyle="-" if name == own else "--", marker="o", markersize=5, label=name
        )
    for size in sizes:
        axes.axvline(size, color="#8a8a8a", alpha=0.25, linewidth=1, zorder=0)
    names = axes.secondary_xaxis("top")
    names.set_xticks(sizes, [device.replace("_", " ") for device, _ in tiers], rotation=25, ha="left", fontsize=8)
    names.tick_params(length=0)
    names.spines["top"].set_visible(False)
    axes.set(xlabel="parameters kept (% of the full model)", ylabel=_label(metric))
    axes.set_title("each class's own subnetwork", pad=8)
    axes.margins(x=0.08, y=0.1)


def _bytes(axes: Axes, runs: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    own = next(iter(runs.values()))[1]
    tiers = sorted(own["tiers"].items(), key=lambda item: item[1]["params_fraction"])
    full_size = 4 * own["params"] * 2
    moved = [100 * (tier["bytes_down"] + tier["bytes_up"]) / full_size for _, tier in tiers]
    bars = axes.barh([name.replace("_", " ") for name, _ in tiers], moved, color=COLORS[0])
    axes.bar_label(
        bars,
        [human_bytes(tier["bytes_down"] + tier["bytes_up"]) for _, tier in tiers],
        padding=5,
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
    whole = own["bytes_down"] + own["bytes_up"]
    axes.axvline(100 * whole / own["bytes_full_size"], color=COLORS[1], linestyle="--", zorder=0)
    axes.set(title="bytes a client moves in a round", xlabel="% of full-size FedAvg's (dashed: this whole run)")
    axes.margins(x=0.2)


def picture(folder: Path) -> Figure:
    """Metric over rounds and over simulated time; each class's metric against its size; bytes by class."""
    runs = _runs(folder)
    summary = next(iter(runs.values()))[1]
    figure, panels = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    over_rounds, over_time, over_size, moved = panels.flat
    _over_rounds(over_rounds, runs, summary["metric"])
    _over_time(over_time, runs, summary["metric"])
    _over_size(over_size, runs, summary["metric"])
    _bytes(moved, runs)
    for one in (over_rounds, over_time, over_size):
        one.grid(alpha=0.25, axis="y" if one is over_size else "both")
        one.spines[["top", "right"]].set_visible(False)
    for one in (over_rounds, over_size):
        one.legend(fontsize=8, loc="lower right" if METRICS[summary["metric"]].higher else "upper right")
    moved.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{summary['name']}: {summary['clients']} clients, {summary['rounds']} rounds, seed {summary['seed']}")
    return figure


PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ summary.name }} - raffm_ray</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; background: #fff; } .note { color: #666; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } th, td { border-color: #444; } .note { color: #999; } }
</style></head><body>
<h1>{{ summary.name }}</h1>
<p>{{ summary.clients }} clients, {{ summary.rounds }} rounds, strategy {{ summary.strategy }}, seed {{ summary.seed }}.
Moved {{ moved }}, {{ "%.0f"|format(100 * share) }}% of what full-size FedAvg would have moved in the same rounds.
Simulated time*: {{ simulated }}. {{ wasted }} and {{ wasted_energy }}* went into updates that were never used.</p>
<img alt="metric over rounds, over simulated time, by size, and bytes by class" src="data:image/png;base64,{{ image }}">
{% if shares %}<img alt="clients' shares of the data" src="data:image/png;base64,{{ shares }}">{% endif %}
<table><tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<p class="note">Figures marked * are of simulated devices, estimated from data sheets. Parameters of the final model: sha256 {{ summary.params_sha256 }}.</p>
</body></html>
""",
    autoescape=True,
)


def _rows(summary: Mapping[str, Any], baselines: Sequence[str]) -> list[list[str]]:
    others, metric = summary.get("baselines", {}), summary["metric"]
    rows = [["full model", f"{summary['params']:,}", shown(metric, summary["start"]), shown(metric, summary["global"])]]
    rows[0] += [shown(metric, others[name]["global"]) for name in baselines] + [""] * 4
    for device, tier in summary["tiers"].items():
        row = [device, f"{tier['params']:,}", shown(metric, tier["start"]), shown(metric, tier["metric"])]
        row += [shown(metric, others[name]["tiers"][device]["metric"]) for name in baselines]
        row += [human_bytes(tier["bytes_down"] + tier["bytes_up"]), human_seconds(tier["round_seconds"])]
        rows.append([*row, human_joules(tier["energy_joules"]), human_bytes(tier["peak_memory_bytes"])])
    return rows


def _shares(folder: Path) -> str:
    """Writes `shares.png`; its bytes in base 64. Nothing where the run has no record of shares."""
    path, image = folder / "shares.parquet", folder / "shares.png"
    if not path.is_file():
        return ""
    figure = picture_of_shares(*read_shares(path), "clients' shares of the data")
    figure.savefig(image, dpi=110)
    plt.close(figure)
    return base64.b64encode(image.read_bytes()).decode()


def write_report(folder: Path) -> tuple[Path, Path]:
    """Writes `report.png`, `shares.png` and `report.html` into a finished run's folder; returns the first's and the last's path.

    Raises UserError when the folder holds no finished run.
    """
    summary = read_summary(folder)
    figure = picture(folder)
    image, page = folder / "report.png", folder / "report.html"
    figure.savefig(image, dpi=110)
    plt.close(figure)
    shares = _shares(folder)
    baselines = list(summary.get("baselines", {}))
    sign = f" {unit(summary['metric'])}".rstrip()
    headings = ["model", "parameters", *(f"{name}{sign}" for name in ("start", summary["strategy"], *baselines))]
    headings += ["bytes a round", "device time a round*", "energy a round*", "peak memory*"]
    moved = summary["bytes_down"] + summary["bytes_up"]
    text = PAGE.render(
        summary=summary, image=base64.b64encode(image.read_bytes()).decode(), headings=headings, rows=_rows(summary, baselines),
        moved=human_bytes(moved), share=moved / summary["bytes_full_size"], shares=shares,
        simulated=human_seconds(summary["simulated_seconds"]), wasted=human_bytes(summary["wasted_bytes"]),
        wasted_energy=human_joules(summary["wasted_joules"]),
    )  # fmt: skip
    page.write_text(text, encoding="utf-8")
    return image, page
