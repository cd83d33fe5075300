"""What clients keep, as files of a run: the same bits through interruptions, one line for a damaged file, nothing kept for nobody."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from interruptions import MOMENTS, Interrupted, go
from outcomes import outcome
from quick import REMEMBERING, quick

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.messages import Update
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs import checkpoint
from raffm_ray.runs.client_states.disk_forecast import disk_notes, states_bytes
from raffm_ray.runs.client_states.store import ClientStates, first_broken, last_state, packed, place_of, read_state, states_of
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.kept.client_memory import ClientMemory
from raffm_ray.server.ranking import plain_state


def a_state(value: float = 1.0) -> ClientState:
    return ClientState(Plan({"residual": [2, 0]}), {"control/a": torch.full((2, 3), value)}, {"steps": 3.0})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    go(folder, **REMEMBERING)
    return outcome(folder)


def test_a_run_leaves_the_states_of_those_who_trained(undisturbed) -> None:
    assert sum(name.startswith("states/") for name in undisturbed) >= 4


@pytest.mark.parametrize("seed", range(4))
def test_law_10_states_are_the_same_through_interruptions_anywhere(undisturbed, seed, out) -> None:
    rng, interruptions = random.Random(seed), 0
    while not (out / "summary.json").is_file():
        MOMENTS.interrupt(out, rng.randint(1, 200))  # a round with its checkpoint, and the end, take fewer
        try:
            go(out, **REMEMBERING)
        except Interrupted:
            interruptions += 1
            assert interruptions < 60, "it never comes to its end"
        finally:
            MOMENTS.folder = None
    assert interruptions >= 3
    go(out, **REMEMBERING)  # one that was interrupted after its summary still has checkpoints to remove
    assert outcome(out) == undisturbed


def test_control_who_forgets_what_clients_keep_leaves_something_else(undisturbed, out, monkeypatch) -> None:
    monkeypatch.setattr("raffm_ray.runs.client_states.store.states_of", lambda *_: {})
    go(out, **REMEMBERING)
    assert outcome(out)["model.safetensors"] != undisturbed["model.safetensors"]


def test_a_state_comes_back_to_the_bit_and_every_damage_is_told_with_its_client(tmp_path) -> None:
    path = tmp_path / "state.safetensors"
    content = packed(a_state(float(np.float32(1) / 3)))
    path.write_bytes(content)
    again = read_state(path, 17)
    assert again.plan == a_state().plan
    assert again.numbers == {"steps": 3.0}
    assert torch.equal(again.tensors["control/a"], torch.full((2, 3), 1 / 3))
    for place in (3, len(content) // 2, len(content) - 1):
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="client 17: its state is damaged") as told:
                read_state(path, 17)
            assert "\n" not in str(told.value)
    path.unlink()
    with pytest.raises(UserError, match="client 17: its state is missing"):
        read_state(path, 17)


def kept_until(tmp_path: Path, clients: list[list[int]], oldest: int) -> tuple[Path, ClientMemory]:
    """A folder after rounds in which these clients trained, with checkpoints from `oldest` on."""
    states, memory = ClientStates(tmp_path, set()), ClientMemory()
    for number, chosen in enumerate(clients, 1):
        states.keep(number, Update({}, (), None, {client: a_state(number) for client in chosen}))
        memory = memory.after(chosen, number, 3000, None)
    states.prune(range(oldest, len(clients) + 1))
    return tmp_path, memory


def test_only_states_that_some_checkpoint_could_go_on_from_stay(tmp_path) -> None:
    folder, memory = kept_until(tmp_path, [[0, 1, 2500], [0, 1], [0]], oldest=2)
    left = sorted(path.name[:-12] for path in folder.glob("states/*/*"))
    assert left == ["00000000-round-000002", "00000000-round-000003", "00000001-round-000002", "00002500-round-000001"]
    assert [len(list(one.iterdir())) for one in sorted((folder / "states").iterdir())] == [3, 1]
    found = states_of(folder, memory, [0, 1, 7, 2500])
    assert {client: float(one.tensors["control/a"][0, 0]) for client, one in found.items()} == {0: 3.0, 1: 2.0, 2500: 1.0}
    assert last_state(folder, 7) is None
    assert float(last_state(folder, 0).tensors["control/a"][0, 0]) == 3.0


def test_between_rare_checkpoints_only_the_newest_state_of_a_client_stays(tmp_path) -> None:
    states = ClientStates(tmp_path, set())
    for number in range(1, 8):
        states.keep(number, Update({}, (), None, {0: a_state(number)}))
        states.prune([3] if number >= 3 else [])
    assert [path.name[9:21] for path in sorted(tmp_path.glob("states/*/*"))] == ["round-000003", "round-000007"]


def test_who_goes_on_removes_what_came_after_and_prunes_as_before(tmp_path) -> None:
    folder, memory = kept_until(tmp_path, [[0, 1], [0], [0]], oldest=1)
    states = ClientStates(folder, set()).begun(SimpleNamespace(round=2))
    assert not place_of(folder, 0, 3).exists()
    states.prune([2])
    assert [path.name[:21] for path in sorted(folder.glob("states/*/*"))] == ["00000000-round-000002", "00000001-round-000001"]
    assert float(states_of(folder, memory, [1])[1].tensors["control/a"][0, 0]) == 1.0


def test_a_damaged_state_is_told_and_the_checkpoint_before_it_is_used(undisturbed, out, monkeypatch) -> None:
    lines: list[str] = []
    told = SimpleNamespace(print=lambda line, **_: lines.append(line))
    with monkeypatch.context() as patched:
        patched.setattr("raffm_ray.runs.recorder.Recorder.finish", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            go(out, **REMEMBERING)
    kept = next(checkpoint.whole(out / "checkpoints", lines.append))
    last = kept.state.round
    assert last > checkpoint.oldest(out / "checkpoints")
    client = int(np.flatnonzero(kept.state.memory.trained_at == last)[0])
    path = place_of(out, client, last)
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    broken = first_broken(out, kept.state.memory, checkpoint.oldest(out / "checkpoints"))
    assert broken.startswith(f"client {client}: its state is damaged")
    from raffm_ray.runs.resuming import opened

    prepared, *_ = quick(**REMEMBERING)
    recorder = opened(out, prepared.setup.experiment, lambda line: told.print(line))
    assert recorder.state.round == last - 1
    assert any(line.startswith(broken) and line.endswith("the checkpoint before is used") for line in lines)
    go(out, **REMEMBERING)
    assert outcome(out) == undisturbed


def test_the_disk_that_states_take_is_forecast_and_refused_where_there_is_less(tmp_path, monkeypatch) -> None:
    changes: dict[str, Any] = {"rounds": 6, "strategy": {"name": "raffm", "prefix": "none", "personal": ["classifier"]}}
    changes |= {"local": {"client_update": "scaffold", "optimizer": "sgd", "learning_rate": 0.05}}
    prepared = prepare(tiny_experiment(**changes))
    state = plain_state(prepared.setup.architecture)
    expected = states_bytes(prepared.setup, state)
    simulate(tiny_experiment(**changes), tmp_path / "run")
    taken = [path.stat().st_size for path in (tmp_path / "run").glob("states/*/*")]
    owners = int(prepared.setup.owners.sum())
    assert 0.5 * expected < owners * sum(taken) / len(taken) < expected
    (line,) = disk_notes(prepared.setup, state, tmp_path / "other")
    assert line.startswith(f"states of {owners} clients: at most ")
    monkeypatch.setattr("raffm_ray.runs.client_states.disk_forecast.disk_usage", lambda _: SimpleNamespace(free=expected - 1))
    with pytest.raises(UserError, match="its disk has .* free: another folder"):
        disk_notes(prepared.setup, state, tmp_path / "other")
    assert not disk_notes(prepare(tiny_experiment()).setup, state, tmp_path / "other")


def test_clients_that_sleep_cost_nothing(tmp_path, monkeypatch) -> None:
    """Of 100,000 clients with a state, those of a round are read and written, and no other file is looked at."""
    memory = ClientMemory().after([17, 99_999], 3, 100_000, None)
    for client in (17, 99_999):
        path = place_of(tmp_path, client, 3)
        path.parent.mkdir(parents=True)
        path.write_bytes(packed(a_state(client)))
    read: list[Path] = []
    monkeypatch.setattr("raffm_ray.runs.client_states.store.read_state", lambda path, client: read.append(path))
    states_of(tmp_path, memory, [17, 18, 19])
    assert read == [place_of(tmp_path, 17, 3)]
