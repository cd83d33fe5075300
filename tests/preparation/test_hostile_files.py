"""Hostile traces, profiles and data: damaged, of other columns and kinds, not files at all. One line each, before anything is made."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY, small_tokenizer, tiny_experiment
from hostile import TEXTS, VALUES, amount, as_yaml, content, damaged, many, mutated, settled
from hypothesis import given
from hypothesis import strategies as st

from raffm_ray.basics.errors import UserError
from raffm_ray.devices.availability import AVAILABILITY
from raffm_ray.devices.profiles import Profiles, _File, known_profiles
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.settings.loading import read_mapping

KIND = "other files"
CLIENTS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


NOT_FILES = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "empty": lambda path: path.touch(),
    "not there": lambda path: None,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a device that is empty": lambda path: path.symlink_to("/dev/null"),
    "nobody's": lambda path: (path.write_text("a: 1"), path.chmod(0)),
}


def not_file(path: Path, way: str) -> str:
    NOT_FILES[way](path)
    if way == "nobody's" and os.access(path, os.R_OK):
        pytest.skip("who may read everything may read this")
    return str(path)


def trace_of(path: Path) -> Any:
    """Who is awake when, asked at some times."""
    settings = tiny_experiment(clock={"availability": "trace", "trace": str(path)}).clock
    awake = AVAILABILITY["trace"](settings, 0, CLIENTS)
    for now in (0.0, 1.5, 1e9):
        state, changes = awake(now)
        assert state.shape == changes.shape == (CLIENTS,)
        assert (changes > now).all()
    return awake


def whole_trace() -> pa.Table:
    client = np.repeat(np.arange(CLIENTS), 3)
    start = np.tile([0.0, 10.0, 20.0], CLIENTS)
    return pa.table({"client": client, "start_seconds": start, "end_seconds": start + 5})


def test_a_damaged_trace(place) -> None:
    path, rng, refused = place / "trace.parquet", np.random.default_rng(1), 0
    pq.write_table(whole_trace(), path)
    original = path.read_bytes()
    assert callable(trace_of(path))  # control: it is whole
    for _ in range(amount(300, 40)):
        path.write_bytes(damaged(original, rng))
        refused += isinstance(settled(KIND, lambda: trace_of(path)), UserError)
    assert refused


ODD: dict[str, Callable[[int], Any]] = {
    "text": lambda n: pa.array(["x"] * n),
    "nothing": lambda n: pa.nulls(n, pa.int64()),
    "no kind": lambda n: pa.nulls(n),
    "not a number": lambda n: pa.array([float("nan")] * n),
    "infinite": lambda n: pa.array([float("inf")] * n),
    "negative": lambda n: pa.array([-1] * n),
    "huge": lambda n: pa.array([2**62] * n),
    "beyond": lambda n: pa.array([2**63 + 1] * n, pa.uint64()),
    "list": lambda n: pa.array([[1]] * n),
    "binary": lambda n: pa.array([b"\xff"] * n),
    "time": lambda n: pa.array([0] * n, pa.timestamp("s")),
    "zero": lambda n: pa.array([0] * n),
    "half": lambda n: pa.array(np.full(n, 0.5, np.float16)),
    "denormal": lambda n: pa.array([5e-324] * n),
    "largest": lambda n: pa.array([1.7e308] * n),
    "words": lambda n: pa.array(["x"] * n).dictionary_encode(),
    "struct": lambda n: pa.array([{"a": 1}] * n),
    "yes": lambda n: pa.array([True] * n),
    "small": lambda n: pa.array([1] * n, pa.int8()),
}


@pytest.mark.parametrize("column", ["client", "start_seconds", "end_seconds"])
def test_a_trace_of_other_columns(place, column) -> None:
    path, whole = place / "odd.parquet", whole_trace()
    at = whole.column_names.index(column)
    for make in ODD.values():
        pq.write_table(whole.set_column(at, column, make(len(whole))), path)
        settled(KIND, lambda: trace_of(path))
    tables = [
        whole.drop_columns([column]),
        whole.slice(0, 0),
        pa.concat_tables([whole, whole]),
        whole.append_column(column, whole[column]),
        whole.select([]),
    ]
    for table in tables:
        pq.write_table(table, path)
        assert isinstance(settled(KIND, lambda: trace_of(path)), UserError)


@pytest.mark.parametrize("way", NOT_FILES)
def test_what_is_no_file_is_no_trace_no_profile_no_configuration_and_no_data(tmp_path, way) -> None:
    path = tmp_path / "hostile.parquet"
    name = not_file(path, way)
    assert isinstance(settled(KIND, lambda: trace_of(path)), UserError)
    assert isinstance(settled(KIND, lambda: read_mapping(path)), UserError)
    assert isinstance(settled(KIND, lambda: known_profiles(name)), UserError)
    result = settled(KIND, lambda: prepare(tiny_experiment(task={"name": "image_classification", "data": name})))
    assert isinstance(result, UserError)


def test_a_folder_of_data_that_holds_no_files(tmp_path) -> None:
    for number, way in enumerate(sorted({*NOT_FILES} - {"nobody's", "not there"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        not_file(folder / "train.parquet", way)
        result = settled(
            KIND, lambda folder=folder: prepare(tiny_experiment(task={"name": "image_classification", "data": str(folder)}))
        )
        assert isinstance(result, UserError)


DEVICE = {
    "memory_bytes": 4e9,
    "flops_per_second": 1e10,
    "memory_bytes_per_second": 1e9,
    "down_bytes_per_second": 1e6,
    "up_bytes_per_second": 1e6,
    "power_watts": 5.0,
    "radio_watts": 1.0,
    "source": "made up",
}
PROFILES = {"devices": {"mine": DEVICE, "yours": {**DEVICE, "sustained": 0.5}}, "mixes": {"ours": {"mine": 0.5, "yours": 0.5}}}


def profiles_of(path: Path) -> Any:
    """The profiles of a file, and an experiment on every mix of it."""
    found = known_profiles(str(path))
    for mix in set(found.mixes) - set(known_profiles(None).mixes):
        prepare(tiny_experiment(fleet={"mix": mix, "profiles": str(path), "shares": {}, "budgets": {}}))
    return found


@many(300, 20)
@given(data=st.data())
def test_profiles_of_any_values(place, data) -> None:
    path = place / "profiles.yaml"
    values = data.draw(mutated(PROFILES, _File))
    if data.draw(st.booleans()):
        device = data.draw(st.sampled_from(["mine", "yours"]))
        values = {
            **PROFILES,
            "devices": {**PROFILES["devices"], device: {**DEVICE, data.draw(st.sampled_from(sorted(DEVICE))): data.draw(VALUES)}},
        }
    path.write_bytes(as_yaml(values))
    assert isinstance(settled(KIND, lambda: profiles_of(path)), Profiles | UserError)


def test_damaged_profiles(place) -> None:
    path, rng = place / "damaged.yaml", np.random.default_rng(2)
    original = yaml.safe_dump(PROFILES).encode()
    for _ in range(amount(200, 20)):
        path.write_bytes(damaged(original, rng))
        settled(KIND, lambda: known_profiles(str(path)))


@pytest.fixture(scope="module")
def words(place) -> str:
    folder = place / "tokenizer"
    small_tokenizer(["a", "b", "c", "x"]).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def texts(words, monkeypatch, tmp_path_factory) -> Callable[[Path], Any]:
    """Prepares an experiment on a file of texts and classes."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    config = {key: value for key, value in TINY["bert"].items() if key not in ("num_labels",)}

    def prepared(path: Path) -> Any:
        task = {"name": "text_classification", "data": str(path), "public": 4}
        return prepare(
            tiny_experiment(task=task, model={"config": config, "tokenizer": words}, clients={"count": 4, "per_round": 2})
        )

    return prepared


def rows() -> pa.Table:
    return pa.table({"text": ["a b c", "x a", "b", "c c"] * 15, "label": [0, 1, 1, 0] * 15})


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_damaged_data(place, texts, ending) -> None:
    path, rng = place / f"data.{ending}", np.random.default_rng(3)
    if ending == "parquet":
        pq.write_table(rows(), path)
    elif ending == "csv":
        rows().to_pandas().to_csv(path, index=False)
    else:
        rows().to_pandas().to_json(path, orient="records", lines=True)
    original = path.read_bytes()
    assert isinstance(settled(KIND, lambda: texts(path)), Prepared)  # control: it is whole
    for _ in range(amount(60, 2)):
        path.write_bytes(damaged(original, rng))
        before = content(path.parent / "tokenizer")
        settled(KIND, lambda: texts(path))
        assert content(path.parent / "tokenizer") == before


@pytest.mark.parametrize("column", ["text", "label"])
def test_data_of_other_columns(place, texts, column) -> None:
    path, whole = place / "odd_data.parquet", rows()
    at = whole.column_names.index(column)
    for make in list(ODD.values())[:: amount(1, 6)]:
        pq.write_table(whole.set_column(at, column, make(len(whole))), path)
        settled(KIND, lambda: texts(path))


@many(60, 3)
@given(data=st.data())
def test_data_of_any_texts(place, texts, data) -> None:
    path = place / "any.jsonl"
    drawn = data.draw(st.lists(TEXTS, min_size=1, max_size=5))
    lines = [json.dumps({"text": drawn[at % len(drawn)], "label": at % 2}) for at in range(60)]
    path.write_text("\n".join(lines), encoding="utf-8")
    settled(KIND, lambda: texts(path))
