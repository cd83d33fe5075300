"""Runs of versions that called things otherwise: they are read, shown and gone on with under today's names."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import tiny_experiment
from outcomes import shown_by_tensorboard, without_real

from raffm_ray.basics.errors import UserError
from raffm_ray.reports.comparisons.report import labels, write_comparison
from raffm_ray.runs import checkpoint
from raffm_ray.runs.reader import read_configuration, read_rounds, read_summary, with_present_keys
from raffm_ray.runs.recorder import digest_of, record_names
from raffm_ray.runs.resuming import ADDED, FREE
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.runs.simulation import resume, simulate
from raffm_ray.settings.loading import dump, load, parse

NEW = {"full_model": "global", "device_types": "tiers", "worst_device_type": "worst_class"}
COLUMNS = {
    "device_type_metrics": "class_metrics",
    "device_type_params": "class_params",
    "validation_device_type_metrics": "validation_class_metrics",
}
EXPERIMENT = tiny_experiment(
    rounds=3,
    local={"steps": 1},
    model={"pretrain": {"epochs": 1}},
    task={"validation": 60},
    evaluation={"every": 1, "sizes": 0, "watch": "full_model"},
)


def old_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary with the former keys alone."""
    old = {key: value for key, value in summary.items() if key not in ("global", "tiers")}
    old = {NEW.get(key, key): value for key, value in old.items()}
    old["validation"] = {NEW[key]: value for key, value in summary["validation"].items()}
    if "baselines" in summary:
        old["baselines"] = {name: old_summary(one) for name, one in summary["baselines"].items()}
    return old


def old_digest(folder: Path, watch: str) -> str:
    """As an earlier version digested the settings."""
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["evaluation"]["watch"] = watch
    for key in (*FREE, *ADDED, "plugins"):
        *sections, name = key.split(".")
        (values[sections[0]] if sections else values).pop(name)
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def make_old(folder: Path, watch: str = "global") -> None:
    """Gives a run's settings, records, checkpoints and summary the names, and the digest, of an earlier version."""
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("watch: full_model", "watch: global"))
    digests = [""]
    for number in range(len(list((folder / "rounds").iterdir()))):
        path = folder / record_names(number)[0]
        table = pq.read_table(path)
        pq.write_table(
            table.rename_columns([COLUMNS.get(name, name) for name in table.column_names]), path, write_page_checksum=True
        )
        digests.append(digest_of(digests[-1], [(folder / name).read_bytes() for name in record_names(number)]))
    for place in (folder / "checkpoints").glob("round-*"):
        kept = checkpoint.read(place)
        shutil.rmtree(place)
        origin = {**kept.origin, "config.yaml": old_digest(folder, watch)}
        checkpoint.write(place.parent, replace(kept, origin=origin, records=digests[kept.state.round + 1]), 99)
    if (folder / "summary.json").is_file():
        (folder / "summary.json").write_text(json.dumps(old_summary(json.loads((folder / "summary.json").read_text()))))


class StopError(Exception):
    """Ends a run."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`half`: a run as it was after round 2; `whole`: the same at its end."""
    place = tmp_path_factory.mktemp("former")

    def stop(row: RoundRow) -> None:
        if row.round == 2:
            raise StopError

    with pytest.raises(StopError):
        simulate(EXPERIMENT, place / "half", on_round=stop)
    simulate(EXPERIMENT, place / "whole")
    return place


@pytest.fixture
def whole(folders: Path) -> Path:
    return folders / "whole"


@pytest.fixture
def half(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders / "half", tmp_path / "half"))


def test_a_summary_has_the_two_former_keys_that_others_read(whole) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["global"], summary["tiers"]) == (summary["full_model"], summary["device_types"])
    assert "worst_class" not in summary


def test_a_summary_of_an_earlier_version_is_read(whole, tmp_path) -> None:
    summary = read_summary(whole)
    assert with_present_keys(summary) == summary
    old = Path(shutil.copytree(whole, tmp_path / "old"))
    make_old(old)
    kept = json.loads((old / "summary.json").read_text())
    assert not set(NEW) & set(kept)  # control
    (old / "summary.json").write_text(json.dumps(kept | {"baselines": {"other": kept}}))
    found = read_summary(old)
    for one in (found, found["baselines"]["other"]):
        assert {key: one[key] for key in (*NEW, "start")} == {key: summary[key] for key in (*NEW, "start")}
        assert {key: one["validation"][key] for key in NEW} == summary["validation"]
    assert read_rounds(old) == read_rounds(whole)
    (old / "summary.json").write_text(json.dumps({key: value for key, value in kept.items() if key != "tiers"}))
    with pytest.raises(UserError, match="not the summary of a run"):
        read_summary(old)


@pytest.mark.parametrize("summary", [{"global": 1, "validation": 3, "baselines": {"full": 3}}, {"baselines": [1]}, {}])
def test_a_summary_of_no_known_form_is_left_as_it_is(summary) -> None:
    assert {key: value for key, value in with_present_keys(summary).items() if key in summary} == summary


def test_a_run_of_an_earlier_version_is_compared_with_one_of_this(whole, tmp_path) -> None:
    old = Path(shutil.copytree(whole, tmp_path / "old"))
    make_old(old)
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"seed": 1}))
    write_comparison([old, other], tmp_path / "both")
    content = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert list(content["strategies"]) == ["raffm"]  # `watch` is the same, although the files differ
    assert content["strategies"]["raffm"]["full_model"]["values"] == [summary["full_model"]] * 2
    texts = [(folder / "config.yaml").read_text() for folder in (old, other)]
    assert texts[0] != texts[1]  # control
    assert len(set(labels([read_configuration(folder)[1] for folder in (old, other)]))) == 1


def test_a_run_of_an_earlier_version_goes_on(whole, half) -> None:
    make_old(half)
    assert "class_metrics" in pq.read_schema(half / record_names(2)[0]).names
    summary = resume(half)
    assert without_real(summary) == without_real(json.loads((whole / "summary.json").read_text()))
    assert without_real(read_rounds(half)) == without_real(read_rounds(whole))
    assert shown_by_tensorboard(half) == shown_by_tensorboard(whole)
    assert "class_metrics" in pq.read_schema(half / record_names(2)[0]).names  # nothing that is recorded is written again
    assert "device_type_metrics" in pq.read_schema(half / record_names(3)[0]).names


def test_control_a_run_that_watched_something_else_does_not_go_on(half) -> None:
    make_old(half, watch="worst")
    with pytest.raises(UserError, match=r"config.yaml is not what it was when the run began"):
        resume(half)


def test_a_value_s_former_name_is_accepted(tmp_path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(dump(EXPERIMENT).replace("watch: full_model", "watch: global"))
    assert load(path) == EXPERIMENT
    assert load(path, ["--evaluation.watch", "worst"]) != EXPERIMENT  # control
    for wrong in ("globl", ["global"], {"global": 1}):
        with pytest.raises(UserError, match=r"evaluation.watch: .*'full_model', 'worst' or 'mean'"):
            parse({**EXPERIMENT.model_dump(mode="json"), "evaluation": {"watch": wrong}})


def test_records_keep_their_types(whole) -> None:
    schema = pq.read_schema(whole / record_names(1)[0])
    assert schema.field("device_type_metrics").type == pa.map_(pa.string(), pa.float64())
