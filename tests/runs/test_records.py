"""Records of many rounds are packed as a run goes on: whoever reads them finds every round once, whatever happens meanwhile."""

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import MOMENTS, Interrupted, go
from outcomes import outcome
from quick import RICH

from raffm_ray.basics.errors import UserError
from raffm_ray.runs.reader import read_clients, read_evaluations, read_rounds
from raffm_ray.runs.records import packing, record_tables
from raffm_ray.runs.records.record_files import digests_by_round, every_file, last_packed, record_files, record_name
from raffm_ray.runs.records.record_tables import tables
from raffm_ray.runs.records.totals import totals_upto
from raffm_ray.runs.rounds.client_totals import COUNTED, ClientTotals
from raffm_ray.runs.rounds.rows import ClientRow, schema_of

MANY: dict[str, Any] = RICH | {"rounds": 9, "evaluation": RICH["evaluation"] | {"every": 2}}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of so many rounds, none of them packed."""
    folder = tmp_path_factory.mktemp("single") / "run"
    go(folder, **MANY)
    return folder


@pytest.fixture
def packs(monkeypatch) -> None:
    """Three rounds are as many as five hundred."""
    monkeypatch.setattr(packing, "ROUNDS", 3)
    monkeypatch.setattr(packing, "GROUP_ROWS", 5)


def read(folder: Path) -> Any:
    return read_rounds(folder), read_clients(folder), read_evaluations(folder)


@pytest.fixture
def packed(single, packs, out) -> Path:
    shutil.copytree(single, out)
    packing.pack(out, 7)
    return out


def test_what_is_read_and_its_digests_are_the_same(single, packed) -> None:
    assert [(one.first, one.last) for one in record_files(packed, "clients")] == [
        (0, 2),
        (3, 5),
        *((at, at) for at in range(6, 10)),
    ]
    assert len(list((packed / "clients").iterdir())) == 6
    assert repr(read(packed)) == repr(read(single))
    assert digests_by_round(packed) == digests_by_round(single)
    assert len(digests_by_round(packed)) == 10
    assert repr(read_evaluations(packed, 4)) == repr(read_evaluations(single, 4))
    with pytest.raises(UserError, match=r"evaluations/round-000005.parquet: missing"):
        read_evaluations(packed, 5)
    for after, upto in ((-1, None), (1, 4), (3, 3), (5, 8)):
        here, there = (
            [row for table in tables(folder, "clients", after=after, upto=upto) for row in table.to_pylist()]
            for folder in (packed, single)
        )
        assert repr(here) == repr(there)
        assert {row["round"] for row in here} == set(range(after + 1, (9 if upto is None else upto) + 1))


def test_pyarrow_reads_the_folder_as_before(single, packed) -> None:
    assert repr(pq.read_table(packed / "clients").to_pylist()) == repr(pq.read_table(single / "clients").to_pylist())


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_killed_before_all_single_files_are_removed(single, packed, left) -> None:
    """Of a packed file, some that it was made from are still there; then they go."""
    for number in range(left):
        shutil.copy(single / record_name("clients", number), packed / "clients")
    assert repr(read(packed)) == repr(read(single))
    assert digests_by_round(packed) == digests_by_round(single)
    assert len(every_file(packed, "clients")[1]) == left
    packing.pack(packed, 7)
    assert every_file(packed, "clients")[1] == []
    assert repr(read(packed)) == repr(read(single))


@pytest.mark.parametrize("part", ["rounds", "clients", "evaluations"])
def test_control_any_change_of_a_packed_file_is_seen(single, packed, part) -> None:
    path = record_files(packed, part)[0].path
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*rng.integers(len(content), size=20).tolist(), len(content) - 20]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert digests_by_round(packed)[:1] != digests_by_round(single)[:1]
    path.write_bytes(content)
    assert digests_by_round(packed) == digests_by_round(single)


def test_files_with_other_columns_and_damaged_ones_stay(single, packs, out) -> None:
    shutil.copytree(single, out)
    other = out / record_name("clients", 1)
    pq.write_table(pq.read_table(other).drop_columns("seconds"), other)
    (out / record_name("clients", 4)).write_bytes(b"nothing")
    packing.pack(out, 9)
    assert [one.last - one.first for one in record_files(out, "clients")] == [0, 0, 0, 0, 0, 0, 2, 0]
    assert [one.last - one.first for one in record_files(out, "rounds")] == [2, 2, 2, 0]
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def test_who_reads_while_files_are_packed_finds_every_round_once(single, packs, out, monkeypatch) -> None:
    shutil.copytree(single, out)
    real, packed = record_tables._tables_in, list[int]()

    def meanwhile(one: Any, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        if one.first == 4 and not packed:
            packing.pack(out, 9)
            packed.append(4)
        yield from real(one, columns)

    monkeypatch.setattr(record_tables, "_tables_in", meanwhile)
    assert repr(read_clients(out)) == repr(read_clients(single))
    assert packed


rows = st.lists(
    st.builds(
        ClientRow,
        **{
            "round": st.integers(0, 3),
            "client": st.integers(0, 9),
            "device": st.sampled_from(["a", "b"]),
            "outcome": st.just("used"),
            **dict.fromkeys(("examples", "steps", "params", "frozen_bytes_down"), st.just(1)),
            **dict.fromkeys(("loss", "seconds"), st.just(0.5)),
            **dict.fromkeys(("bytes_down", "bytes_up", "peak_memory_bytes"), st.integers(0, 2**55)),
            **dict.fromkeys(("training_flops", "round_seconds", "energy_joules"), st.floats(-1e9, 1e9)),
            "flops_per_example": st.none() | st.floats(0, 1e9),
            "accepted": st.booleans(),
            "refused": st.sampled_from(["", "too large"]),
            "over_budget": st.sampled_from([None, "", "memory"]),
            "statistics_refused": st.sampled_from(["", "not finite"]),
        },
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None, database=None)
@given(chosen=rows, cut=st.integers(0, 40))
def test_sums_over_columns_are_those_over_rows_to_the_bit(chosen, cut) -> None:
    one_by_one, together = ClientTotals(), ClientTotals()
    one_by_one.add(chosen)
    table = pa.Table.from_pylist([asdict(row) for row in chosen], schema=schema_of(ClientRow)).select(COUNTED)
    for part in (table[:cut], table[cut:]):
        together.add_columns(part)
    assert repr(together) == repr(one_by_one)


def test_columns_that_an_earlier_version_lacked_are_as_their_defaults() -> None:
    table = pa.table(
        {"round": [1], "client": [3], "device": ["a"], "accepted": [True], "refused": [""], "peak_memory_bytes": [7]}
    )
    found = ClientTotals()
    found.add_columns(table)
    assert found.seen == {3}
    assert not found.any_refused
    assert found.device_types["a"].mean("flops_per_example", None) is None
    assert found.device_types["a"].over_budget == 0


@pytest.mark.parametrize("seed", range(2))
def test_interrupted_anywhere_again_and_again_while_records_are_packed(single, packs, seed, out) -> None:
    rng, interruptions = random.Random(seed), 0
    while not (out / "summary.json").is_file():
        MOMENTS.interrupt(out, rng.randint(30, 150))
        try:
            go(out, **MANY)
        except Interrupted:
            interruptions += 1
            assert interruptions < 60, "it never comes to its end"
        finally:
            MOMENTS.folder = None
    assert interruptions >= 2
    go(out, **MANY)
    assert last_packed(out) == 5
    assert repr(outcome(out)) == repr(outcome(single))


@pytest.mark.parametrize("upto", range(10))
def test_sums_up_to_any_round_are_the_same_whether_it_is_packed(single, packed, upto) -> None:
    rows = [ClientRow(**row) for row in read_clients(single) if row["round"] <= upto]
    expected = ClientTotals()
    expected.add(rows)
    found = [totals_upto(folder, upto) for folder in (packed, single)]
    assert [one.seen for one in found] == [expected.seen] * 2
    assert [repr(one.device_types) for one in found] == [repr(expected.device_types)] * 2
    assert [(one.rejected, one.any_refused) for one in found] == [(expected.rejected, expected.any_refused)] * 2


def test_packed_rows_are_not_added_up_again(packed, monkeypatch) -> None:
    """Control: those after them are."""
    added, real = list[int](), ClientTotals.add_columns
    monkeypatch.setattr(
        ClientTotals, "add_columns", lambda own, table: (added.extend(table["round"].to_pylist()), real(own, table))
    )
    assert totals_upto(packed, 9).seen
    assert set(added) == {6, 7, 8, 9}


def test_a_run_that_begins_again_removes_what_is_packed(single, packed) -> None:
    shutil.rmtree(packed / "checkpoints")
    (packed / "summary.json").unlink()
    go(packed, **MANY)
    assert repr(outcome(packed)) == repr(outcome(single))
