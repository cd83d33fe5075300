"""One HTML page of a run that carries its picture (no network needed to read it)."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from raffm_ray.basics.files import read_whole
from raffm_ray.basics.formatting import human_bytes, human_joules, human_seconds
from raffm_ray.data.metrics import shown, unit
from raffm_ray.data.shares import read_shares
from raffm_ray.reports.comparison_table import told_of_lacks
from raffm_ray.reports.drawing import save
from raffm_ray.reports.page_style import STYLE
from raffm_ray.reports.profile_picture import picture_of_profile
from raffm_ray.reports.run_picture import picture
from raffm_ray.reports.share_picture import picture_of_shares
from raffm_ray.reports.summary_table import extended
from raffm_ray.reports.unit_picture import picture_of_units
from raffm_ray.runs.reader import of_a_run, read_rounds, read_summary
from raffm_ray.runs.recorder import ClientRow, RoundRow, schema_of
from raffm_ray.subnetworks.unit_coverage import read_units

PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ summary.name }} - raffm_ray</title>
<style>
{{ style }}
</style></head><body>
<h1>{{ summary.name }}</h1>
<p>{{ summary.clients }} clients, {{ summary.rounds }} rounds{% if extended %} ({{ extended }}){% endif %}, strategy {{ summary.strategy }}, seed {{ summary.seed }}.
Moved {{ moved }}, {{ "%.0f"|format(100 * share) }}% of what full-size FedAvg would have moved in the same rounds.
Simulated time*: {{ simulated }}. {{ wasted }} and {{ wasted_energy }}* went into updates that were never used.</p>
<img alt="metric over rounds, over simulated time, by size, and bytes by class" src="data:image/png;base64,{{ images.report }}">
{% if images.units %}<img alt="which heads and neurons each class keeps, by layer, and how much of the training reached them" src="data:image/png;base64,{{ images.units }}">{% endif %}
{% if images.shares %}<img alt="clients' shares of the data" src="data:image/png;base64,{{ images.shares }}">{% endif %}
{% if images.profile %}<img alt="where every round's real time went" src="data:image/png;base64,{{ images.profile }}">{% endif %}
<table><tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
{% for line in lacks %}<p class="note">{{ line }}.</p>
{% endfor %}<p class="note">Figures marked * are of simulated devices, estimated from data sheets. Parameters of the final model: sha256 {{ summary.params_sha256 }}.</p>
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
    return rows + _over_classes(summary, [summary, *(others[name] for name in baselines)])


def _over_classes(summary: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The rows of the worst class and of the area under the curve of sizes, where the run has them."""
    metric, rows = summary["metric"], []
    if "worst_class" in summary:
        rows.append(
            [
                "worst class",
                "",
                "",
                *(f"{shown(metric, one['worst_class']['metric'])} ({one['worst_class']['name']})" for one in runs),
            ]
        )
    if summary.get("curve"):
        rows.append(["mean over sizes (area under the curve)", "", "", *(shown(metric, one["curve_area"]) for one in runs)])
    return [row + [""] * 4 for row in rows]


def _saved(figure: Figure, image: Path) -> str:
    """Writes a picture; its bytes in base 64."""
    save(figure, image)
    return base64.b64encode(image.read_bytes()).decode()


def _shares(folder: Path) -> Figure | None:
    """None where the run has no record of shares."""
    path = folder / "shares.parquet"
    return picture_of_shares(*read_shares(path), "clients' shares of the data") if path.is_file() else None


def _units(folder: Path) -> Figure | None:
    """None where the run has no record of units."""
    path = folder / "units.parquet"
    return picture_of_units(read_units(path)) if path.is_file() else None


def _lacking(folder: Path) -> str:
    """The columns that this version writes into records and the run's lack, separated by commas."""
    columns: dict[str, None] = {}
    for part, row in (("rounds", RoundRow), ("clients", ClientRow)):
        for first in sorted((folder / part).glob("*.parquet"))[:1]:
            there = pq.read_schema(BytesIO(read_whole(first))).names
            columns |= dict.fromkeys(name for name in schema_of(row).names if name not in there)
    return ", ".join(columns)


def write_report(folder: Path | str) -> tuple[Path, Path]:
    """Writes `report.png`, `shares.png`, `profile.png`, `units.png` and `report.html` into a finished run's folder; returns the first's and the last's path.

    Raises UserError when the folder holds no finished run.
    """
    folder = Path(folder)
    with of_a_run(folder):
        return _written(folder)


def _written(folder: Path) -> tuple[Path, Path]:
    summary = read_summary(folder)
    image, page = folder / "report.png", folder / "report.html"
    drawn = {"report": picture(folder), "shares": _shares(folder), "profile": picture_of_profile(read_rounds(folder))}
    drawn["units"] = _units(folder)
    images = {name: _saved(figure, folder / f"{name}.png") for name, figure in drawn.items() if figure is not None}
    baselines = list(summary.get("baselines", {}))
    sign = f" {unit(summary['metric'])}".rstrip()
    headings = ["model", "parameters", *(f"{name}{sign}" for name in ("start", summary["strategy"], *baselines))]
    headings += ["bytes a round", "device time a round*", "energy a round*", "peak memory*"]
    lacking = _lacking(folder)
    moved = summary["bytes_down"] + summary["bytes_up"]
    text = PAGE.render(
        summary=summary,
        extended=extended(summary),
        lacks=told_of_lacks(lacking, [summary["name"]] if lacking else []),
        style=STYLE,
        images=images,
        headings=headings,
        rows=_rows(summary, baselines),
        moved=human_bytes(moved),
        share=moved / max(1, summary["bytes_full_size"]),
        simulated=human_seconds(summary["simulated_seconds"]),
        wasted=human_bytes(summary["wasted_bytes"]),
        wasted_energy=human_joules(summary["wasted_joules"]),
    )
    page.write_text(text, encoding="utf-8")
    return image, page
