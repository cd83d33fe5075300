"""Who is told of a run: loggers by name, which never end or change it, and callbacks, which may end it."""

import csv
import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_experiment
from documents import forget_rows
from outcomes import shown_by_tensorboard
from rich.console import Console

import raffm_ray
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import check_no_links
from raffm_ray.runs.callbacks import Callback, Listeners, StartedRun
from raffm_ray.runs.loggers import table
from raffm_ray.runs.loggers.content import final_numbers, flat, numbers_of, settings_of
from raffm_ray.runs.loggers.mlflow_run import log_to_mlflow
from raffm_ray.runs.loggers.table import LOGGERS, chosen_loggers
from raffm_ray.runs.loggers.wandb_run import log_to_wandb
from raffm_ray.runs.reader import read_summary
from raffm_ray.runs.resuming import recorded_rounds
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.runs.simulation import simulate

ROOT = Path(__file__).parents[2]


class StopError(Exception):
    pass


@pytest.fixture
def loggers() -> Iterator[None]:
    """`fails` raises in round 1, `spoils` changes all that it is given, `nothing` is none."""

    def fail(row: RoundRow) -> None:
        if row.round:
            raise ConnectionError("no answer")

    def spoil(told: Any) -> None:
        (told if isinstance(told, dict) else told.device_type_metrics).clear()

    raffm_ray.logger("fails")(lambda run: Callback(round=fail, end=fail))
    raffm_ray.logger("spoils")(lambda run: Callback(round=spoil, end=spoil))
    raffm_ray.logger("nothing")(lambda run: None)
    yield
    forget_rows(__name__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody is told of, ended by a callback and gone on with."""
    place = tmp_path_factory.mktemp("told") / "run"
    heard: list[tuple[str, Any]] = []

    def stop(row: RoundRow) -> None:
        heard.append(("round", row.round))
        if row.round == 1:
            raise StopError

    first = Callback(
        start=lambda run: heard.append(("start", len(run.rounds))),
        round=stop,
        interrupted=lambda error: heard.append(("interrupted", type(error))),
    )
    with pytest.raises(StopError):
        simulate(tiny_experiment(loggers=[]), place, callbacks=[first])
    assert heard == [("start", 0), ("round", 0), ("round", 1), ("interrupted", StopError)]
    heard.clear()
    again = Callback(
        start=lambda run: heard.append(("start", len(run.rounds))),
        round=lambda row: heard.append(("round", row.round)),
        evaluation=lambda row: heard.append(("evaluation", row.metric)),
        end=lambda summary: heard.append(("end", summary["full_model"])),
    )
    summary = raffm_ray.resume(place, callbacks=[again], report=lambda folder: heard.append(("report", folder)))
    metric = summary["full_model"]
    assert heard == [("start", 2), ("round", 2), ("evaluation", metric), ("report", place), ("end", metric)]
    return place


@pytest.fixture
def rows(folder: Path) -> list[RoundRow]:
    return recorded_rounds(folder)


def test_a_logger_that_fails_neither_ends_nor_changes_a_run_and_is_told_of_once(folder, rows, loggers, tmp_path) -> None:
    console = Console(record=True, width=300, quiet=False, file=(tmp_path / "told.txt").open("w"))
    names = ["fails", "spoils", "nothing", "csv", "tensorboard"]
    summary = simulate(tiny_experiment(loggers=names), tmp_path / "run", console=console)
    before = read_summary(folder)
    assert summary["params_sha256"] == before["params_sha256"]
    metrics = {name: one["metric"] for name, one in before["device_types"].items()}
    assert {name: one["metric"] for name, one in summary["device_types"].items()} == metrics
    told = [line.strip() for line in console.export_text().splitlines() if "note: loggers" in line]
    assert told == [
        "note: loggers: nothing failed, and is told nothing more of this run, which goes on: TypeError: expected a raffm_ray.Callback, got NoneType",
        "note: loggers: fails failed, and is told nothing more of this run, which goes on: ConnectionError: no answer",
    ]
    with (tmp_path / "run" / "rounds.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, rows, strict=True):
        values = {name: float(value) for name, value in line.items() if value}
        assert values == {"round": row.round, **numbers_of(row)}
    shown = shown_by_tensorboard(tmp_path / "run")
    assert shown["device_type_metric/laptop"] == [
        (row.round, pytest.approx(row.device_type_metrics["laptop"])) for row in (rows[0], rows[2])
    ]


def test_control_without_a_copy_a_logger_would_change_the_run(rows, monkeypatch) -> None:
    def clear(row: RoundRow) -> None:
        row.device_type_metrics.clear()

    for copied, left in ((None, True), (lambda told: told, False)):
        if copied:
            monkeypatch.setattr("raffm_ray.runs.callbacks.deepcopy", copied)
        listeners = Listeners(loggers={"one": lambda run: Callback(round=clear), "none": lambda run: None})
        with pytest.warns(UserWarning, match="loggers: none failed"):
            listeners.start(StartedRun(Path(), tiny_experiment()))
        listeners.round(rows[2])
        assert bool(rows[2].device_type_metrics) is left


def test_a_logger_must_be_known_and_its_library_installed_before_work_starts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^loggers: mlflow needs the library mlflow, which is not installed: pip install 'raffm-ray\[mlflow\]'$"
    ):
        simulate(tiny_experiment(loggers=["csv", "mlflow"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert list(chosen_loggers(tiny_experiment(loggers=["csv"]))) == ["csv"]
    with pytest.raises(UserError, match=r"^loggers 'mlflo' is not known \(did you mean 'mlflow'\?\)$"):
        chosen_loggers(tiny_experiment(loggers=["mlflo"]))
    with pytest.raises(UserError, match="every logger once"):
        tiny_experiment(loggers=["csv", "csv"])
    extras = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{row.extra} = [" in extras for row in LOGGERS.values() if row.extra)


def test_libraries_of_loggers_are_imported_by_their_loggers_alone() -> None:
    imported = re.compile(r"^( *)(?:import|from) (?:torch\.utils\.)?(mlflow|wandb|tensorboard)\b", re.MULTILINE)
    found = {
        (path.stem, name, bool(indent))
        for path in (ROOT / "raffm_ray").rglob("*.py")
        for indent, name in imported.findall(path.read_text())
    }
    assert found == {(path, name, True) for name, path in (("mlflow", "mlflow_run"), ("wandb", "wandb_run"))} | {
        ("tensorboard_events", "tensorboard", True)
    }


def stored(content: bytes) -> Iterator[bytes]:
    """The records of a file of W&B: LevelDB's log format, in blocks of 32 kB, after a header of 7 bytes."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if position + 7 + length > len(content):
            return
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""


def test_wandb_keeps_a_run_offline_that_was_interrupted(folder, rows, tmp_path, monkeypatch) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("API_KEY_OF_A_TEST", "not-for-others")
    place = tmp_path / "run"
    place.mkdir()
    experiment = tiny_experiment(task={"subset": "not-for-others"})
    log_to_wandb(StartedRun(place, experiment, tuple(rows[:1]))).interrupted(StopError())
    (place / "report.html").write_text("a page")
    callback = log_to_wandb(StartedRun(place, experiment, tuple(rows[:2])))
    check_no_links(place)
    callback.round(rows[2])
    callback.end(read_summary(folder))
    check_no_links(place)
    (file,) = place.glob("wandb/*/*.wandb")
    records, end = list[Any](), time.monotonic() + 60
    while not any(record.WhichOneof("record_type") == "exit" for record in records):  # another process writes it
        assert time.monotonic() < end
        time.sleep(0.05)
        records = [wandb_internal_pb2.Record.FromString(data) for data in stored(file.read_bytes())]
    history = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [{key: one for key, one in step.items() if not key.startswith("_")} for step in history] == [
        numbers_of(row) for row in rows
    ]
    assert [step["_step"] for step in history] == [0, 1, 2]
    kinds = [record.WhichOneof("record_type") for record in records]
    assert {"run", "summary", "exit"} <= set(kinds)
    assert any("artifact" in str(record) and "report.html" in str(record) for record in records)
    assert b"not-for-others" not in file.read_bytes()
    assert b"$API_KEY_OF_A_TEST" in file.read_bytes()


def test_mlflow_goes_on_with_a_run_in_its_folder_and_at_a_server(folder, rows, tmp_path, monkeypatch) -> None:
    from mlflow.tracking import MlflowClient

    place = tmp_path / "run"
    place.mkdir()
    (place / "report.html").write_text("a page")
    experiment = tiny_experiment()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = log_to_mlflow(StartedRun(place, experiment))
    for row in rows[:2]:
        first.round(row)
    first.interrupted(StopError())
    store = f"sqlite:///{place / 'mlflow' / 'mlflow.db'}"
    run_id = json.loads((place / "loggers.json").read_text())["mlflow"]
    assert MlflowClient(store).get_run(run_id).info.status == "KILLED"

    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", store)
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    from mlflow.server import app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any, **__: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    again = log_to_mlflow(StartedRun(place, experiment, tuple(rows[:2])))
    again.round(rows[2])
    summary = read_summary(folder)
    again.end(summary)
    client = MlflowClient(address)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"{tmp_path.name}/run"
    metrics = {name: [(one.step, one.value) for one in client.get_metric_history(run_id, name)] for name in run.data.metrics}
    told = {name: [(row.round, one[name]) for row in rows if name in (one := numbers_of(row))] for name in numbers_of(rows[2])}
    assert metrics == told | {name: [(2, value)] for name, value in final_numbers(summary).items()}
    params = {name: str(value) for name, value in flat(settings_of(experiment)).items()}
    assert run.data.params == params
    assert params["clients.per_round"] == "5"
    assert {one.path for one in client.list_artifacts(run_id)} == {"report.html"}
    server.shutdown()
