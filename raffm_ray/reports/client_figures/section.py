"""The part of a run's page that says what every client gets: pictures with captions, and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raffm_ray.basics.formatting import counted
from raffm_ray.data.metrics import shown, unit
from raffm_ray.reports.client_figures.picture import FEW, PANELS, picture_of_clients
from raffm_ray.reports.drawing import panels_of, save
from raffm_ray.reports.figure_data import MOST_ROWS
from raffm_ray.reports.page import Cell, Picture, Section, Table, csv_text
from raffm_ray.runs.reader import read_evaluations

MODELS = {
    "own": "own subnetwork",
    "full": "full model",
    "personal": "own subnetwork, own parameters",
    "tuned": "own subnetwork, tuned",
}
TITLE = "What every client gets"
NOTE = (
    "Mean over clients: every client counts the same. Mean over examples: every held-out example does. Worst tenth: the mean of the worst tenth of the "
    "clients; of clients with few examples, it is low by chance alone. Jain's index: 1 where all clients have the same."
)


def client_section(into: Path, runs: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> Section:
    """The section; it is empty where no clients were measured. `runs`: strategy -> (folder, summary), the page's own first; pictures are of that one.

    Writes `clients.png` into `into`.
    """
    name, (place, summary) = next(iter(runs.items()))
    metric, found = summary["metric"], summary.get("client_metrics")
    if not found or not found["own"]:
        return Section(TITLE)
    measured = {one: told for one, (_, other) in runs.items() if (told := other.get("client_metrics")) and told["own"]}
    rows = read_evaluations(place, found["round"])
    figure = picture_of_clients([row for row in rows if row["metric"] is not None], metric, found)
    save(figure, into / "clients.png")
    panels = panels_of(figure, into / "clients.png", [[panel] for panel in PANELS])
    tables = [_overview(metric, measured), *_parts(metric, name, found)]
    return Section(TITLE, tables=tables, pictures=_pictures(panels, metric, found, _data(rows)), notes=[NOTE])


def _data(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """None where there are more than `MOST_ROWS` rows."""
    return None if len(rows) > MOST_ROWS else csv_text(list(rows[0]), [list(row.values()) for row in rows])


def _pictures(panels: Mapping[str, bytes], metric: str, found: Mapping[str, Any], data: str | None) -> list[Picture]:
    own, sign = found["own"], unit(metric)
    spread = f"mean {shown(metric, own['mean_over_clients'])}{sign}, worst tenth {shown(metric, own['worst_tenth'])}{sign}"
    each = ", ".join(
        f"{name.replace('_', ' ')} {shown(metric, one['mean_over_clients'])}{sign}" for name, one in own["device_types"].items()
    )
    return [
        Picture(
            name="clients",
            image=panels[PANELS[0]],
            alt=f"Histogram of {counted(own['clients'], 'client')} by {metric}. Own subnetworks: {spread}.",
            caption=f"Clients by {metric} on their own held-out examples. Filled: each client's own subnetwork. Outlines: the full model, and what else they were measured with.",
            data=data,
            source="evaluations/",
        ),
        Picture(
            name="clients_by_device_type",
            image=panels[PANELS[1]],
            alt=f"Box plots, or points, of clients' {metric} by device type. Means: {each}.",
            caption=f"Clients' {metric} by device type, own subnetworks. Box: the middle half; whiskers: 10% to 90%; line: median; triangle: mean. Of fewer than {FEW} clients, points alone.",
            data=data,
            source="evaluations/",
        ),
    ]


def _cells(metric: str, one: Mapping[str, Any]) -> list[Cell]:
    names = ("mean_over_clients", "mean_over_examples", "standard_deviation", "percentile_10", "worst_tenth")
    return [Cell(f"{one['clients']:,}", one["clients"]), *(Cell(shown(metric, one[name]), one[name]) for name in names)]


def _headings(metric: str) -> list[str]:
    sign = f" ({unit(metric)})" if unit(metric) else ""
    spread = ("mean over clients", "mean over examples", "standard deviation", "10th percentile", "worst tenth")
    return ["clients", *(f"{name}{sign}" for name in spread)]


def _overview(metric: str, measured: Mapping[str, Mapping[str, Any]]) -> Table:
    rows, undefined = [], 0
    for strategy, found in measured.items():
        for model, told in MODELS.items():
            if not (one := found.get(model)):
                continue
            undefined = max(undefined, one["undefined"])
            worst, gap, fair = one["worst_client"], one["device_type_gap"]["gap"], one["jain_index"]
            more = [
                Cell(f"{shown(metric, worst['metric'])} (client {worst['client']})", worst["metric"]),
                Cell(shown(metric, gap), gap),
                Cell("-" if fair is None else f"{fair:.3f}", fair),
            ]
            rows.append([Cell(f"{strategy}: {told}"), *_cells(metric, one), *more])
    lacking = f" It is not defined on the examples of {counted(undefined, 'client')}, who are left out." if undefined else ""
    return Table(
        caption=f"Clients' {metric} on their own held-out examples.{lacking} Gap: between the device types whose clients do best and worst on average.",
        headings=["strategy and model", *_headings(metric), "worst client", "device type gap", "Jain's index"],
        rows=rows,
    )


def _parts(metric: str, name: str, found: Mapping[str, Any]) -> list[Table]:
    """By device type, by group, and of clients that trained and that never did; tables of a single row are left out."""
    kinds = {"device_types": "device type", "groups": "group", "trained_and_unseen": "part in training"}
    tables = []
    for key, kind in kinds.items():
        if len(found["own"][key]) < 2:
            continue
        models = {model: told for model, told in MODELS.items() if found.get(model)}
        rows = [
            [Cell(str(part).replace("_", " ")), Cell(told), *_cells(metric, found[model][key][part])]
            for part in found["own"][key]
            for model, told in models.items()
            if part in found[model][key]
        ]
        caption = f"{name}: clients' {metric} by {kind}."
        tables.append(Table(caption=caption, headings=[kind, "model", *_headings(metric)], rows=rows))
    return tables
