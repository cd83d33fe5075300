"""The part of a page that says what every client gets has the values of the records and of the summary."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raffm_ray.reports.client_figures.section import client_section
from raffm_ray.runs.client_metrics.request import SCHEMA
from raffm_ray.runs.client_metrics.statistics import client_summary


def measured(folder: Path, metrics: list[float | None]) -> dict[str, Any]:
    """The summary of a run in which the first half of the clients have phones, and a record of them."""
    rows = [
        {
            "round": 4,
            "client": client,
            "device_type": "phone_small" if client < len(metrics) / 2 else "laptop",
            "group": None,
            "unseen": client == 0,
            "model": model,
            "examples": 4,
            "metric": metric if model == "own" or metric is None else metric / 2,
            "loss": 0.5,
        }
        for client, metric in enumerate(metrics)
        for model in ("own", "full")
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    (folder / "evaluations").mkdir(parents=True)
    pq.write_table(table, folder / "evaluations" / "round-000004.parquet")
    return {"metric": "accuracy", "client_metrics": client_summary("accuracy", table, ["phone_small", "laptop"])}


def test_the_section_has_the_values_of_the_records(tmp_path: Path) -> None:
    metrics = [0.25, 1.0, None, 0.5, 0.75, 0.75]
    section = client_section(
        tmp_path, {"raffm": (tmp_path, measured(tmp_path, metrics)), "fedavg": (tmp_path, {"metric": "accuracy"})}
    )
    overview, by_device_type, by_part = section.tables
    values = dict(zip(overview.headings, overview.rows[0], strict=True))
    assert [row[0].text for row in overview.rows] == ["raffm: own subnetwork", "raffm: full model"]
    assert values["mean over clients (%)"] == ("65.0", 0.65)
    assert values["worst tenth (%)"].order == 0.25
    assert values["worst client"] == ("25.0 (client 0)", 0.25)
    assert values["device type gap"].text == "4.2"
    assert "not defined on the examples of 1 client" in overview.caption
    models = ["own subnetwork", "full model"]
    for table, names in ((by_device_type, ["phone small", "laptop"]), (by_part, ["trained", "unseen"])):
        assert [(row[0].text, row[1].text) for row in table.rows] == [(name, model) for name in names for model in models]
    histogram, boxes = section.pictures
    assert "mean 65.0%, worst tenth 25.0%" in histogram.alt
    assert "phone small 62.5%, laptop 66.7%" in boxes.alt
    assert all(picture.image.startswith(b"\x89PNG") for picture in section.pictures)
    assert histogram.data is not None
    assert len(histogram.data.splitlines()) == 1 + 2 * len(metrics)
    assert (tmp_path / "clients.png").is_file()


def test_the_section_is_empty_where_no_client_was_measured(tmp_path: Path) -> None:
    for summary in ({"metric": "accuracy"}, {"metric": "accuracy", "client_metrics": None}, measured(tmp_path, [None, None])):
        section = client_section(tmp_path, {"raffm": (tmp_path, summary)})
        assert not section.tables
        assert not section.pictures
        assert not section.notes
    assert not (tmp_path / "clients.png").exists()
