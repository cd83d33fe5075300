"""Checkpoints are written beside the next round: nobody waits for them, nothing in them changes, and no error is lost."""

import errno
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from outcomes import digest
from quick import RICH, quick
from rich.console import Console
from safetensors.numpy import load_file, save_file

from raffm_ray.basics.errors import UserError
from raffm_ray.clients.local_training import one_thread
from raffm_ray.runs import checkpoint
from raffm_ray.runs.loop import Environment, train
from raffm_ray.runs.recorder import Recorder
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.runs.writing.background import Background
from raffm_ray.runs.writing.hashed_arrays import write_arrays
from raffm_ray.server.aggregation import AGGREGATION_RULES
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS
from raffm_ray.server.state import ServerState, new_state


def test_one_action_after_the_other_and_an_error_is_raised_once_by_who_waits() -> None:
    work, gate, done = Background(), Event(), list[str]()
    work.start(lambda: (gate.wait(), done.append("first")))
    assert not done
    gate.set()
    work.start(lambda: done.append("second"))
    work.wait()
    assert done == ["first", "second"]
    work.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        work.start(lambda: done.append("never"))
    work.wait()
    assert done == ["first", "second"]


def test_afterwards_nothing_runs_and_the_first_error_counts() -> None:
    work, gate, done = Background(), Event(), list[str]()

    def fails() -> None:
        with work.settled():
            work.start(lambda: (gate.wait(), done.append("written"), 1 / 0))
            gate.set()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert done == ["written"]
    with pytest.raises(ZeroDivisionError), work.settled():
        work.start(lambda: 1 / 0)


kinds = st.sampled_from(["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "uint32", "bool"])
some_arrays = st.dictionaries(
    st.text(max_size=6),
    kinds.flatmap(lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))),
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(arrays=some_arrays)
def test_arrays_are_written_as_safetensors_has_them_and_the_digest_is_the_file_s(arrays, tmp_path) -> None:
    found = write_arrays(tmp_path / "ours", arrays)
    assert found == sha256((tmp_path / "ours").read_bytes()).hexdigest()
    back = load_file(tmp_path / "ours")
    assert {name: (one.dtype, one.shape, one.tobytes()) for name, one in back.items()} == {
        name: (one.dtype, one.shape, one.tobytes()) for name, one in arrays.items()
    }


def test_more_than_one_chunk_and_arrays_in_another_order_than_their_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("raffm_ray.runs.writing.hashed_arrays.CHUNK_BYTES", 100)
    arrays = {"a": np.arange(600, dtype=np.float32).reshape(20, 30).T, "b": np.arange(9)[::2]}
    write_arrays(tmp_path / "ours", arrays)
    save_file({name: np.ascontiguousarray(one) for name, one in arrays.items()}, tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert all(np.array_equal(ours[name], theirs[name]) and np.array_equal(ours[name], arrays[name]) for name in arrays)


def row(number: int) -> RoundRow:
    """Of a round in which nothing happens."""
    counts = dict.fromkeys(("drawn", "selected", "arrived", "late", "dropped", "refused", "bytes_down", "bytes_up"), 0)
    times = dict.fromkeys(
        ("learning_rate", "round_seconds", "simulated_seconds", "energy_joules", "wall_seconds", "train_loss", "metric"), 0.0
    )
    rest: dict[str, Any] = {"loss": 0.0, "validation": None, "device_type_metrics": {}, "device_type_params": {}}
    return RoundRow(round=number, ranked=False, phase_seconds={}, **counts, **times, **rest)


class Slow:
    """A run's recorder whose checkpoints are written once they may be."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.gate, real = Event(), checkpoint.write_arrays
        patch.setattr(checkpoint, "write_arrays", lambda *words: (self.gate.wait(60), real(*words))[1])
        self.recorder, self.places = Recorder(folder, tiny_experiment(rounds=9)), folder / "checkpoints"

    def complete(self, number: int) -> ServerState:
        state = replace(new_state(torch.arange(5.0)), round=number, moments={"mean": torch.ones(5)})
        self.recorder.complete(row(number), [], state)
        return state


def test_a_round_does_not_wait_for_its_checkpoint(out, monkeypatch) -> None:
    slow = Slow(out, monkeypatch)
    slow.complete(0)
    assert checkpoint.rounds(slow.places) == []
    assert {path.name for path in slow.places.iterdir()} <= {".round-000000.tmp"}
    slow.gate.set()
    slow.complete(1)
    slow.recorder.writing.wait()
    assert checkpoint.rounds(slow.places) == [1, 0]


@pytest.mark.parametrize("plugins", [True, False])
def test_what_is_handed_over_is_copied_where_a_plug_in_may_write_into_it(plugins, out, monkeypatch) -> None:
    """And without plug-ins it is not: then a write into it is seen, which no function that is built in does."""
    monkeypatch.setattr("raffm_ray.runs.recorder._has_plugins", lambda: plugins)
    slow = Slow(out, monkeypatch)
    state = slow.complete(0)
    before = digest(state)
    state.parameters.add_(1)
    state.moments["mean"].add_(1)
    slow.gate.set()
    slow.recorder.writing.wait()
    assert (digest(checkpoint.read(slow.places / "round-000000").state) == before) == plugins


CALLS: dict[str, Callable[..., Any]] = {
    **{name: lambda *words, row=row: row.step(*words, tiny_experiment().server) for name, row in SERVER_OPTIMIZERS.items()}
}


@pytest.mark.parametrize("name", CALLS)
def test_no_optimizer_writes_into_what_it_is_given(name) -> None:
    rng = torch.Generator().manual_seed(0)
    old, averaged, covered = (torch.rand(50, generator=rng) for _ in range(3))
    covered[::3] = 0
    moments: Any = {}
    for _ in range(3):
        given = (old, averaged, covered, moments)
        before = digest([*given[:3], dict(moments)])
        new, following = CALLS[name](*given)
        assert digest([*given[:3], dict(moments)]) == before
        old, moments, averaged = new, following, torch.rand(50, generator=rng)


@pytest.mark.parametrize("name", AGGREGATION_RULES)
def test_no_rule_writes_into_the_old_parameters(name) -> None:
    rng = torch.Generator().manual_seed(0)
    old, summed, covered = (torch.rand(50, generator=rng) for _ in range(3))
    before = digest(old)
    AGGREGATION_RULES[name](old, summed, covered, 3.0)
    assert digest(old) == before


def test_no_round_changes_a_state_before_it(out, monkeypatch) -> None:
    states, real = list[tuple[ServerState, str]](), Recorder.complete

    def noted(recorder: Recorder, record: Any, clients: Any, state: ServerState, *others: Any) -> None:
        states.append((state, digest(state)))
        real(recorder, record, clients, state, *others)

    monkeypatch.setattr(Recorder, "complete", noted)
    prepared, start, pool = quick(**RICH)
    with one_thread():
        train(prepared, start, Recorder(out, prepared.setup.experiment), Environment(pool, Console(quiet=True)))
    assert len(states) == 4
    assert [digest(state) for state, _ in states] == [before for _, before in states]


def test_a_disk_that_is_full_ends_the_run_at_the_next_checkpoint_or_its_end(out, monkeypatch) -> None:
    def full(*_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    last: Callable[[Slow], object]
    for place, last in (
        (out / "next", lambda slow: slow.complete(1)),
        (out / "end", lambda slow: slow.recorder.finish({}, new_state(torch.ones(1)), None)),
    ):
        place.parent.mkdir(exist_ok=True)
        slow = Slow(place, monkeypatch)
        monkeypatch.setattr(checkpoint, "write_arrays", full)
        slow.complete(0)
        with pytest.raises(UserError) as told:
            last(slow)
        assert str(told.value) == f"{place}: round 0 cannot be written: No space left on device"
        assert not (place / "summary.json").exists()
        assert checkpoint.rounds(slow.places) == []
