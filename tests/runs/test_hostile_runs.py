"""A run's folder of which something is damaged: it goes on to the same bits, or one line says what is wrong, and nothing is overwritten."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import CHECKPOINTS, TRIED, VALUES, amount, bounded, content, damaged, many, one_clear_line, settled
from hypothesis import given
from hypothesis import strategies as st
from outcomes import without_real
from quick import RICH, quick
from safetensors.numpy import save_file

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main as cli
from raffm_ray.runs.checkpoint import ARRAYS, MANIFEST, SUMS
from raffm_ray.runs.simulation import resume, simulate

KIND = "records and summaries that are read"
RARE = {**RICH, "clients": {**RICH["clients"], "per_round": 3}}


class Interrupted(BaseException):
    """Nobody takes it for an error."""


def _go_on(folder: Path) -> dict[str, Any]:
    return resume(folder, pool=quick(**RARE)[2])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A run that was interrupted before its last round was recorded, one that was not, and the summary of both, but for real time."""
    folder, patch = tmp_path_factory.mktemp("runs"), pytest.MonkeyPatch()
    prepared, _, pool = quick(**RARE)
    simulate(prepared.setup.experiment, folder / "finished", pool=pool)

    def interrupted(*_: Any, **__: Any) -> None:
        raise Interrupted

    patch.setattr("raffm_ray.runs.recorder.Recorder.finish", interrupted)
    with pytest.raises(Interrupted):
        simulate(prepared.setup.experiment, folder / "interrupted", pool=pool)
    patch.undo()
    summary = without_real(json.loads((folder / "finished" / "summary.json").read_text()))
    shutil.copytree(folder / "interrupted", folder / "whole")
    assert without_real(_go_on(folder / "whole")) == summary  # control: what is not damaged goes on to the same
    return folder / "interrupted", folder / "finished", summary


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is prepared of one experiment is prepared once, and pictures are drawn but not painted."""
    import raffm_ray.runs.simulation
    from raffm_ray.preparation.prepare import Prepared, prepare
    from raffm_ray.settings.experiment import Experiment

    @cache
    def once(text: str) -> Prepared:
        return prepare(Experiment.model_validate_json(text))

    monkeypatch.setattr(raffm_ray.runs.simulation, "prepare", lambda experiment: once(experiment.model_dump_json()))

    def saved(figure: Any, image: Path) -> None:
        import matplotlib.pyplot as plt

        image.write_bytes(b"")
        plt.close("all")

    monkeypatch.setattr("raffm_ray.reports.run_report.save", saved)
    monkeypatch.setattr("raffm_ray.reports.run_report.panels_of", lambda *_: defaultdict(bytes))
    monkeypatch.setattr("raffm_ray.reports.page._size", lambda image: (1, 1))


def files(folder: Path) -> list[Path]:
    """All that a run reads back, checkpoints first."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts and not path.name.startswith(".")
    )


def test_a_run_goes_on_to_the_same_bits_or_says_why_not(runs, tmp_path) -> None:
    interrupted, _, summary = runs
    rng, went_on, refused = np.random.default_rng(1), 0, 0
    names = [path.relative_to(interrupted) for path in files(interrupted)]
    for number in range(amount(360, 18)):
        folder = tmp_path / str(number)
        shutil.copytree(interrupted, folder)
        for name in rng.choice(names, 1 + int(rng.integers(2)), replace=False) if number >= len(names) else [names[number]]:
            (folder / name).write_bytes(damaged((folder / name).read_bytes(), rng))
        before = content(folder)
        result = settled(CHECKPOINTS, lambda folder=folder: _go_on(folder))
        if isinstance(result, UserError):
            refused += 1
            assert content(folder) == before, result
        else:
            went_on += 1
            assert without_real(result) == summary
        shutil.rmtree(folder)
    assert went_on
    assert refused


@pytest.mark.parametrize("way", ["a folder", "empty", "not there", "a pipe", "a link to itself", "a device that never ends"])
def test_what_is_not_a_file_is_no_file(runs, tmp_path, way) -> None:
    interrupted, finished, _ = runs
    for source, call in ((interrupted, _go_on), (finished, _report)):
        names = [path.relative_to(source) for path in files(source)]
        for name in names[:: amount(1, 4)]:
            folder = tmp_path / "run"
            shutil.copytree(source, folder)
            _replaced(folder / name, way)
            settled(KIND, lambda folder=folder, call=call: call(folder))
            shutil.rmtree(folder)


def _replaced(path: Path, way: str) -> None:
    path.unlink()
    makers: dict[str, Callable[[], Any]] = {
        "a folder": path.mkdir,
        "empty": path.touch,
        "not there": lambda: None,
        "a pipe": lambda: os.mkfifo(path),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a device that never ends": lambda: path.symlink_to("/dev/zero"),
    }
    makers[way]()


def _report(folder: Path) -> Any:
    from raffm_ray.reports.run_report import write_report

    return write_report(folder)


def test_a_report_of_a_damaged_run_is_there_or_one_line_says_why_not(runs, tmp_path) -> None:
    _, finished, _ = runs
    rng = np.random.default_rng(2)
    read = [
        name
        for name in (path.relative_to(finished) for path in files(finished))
        if name.parts[0] in ("summary.json", "rounds", "shares.parquet")
    ]
    for _ in range(amount(250, 12)):
        folder = tmp_path / "run"
        shutil.copytree(finished, folder)
        name = read[int(rng.integers(len(read)))]
        (folder / name).write_bytes(damaged((folder / name).read_bytes(), rng))
        settled(KIND, lambda folder=folder: _report(folder))
        shutil.rmtree(folder)


def _inside(draw: Callable[[Any], Any], value: Any) -> Any:
    """A JSON value of which something is another."""
    if draw(st.integers(0, 2)) == 0 or not isinstance(value, dict | list) or not value:
        return draw(VALUES.filter(lambda one: not isinstance(one, bytes) and not hasattr(one, "year")))
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    result = dict(value) if isinstance(value, dict) else list(value)
    way = draw(st.integers(0, 3))
    if way == 0:
        del result[key]
    elif way == 1 and isinstance(result, dict):
        result["other"] = result.pop(key)
    else:
        result[key] = _inside(draw, value[key])
    return result


@many(250, 10)
@given(data=st.data())
def test_no_summary_whatever_it_says_is_a_traceback(runs, tmp_path_factory, capsys, data) -> None:
    _, finished, _ = runs
    folder = tmp_path_factory.mktemp("summary")
    shutil.copytree(finished, folder / "run")
    path = folder / "run" / "summary.json"
    try:
        path.write_text(json.dumps(_inside(data.draw, json.loads(path.read_text())), skipkeys=True))
    except (RecursionError, ValueError):
        return
    TRIED[KIND] += 1
    for command in (["report"], ["resume"]):
        (folder / "run" / "report.html").unlink(missing_ok=True)
        with bounded():
            code = cli([*command, str(folder / "run")])
        error = capsys.readouterr().err
        assert code in (0, 2)
        if code == 2:
            *told, last = error.rstrip("\n").split("\n")
            assert told in ([], [f"{folder / 'run'}: all rounds are done, nothing is trained"])
            assert last.startswith("raffm-ray: ")
            one_clear_line(last)
    shutil.rmtree(folder)


COLUMNS: dict[str, Any] = {
    "text": pa.array(["x"]),
    "nothing": pa.array([None], pa.int64()),
    "not a number": pa.array([float("nan")]),
    "infinite": pa.array([float("inf")]),
    "negative": pa.array([-1]),
    "huge": pa.array([2**62]),
    "list": pa.array([[1]]),
    "binary": pa.array([b"x"]),
    "time": pa.array([0], pa.timestamp("s")),
    "map": pa.array([[("x", float("nan"))]], pa.map_(pa.string(), pa.float64())),
    "empty map": pa.array([[]], pa.map_(pa.string(), pa.float64())),
}


def test_records_with_other_columns(runs, tmp_path) -> None:
    """Whole Parquet files that a run would never write."""
    _, finished, _ = runs
    rng, tried = np.random.default_rng(3), []
    for name in ("rounds/round-000001.parquet", "shares.parquet"):
        table = pq.ParquetFile(finished / name).read()
        tried += [(name, column, kind) for column in table.column_names for kind in [*COLUMNS, "missing"]]
        tried += [(name, "", way) for way in ("no rows", "twice", "no columns")]
    chosen = tried if amount(1, 0) else [tried[at] for at in rng.choice(len(tried), 15, replace=False)]
    for name, column, kind in chosen:
        folder = tmp_path / "run"
        shutil.copytree(finished, folder)
        table = pq.ParquetFile(folder / name).read()
        if column and kind == "missing":
            table = table.drop_columns([column])
        elif column:
            at, values = table.column_names.index(column), COLUMNS[kind]
            table = table.set_column(at, column, pa.concat_arrays([values] * len(table)))
        else:
            table = {"no rows": table.slice(0, 0), "twice": pa.concat_tables([table, table]), "no columns": table.select([])}[
                kind
            ]
        pq.write_table(table, folder / name)
        settled(KIND, lambda folder=folder: _report(folder))
        shutil.rmtree(folder)


def test_hostile_arrays_with_right_sums(runs, tmp_path) -> None:
    """Arrays of other names, shapes and kinds than the manifest's, in a checkpoint whose digests are right."""
    from hashlib import sha256

    from safetensors.numpy import load_file

    interrupted, _, _ = runs
    rng = np.random.default_rng(4)
    for number in range(amount(120, 4)):
        folder = tmp_path / str(number)
        shutil.copytree(interrupted, folder)
        place = max(folder.glob("checkpoints/round-*"))
        arrays = load_file(place / ARRAYS)
        name = sorted(arrays)[int(rng.integers(len(arrays)))]
        changes: list[Callable[[], Any]] = [
            lambda name=name, arrays=arrays: arrays.pop(name),
            lambda name=name, arrays=arrays: arrays.update({name: arrays[name].reshape(-1)[:-1].copy()}),
            lambda name=name, arrays=arrays: arrays.update({name: arrays[name].astype(np.float64)}),
            lambda name=name, arrays=arrays: arrays.update({name: np.zeros((0,), np.float32)}),
            lambda name=name, arrays=arrays: arrays.update({name: np.full((3, 3, 3), -1, np.int64)}),
        ]
        changes[int(rng.integers(len(changes)))]()
        save_file(arrays, place / ARRAYS)
        (place / SUMS).write_text(
            "".join(f"{sha256((place / one).read_bytes()).hexdigest()}  {one}\n" for one in (ARRAYS, MANIFEST))
        )
        settled(CHECKPOINTS, lambda folder=folder: _go_on(folder))
        shutil.rmtree(folder)
