"""Checkpoints: every kind of state comes back to the bit, and nothing damaged is ever taken for whole."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from hostile import CHECKPOINTS, TRIED, amount
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from methods import WHOLE
from quick import RICH, quick
from rich.console import Console
from torch import Tensor

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.serialization import pack, unpack
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.local_training import one_thread
from raffm_ray.runs.checkpoint import ARRAYS, MANIFEST, SUMS, Checkpoint, DamagedError, read, whole, write
from raffm_ray.runs.loop import Environment, train
from raffm_ray.runs.recorder import Recorder
from raffm_ray.runs.resuming import check_fits
from raffm_ray.runs.rounds.rows import ClientRow, RoundRow
from raffm_ray.server.selection.records import no_records
from raffm_ray.server.state import Best, ServerState, new_state


def equal(first: Any, second: Any) -> bool:
    """Whether two values are the same in type, order and every bit."""
    if type(first) is not type(second):
        return isinstance(first, Mapping) and isinstance(second, Mapping) and equal(dict(first), dict(second))
    if isinstance(first, Tensor):
        return equal(first.numpy(), second.numpy())
    if isinstance(first, np.ndarray):
        return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    if isinstance(first, Plan):
        return first == second and list(first) == list(second)
    if is_dataclass(first):
        return all(equal(getattr(first, one.name), getattr(second, one.name)) for one in fields(first))
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))
    return repr(first) == repr(second)


class Watching(Recorder):
    """Remembers the state after every round, and writes nothing of it."""

    states: list[ServerState]

    def complete(self, row: RoundRow, clients: Sequence[ClientRow], state: ServerState, evaluations: Any = None) -> None:
        self.states = [*getattr(self, "states", []), state]
        self.rounds.append(row)


def states_of(folder: Path, **changes: Any) -> list[ServerState]:
    prepared, start, pool = quick(**{**RICH, **changes})
    recorder = Watching(folder, prepared.setup.experiment)
    with one_thread():
        train(prepared, start, recorder, Environment(pool, Console(quiet=True)))
    return recorder.states


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> list[ServerState]:
    """After each round of a run that has something of everything."""
    return states_of(tmp_path_factory.mktemp("rich") / "run")


SERVERS = [{"optimizer": name} for name in ("sgd", "momentum", "adam", "yogi")]


@pytest.mark.parametrize("number", range(len(WHOLE)), ids=WHOLE)
def test_every_state_of_every_strategy_comes_back_to_the_bit(number, tmp_path) -> None:
    changes = {"strategy": {"name": WHOLE[number]}, "server": SERVERS[number % 4], "rounds": 2}
    states = states_of(tmp_path / "run", **changes)
    assert [state.round for state in states] == [0, 1, 2]
    for state in states:
        write(tmp_path, Checkpoint(state, {"seed": "1"}, "records"), keep=3)
    back = list(whole(tmp_path, pytest.fail))
    assert [one.state.round for one in back] == [2, 1, 0]
    for one, state in zip(back, reversed(states), strict=True):
        assert equal(one, Checkpoint(state, {"seed": "1"}, "records"))


def test_the_states_that_were_tried_have_something_of_everything(rich) -> None:
    last = rich[-1]
    assert last.clock.late
    assert last.moments
    assert last.best is not None
    assert last.best.state is not None
    assert last.norms
    assert last.held.plans
    assert last.mixture is not None
    assert (last.mixture.weights != last.mixture.shares).any()
    assert last.records is not None
    assert np.isfinite(last.records.loss).any()
    assert any(state.pending for state in rich)
    assert any(report.loss != report.loss for report in (late.visit.report for late in last.clock.late))


def changed(state: ServerState) -> dict[str, ServerState]:
    """The state with one thing changed, by what it is."""
    assert state.best is not None
    late = state.clock.late
    flipped = state.parameters.clone()
    flipped.view(torch.int32)[0] ^= 1
    return {
        "the last bit of a parameter": replace(state, parameters=flipped),
        "the sign of a zero": replace(state, best=replace(state.best, validation=-0.0)),
        "the order of late updates": replace(state, clock=replace(state.clock, late=late[::-1])),
        "a late update's plan": replace(state, clock=replace(state.clock, late=(replace(late[0], plan=Plan()), *late[1:]))),
        "the order of scores": replace(state, scores=dict(reversed(state.scores.items()))),
        "a type": replace(state, clock=replace(state.clock, seconds=int(state.clock.seconds))),
    }


@pytest.mark.parametrize(
    "what",
    [
        "the last bit of a parameter",
        "the sign of a zero",
        "the order of late updates",
        "a late update's plan",
        "the order of scores",
        "a type",
    ],
)
def test_control_the_comparison_sees_a_change(rich, what, tmp_path) -> None:
    state = replace(rich[-1], best=Best(1, 0.0))
    assert len(state.clock.late) > 1
    other = changed(state)[what]
    write(tmp_path, Checkpoint(other, {}, ""), keep=1)
    (back,) = whole(tmp_path, pytest.fail)
    assert equal(back.state, other)
    assert not equal(back.state, state)


def test_what_is_in_two_places_is_stored_once(rich, tmp_path) -> None:
    state = replace(rich[-1], best=Best(1, 0.5, state=replace(rich[-1], best=None)))
    for folder, one in ((tmp_path / "twice", state), (tmp_path / "once", replace(rich[-1], best=None))):
        folder.mkdir()
        write(folder, Checkpoint(one, {}, ""), keep=1)
    sizes = [next(folder.glob(f"*/{ARRAYS}")).stat().st_size for folder in (tmp_path / "twice", tmp_path / "once")]
    assert sizes[0] < 1.01 * sizes[1]
    back = read(tmp_path / "twice" / f"round-{state.round:06d}").state
    assert back.best is not None
    assert back.best.state is not None
    assert back.best.state.parameters is back.parameters


@pytest.fixture
def place(rich, tmp_path) -> Path:
    write(tmp_path, Checkpoint(rich[-1], {}, "records"), keep=1)
    return tmp_path / f"round-{rich[-1].round:06d}"


def test_every_truncation_and_bit_flip_of_any_file_is_seen(place) -> None:
    rng, names = np.random.default_rng(0), (ARRAYS, MANIFEST, SUMS)
    contents = {name: (place / name).read_bytes() for name in names}
    tried = dict.fromkeys(names, 0)
    attempts = amount(900, 600)
    for attempt in range(attempts):
        name = names[attempt % 3]
        content = bytearray(contents[name])
        if attempt % 4 == 0:
            content = content[: rng.integers(len(content))]
        elif attempt % 4 == 1:
            content += rng.bytes(1)
        else:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        (place / name).write_bytes(content)
        with pytest.raises(DamagedError):
            read(place)
        (place / name).write_bytes(contents[name])
        tried[name] += 1
        TRIED[CHECKPOINTS] += 1
    assert min(tried.values()) == attempts // 3
    assert read(place).records == "records"  # control: what was put back is whole


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST, SUMS])
def test_a_file_that_is_missing_or_a_folder_is_seen(place, name) -> None:
    (place / name).unlink()
    with pytest.raises(DamagedError):
        read(place)
    (place / name).mkdir()
    with pytest.raises(DamagedError):
        read(place)


def with_right_sums(place: Path, manifest: bytes) -> None:
    (place / MANIFEST).write_bytes(manifest)
    listed = [f"{sha256((place / name).read_bytes()).hexdigest()}  {name}\n" for name in (ARRAYS, MANIFEST)]
    (place / SUMS).write_text("".join(listed))


def test_sums_are_what_is_checked(place) -> None:
    manifest = json.loads((place / MANIFEST).read_text())
    with_right_sums(place, json.dumps(manifest | {"records": "others"}).encode())
    assert read(place).records == "others"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
def test_no_manifest_whatever_it_says_is_a_traceback(place, data) -> None:
    """With the sums of a hostile author, who cannot make it read anything but plain values."""
    original = place.parent / "original.json"
    if not original.exists():
        shutil.copy(place / MANIFEST, original)
    manifest = json.loads(original.read_text())
    found: Any = manifest
    while isinstance(found, dict) and found and data.draw(st.booleans()):
        outer, key = found, data.draw(st.sampled_from(sorted(found)))
        found = found[key]
    if found is manifest:
        manifest = data.draw(json_values)
    elif data.draw(st.booleans()):
        outer[key] = data.draw(json_values)
    else:
        outer[data.draw(st.text(max_size=5))] = outer.pop(key)
    with_right_sums(place, json.dumps(manifest).encode())
    TRIED[CHECKPOINTS] += 1
    with suppress(DamagedError):
        assert isinstance(read(place).state, ServerState)


def test_another_schema_is_not_read(place) -> None:
    manifest = json.loads((place / MANIFEST).read_text())
    with_right_sums(place, json.dumps(manifest | {"schema": 99}).encode())
    with pytest.raises(DamagedError, match="its schema is 99, and this version reads 1"):
        read(place)


def test_the_one_before_a_damaged_one_is_used_and_that_is_said(rich, tmp_path) -> None:
    for state in rich:
        write(tmp_path, Checkpoint(state, {}, ""), keep=3)
    newest = tmp_path / f"round-{rich[-1].round:06d}"
    (newest / ARRAYS).write_bytes((newest / ARRAYS).read_bytes()[:-1])
    (tmp_path / ".round-000009.tmp").mkdir()  # one that was being written
    told: list[str] = []
    assert next(whole(tmp_path, told.append)).state.round == rich[-2].round
    assert len(told) == 1
    assert f"{newest}: damaged, the one before it is used" in told[0]


def test_the_newest_are_kept(rich, tmp_path) -> None:
    for state in rich:
        write(tmp_path, Checkpoint(state, {}, ""), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000002", "round-000003"]
    shutil.rmtree(tmp_path / "round-000002")
    write(tmp_path, Checkpoint(replace(rich[-1], ranked_at=7), {}, ""), keep=2)  # the same round once more
    assert [one.state.ranked_at for one in whole(tmp_path, pytest.fail)] == [7]


def test_only_plain_values_are_packed() -> None:
    for value in (object(), {1: 2}, {"a": tiny_experiment()}, [lambda: None]):
        with pytest.raises(TypeError):
            pack(value)
    with pytest.raises((TypeError, KeyError, ValueError)):
        unpack(ServerState, {"round": 1}, {})
    state = new_state(torch.tensor([1.0, float("nan"), -0.0]))
    plain, arrays = pack(state)
    assert equal(unpack(ServerState, plain, {name: torch.from_numpy(values) for name, values in arrays.items()}), state)


@pytest.mark.parametrize("records", [None, no_records(5)])
def test_records_of_other_clients_are_not_of_this_run(rich, records) -> None:
    check_fits(rich[-1], rich[-1], Path("run"))
    with pytest.raises(UserError, match="what its checkpoint holds is not of this model"):
        check_fits(replace(rich[-1], records=records), rich[-1], Path("run"))
