"""Two results of the speed suite beside each other, and the cases of records and of lengths."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raffm_ray.benchmarks.cases.records import client_rows, measure, round_row
from raffm_ray.benchmarks.comparison import compared
from raffm_ray.benchmarks.measurement import Row
from raffm_ray.benchmarks.synthetic_data import TOKENS, synthetic_task
from raffm_ray.benchmarks.training import WORKLOADS
from raffm_ray.cli.main import main as cli
from raffm_ray.data.examples import batches, batches_of_like_length
from raffm_ray.runs.rounds.client_totals import ClientTotals


def result(**cases: Row) -> dict[str, Any]:
    rows = {name: {"rows": [row.content()]} for name, row in cases.items()}
    content: dict[str, Any] = json.loads(json.dumps({"machine": {"processor": "one"}, "quick": False, "cases": rows}))
    return content


LIMIT = (10.0, 10.1, 9.9, 10.0, 10.2)
TIME = Row("a client", "ms", (20.0, 20.2, 19.8, 20.1, 20.4), LIMIT)
RATE = Row("cut", "GB/s", (20.0, 20.2, 19.8, 20.1, 20.4), LIMIT, at_least=True)
ALONE = Row("start", "s", (20.0, 20.2, 19.8, 20.1, 20.4), LIMIT, judged="ours")


def times(row: Row, ours: float, limit: float = 1.0) -> Row:
    return Row(
        row.what,
        row.unit,
        tuple(ours * value for value in row.ours),
        tuple(limit * value for value in row.limit),
        judged=row.judged,
        at_least=row.at_least,
    )


@pytest.mark.parametrize(
    ("row", "ours", "limit", "verdict"),
    [
        (TIME, 1.0, 1.0, ""),
        (TIME, 1.05, 1.0, ""),
        (TIME, 1.3, 1.0, "slower"),
        (TIME, 0.7, 1.0, "faster"),
        (TIME, 1.3, 1.3, ""),  # the whole machine is slower
        (TIME, 1.0, 0.7, "slower"),
        (RATE, 1.3, 1.0, "faster"),
        (RATE, 0.7, 1.0, "slower"),
        (ALONE, 1.3, 1.3, "slower"),
        (ALONE, 1.0, 0.7, ""),
    ],
)
def test_what_became_slower_is_told(row, ours, limit, verdict) -> None:
    (found,) = compared(result(case=row), result(case=times(row, ours, limit)))
    assert found.verdict == verdict
    assert found.own == pytest.approx(ours)
    assert found.beside_limit == pytest.approx(ours / limit)


def test_repetitions_that_overlap_tell_nothing() -> None:
    wide = Row("a client", "ms", (15.0, 20.0, 25.0, 30.0, 35.0), LIMIT)
    (found,) = compared(result(case=TIME), result(case=wide))
    assert found.own > 1.2
    assert found.verdict == ""


def test_only_what_both_have_is_compared() -> None:
    first, second = result(a=TIME, b=RATE), result(b=RATE, c=ALONE)
    assert [row.case for row in compared(first, second)] == ["b"]
    second["cases"]["b"]["rows"][0]["what"] = "other"
    assert not list(compared(first, second))


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """A result, and one in which all takes half as long again."""
    first, second = tmp_path / "a.json", tmp_path / "later" / "bench.json"
    second.parent.mkdir()
    first.write_text(json.dumps(result(digits=TIME)))
    second.write_text(json.dumps(result(digits=times(TIME, 1.5))))
    return first, second


def test_the_command_prints_ratios(files, capsys) -> None:
    first, second = files
    assert cli(["bench", "compare", str(first), str(second.parent)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "digits a client 20.1 ms 30.2 ms 1.50 1.50 slower" in told
    assert "note" not in told


def test_two_machines_and_shortened_suites_are_told(files, capsys) -> None:
    first, second = files
    content = json.loads(second.read_text())
    second.write_text(json.dumps(content | {"quick": True, "machine": {"processor": "another"}}))
    assert cli(["bench", "compare", str(first), str(second)]) == 0
    told = capsys.readouterr().out
    assert "they are of two machines: one, another" in told
    assert "the numbers mean nothing" in told


def broken(content: Any, way: str) -> str:
    content = copy.deepcopy(content)
    row = content["cases"]["digits"]["rows"][0]
    if way == "no row":
        content["cases"] = {"other": {"rows": [row]}}
    if way == "no values":
        row["ours"] = []
    if way == "no cases":
        del content["cases"]
    return json.dumps(content)[: 40 if way == "cut" else None]


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("cut", "not a result of raffm-ray bench"),
        ("no values", "not a result of raffm-ray bench: a row is not whole"),
        ("no cases", "not a result of raffm-ray bench"),
        ("no row", "have no case in common"),
    ],
)
def test_what_is_no_result_is_one_line(files, way, told, capsys) -> None:
    first, second = files
    second.write_text(broken(json.loads(second.read_text()), way))
    assert cli(["bench", "compare", str(first), str(second)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_a_suite_prints_json(capsys, tmp_path, monkeypatch) -> None:
    from raffm_ray.benchmarks import suite

    monkeypatch.setitem(suite.CASES, "start", suite.Case(lambda bench: [ALONE], "nothing"))
    assert cli(["bench", "start", "--quick", "--workers", "1", "--json", "--out", str(tmp_path / "bench")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert told["cases"]["start"]["rows"][0]["what"] == "start"


def test_records_are_of_different_clients_and_are_all_read() -> None:
    assert [row.client for row in client_rows(3, 20)] != [row.client for row in client_rows(4, 20)]
    assert len({row.client for row in client_rows(3, 20)}) == 20
    assert round_row(7, 20).round == 7
    totals = ClientTotals()
    for number in range(1, 24):
        totals.add(client_rows(number, 4))
    found = measure(24, 4)
    assert sum(one.client_rounds for one in totals.device_types.values()) == 23 * 4
    assert min(found.written, found.plain_written, found.resumed, found.reported, found.plain_read) > 0
    assert found.file_bytes > 24 * 1000


def test_texts_of_like_length_are_padded_less() -> None:
    task = synthetic_task("uneven texts", 400)
    lengths = task.clients.lengths()
    assert lengths is not None
    assert lengths.min() >= 4
    assert lengths.max() <= 4 * TOKENS
    share = np.arange(400)

    def padded(chosen: Any) -> int:
        return sum(len(one) * int(lengths[one].max()) for one in chosen)

    sorted_ones = padded(batches_of_like_length(share, lengths, 16, 25, np.random.default_rng(0)))
    assert sorted_ones < 0.8 * padded(batches(share, 16, 25, np.random.default_rng(0)))
    workload = WORKLOADS["sst2"].shortened()
    assert workload.experiment({"batches": "by_length"}).setup.experiment.local.batches == "by_length"
