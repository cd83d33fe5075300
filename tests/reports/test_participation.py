"""Who took part: the summary counts the records, and the part of a page shows the summary."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_experiment
from quick import RICH, quick
from rich.console import Console

from raffm_ray.clients.local_training import one_thread
from raffm_ray.preparation.prepare import prepare
from raffm_ray.reports.client_figures.participation import participation_section
from raffm_ray.runs.client_metrics.participation import participation
from raffm_ray.runs.loop import Environment
from raffm_ray.runs.reader import read_clients
from raffm_ray.runs.simulation import completed


def record(folder: Path, rounds: list[dict[int, str]]) -> None:
    """Records of rounds from 0 on: client -> outcome."""
    (folder / "clients").mkdir()
    for number, outcomes in enumerate(rounds):
        table = pa.table({"client": list(outcomes), "outcome": list(outcomes.values()), "loss": [0.0] * len(outcomes)})
        pq.write_table(table, folder / "clients" / f"round-{number:06d}.parquet")


ROUNDS = [{0: "used", 1: "used"}, {0: "used", 3: "dropped"}, {0: "used", 1: "stale", 2: "late"}, {0: "used", 2: "used"}]


def counted(folder: Path, rounds: list[dict[int, str]] = ROUNDS) -> dict[str, Any]:
    record(folder, rounds)
    return participation(prepare(tiny_experiment()).setup, folder, len(rounds) - 1)


def test_the_summary_counts_what_came_of_every_clients_rounds(tmp_path: Path) -> None:
    found, setup = counted(tmp_path), prepare(tiny_experiment()).setup
    outcomes = [(client, outcome) for one in ROUNDS[1:] for client, outcome in one.items()]
    kinds = {"arrived": ("used",), "late": ("late", "stale"), "dropped": ("dropped",)}
    for name, one in found["device_types"].items():
        mine = [outcome for client, outcome in outcomes if setup.device_types[client] == name]
        assert one["chosen"] == len(mine)
        for what, which in kinds.items():
            assert one[what] == sum(outcome in which for outcome in mine)
    assert sum(one["clients"] for one in found["device_types"].values()) == 12
    assert found["never_arrived"] == 10
    assert found["clients_by_times_arrived"] == {"0": 10, "1": 1, "3": 1}
    assert found["jain_index"] == pytest.approx(16 / (12 * 10))


def test_control_another_outcome_is_another_summary(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    other = [*ROUNDS[:3], {0: "used", 2: "dropped"}]
    assert counted(tmp_path / "one") != counted(tmp_path / "other", other)


def test_a_run_tells_who_took_part_and_all_that_were_chosen_are_counted(out: Path) -> None:
    with one_thread():
        prepared, start, pool = quick(**RICH)
        summary = completed(prepared, start, out, Environment(pool, Console(quiet=True)))
    rows = [row for row in read_clients(out) if row["round"]]
    found = summary["participation"]["device_types"]
    assert sum(one["chosen"] for one in found.values()) == len(rows)
    assert sum(one["arrived"] for one in found.values()) == sum(row["outcome"] == "used" for row in rows)
    assert sum(one["clients"] for one in found.values()) == int(prepared.setup.owners.sum())


def test_the_section_has_the_values_of_the_summary(tmp_path: Path) -> None:
    found = counted(tmp_path)
    section = participation_section(tmp_path, {"participation": found})
    (table,) = section.tables
    for row, (name, one) in zip(table.rows, found["device_types"].items(), strict=True):
        assert [cell.order for cell in row[1:]] == [one[key] for key in ("clients", "chosen", "arrived", "late", "dropped")]
        assert row[0].text == name.replace("_", " ")
    bars, histogram = section.pictures
    assert all(picture.image.startswith(b"\x89PNG") for picture in section.pictures)
    assert histogram.data is not None
    assert histogram.data.split() == ["rounds_arrived,clients", "0,10", "1,1", "3,1"]
    assert "Never: 10 clients" in histogram.alt
    weakest = next(iter(found["device_types"]))
    one = found["device_types"][weakest]
    assert f"{weakest.replace('_', ' ')} {one['chosen'] / one['clients']:.3g}" in bars.alt
    assert (tmp_path / "participation.png").is_file()


def test_the_section_is_empty_of_a_run_that_does_not_say(tmp_path: Path) -> None:
    section = participation_section(tmp_path, {"metric": "accuracy"})
    assert [*section.tables, *section.pictures] == []
    assert not list(tmp_path.iterdir())
