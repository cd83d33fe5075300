"""Which workers train whose clients, how many of them there is room for, and what is said where there is none."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from conftest import tiny_experiment

from raffm_ray.axes import Plan
from raffm_ray.client import Runner
from raffm_ray.errors import UserError
from raffm_ray.messages import Job, Package
from raffm_ray.pool import open_pool
from raffm_ray.prepare import prepare
from raffm_ray.ray_pool import RayPool
from raffm_ray.running import PoolSettings
from raffm_ray.settings import LocalSettings
from raffm_ray.simulation import simulate
from raffm_ray.teams import check_room, room, team_of, teams_of

# Workers cannot import this module: what it defines travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def node(cores: int = 0, gpus: int = 0, alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": float(cores), "GPU": float(gpus)}, "Labels": {"ray.io/node-id": "0", **labels}}


def settings(share: float = 0.0, workers: int | None = None, **placement: dict[str, Any]) -> PoolSettings:
    return PoolSettings.model_validate({"gpus_per_worker": share, "workers": workers, "placement": placement})


def rooms(asked: PoolSettings, *nodes: dict[str, Any]) -> list[int]:
    return room(teams_of(asked, float(asked.gpus_per_worker))[0], nodes)


H100 = {"labels": {"kind": "H100"}, "gpus_per_worker": 0.5}
SMALL = {"labels": {"kind": "small"}}


@pytest.mark.parametrize(
    ("asked", "nodes", "found"),
    [
        (settings(), [node(4), node(2), node(8, alive=False)], [6]),
        (settings(workers=3), [node(4), node(2)], [3]),
        (settings(0.25), [node(4, 2), node(8, 1)], [12]),
        (settings(2), [node(4, 3), node(4, 3)], [2]),  # three GPUs left over on two nodes are no pair
        (settings(v100=H100), [node(4, 2, kind="H100"), node(6, 1)], [10, 4]),  # those on GPUs take no core
        (settings(1, v100=H100), [node(4, 2, kind="H100"), node(6, 3)], [3, 4]),
        (settings(laptop=SMALL), [node(4, kind="small"), node(6), node(1, kind="other")], [7, 4]),  # its nodes are its own
        (settings(laptop=SMALL, v100=H100), [node(4, kind="small"), node(6, 1, kind="H100"), node(2)], [8, 4, 2]),
        (settings(a=SMALL, b={"labels": {"kind": "big"}}), [node(1, kind="small"), node(2, kind="big"), node(3)], [3, 1, 2]),
        (settings(a=SMALL | {"workers": 1}, b=SMALL), [node(4, kind="small"), node(3)], [3, 1, 3]),
        (settings(laptop={"workers": 2}), [node(4)], [2, 2]),
    ],
)
def test_room_is_counted_by_node(asked, nodes, found) -> None:
    assert rooms(asked, *nodes) == found


@pytest.mark.parametrize(
    ("asked", "nodes", "told"),
    [
        (settings(workers=9), [node(4)], "pool.workers: 9 workers need a core each, and there are 4"),
        (settings(0.5), [node(4)], "pool.workers: 1 workers need 0.5 GPU each, and there are 0"),
        (settings(v100=H100), [node(4, 1)], r"pool.placement.v100.labels: no node has kind=H100 \(nodes have no labels\)"),
        (settings(v100=H100), [node(4, 1, kind="H10")], r"no node has kind=H100 \(did you mean 'kind=H10'\?\)"),
        (settings(v100=H100), [node(4, kind="H100")], "v100.workers: 1 workers need 0.5 GPU each, and there are 0 on nodes with kind=H100"),
        (settings(laptop=SMALL), [node(4, kind="small")], "a core each, and there are 0 on nodes that are no device class's own"),
    ],
)  # fmt: skip
def test_without_room_there_is_one_line(asked, nodes, told) -> None:
    teams, _ = teams_of(asked, float(asked.gpus_per_worker))
    with pytest.raises(UserError, match=told):
        check_room(teams, room(teams, nodes), nodes, growing=False)


def test_where_nodes_may_join_workers_that_were_asked_for_wait() -> None:
    for workers in (9, None):
        teams, _ = teams_of(settings(workers=workers), 0.0)
        if workers:
            check_room(teams, [0], [node(0)], growing=True)
        else:
            with pytest.raises(UserError, match="there are 0"):
                check_room(teams, [0], [node(0)], growing=True)


def test_a_block_is_trained_where_the_first_of_its_placed_classes_is() -> None:
    teams, by_class = teams_of(settings(v100=H100, laptop=SMALL, jetson=H100), 0.0)
    assert [team.device for team in teams] == ["cpu", "cuda", "cpu"]
    assert by_class == {"v100": 1, "laptop": 2, "jetson": 1}
    classes = ["laptop", "v100", "phone", "jetson"]

    def team(*clients: int, method: str = "block") -> int:
        jobs = tuple(Job(client, 0) for client in clients)
        return team_of((method, Package(0, 1, (Plan(),), LocalSettings(), 0.1), (jobs,)), classes, by_class)

    assert [team(0), team(1), team(2), team(3)] == [2, 1, 0, 1]
    assert team(2, 0) == 2
    assert team(0, 1) == team(1, 0) == 1
    assert team(1, method="evaluate") == 0


@pytest.mark.parametrize(
    ("placed", "told"),
    [
        ({"v10": {}}, "pool.placement: device class 'v10' is not known"),
        ({"v100": {"gpus_per_worker": 0.3}}, "must be 1/k"),
        ({"v100": {"label": {}}}, r"pool.placement.v100.label: unknown key \(did you mean 'labels'\?\)"),
    ],
)
def test_bad_settings_are_one_line(placed, told) -> None:
    with pytest.raises(UserError, match=told):
        prepare(tiny_experiment(pool={"placement": placed}))


def test_nodes_that_are_not_there_are_missed_before_any_work(four_cores, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("raffm_ray.simulation.starting", lambda *_: pytest.fail("no work"))
    experiment = tiny_experiment(pool={"backend": "ray", "placement": {"v100": {"labels": {"kind": "H100"}}}})
    with pytest.raises(UserError, match="pool.placement.v100.labels: no node has kind=H100"):
        simulate(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_in_one_process_it_is_said_that_nothing_is_placed() -> None:
    told: list[str] = []
    experiment = tiny_experiment(pool={"placement": {"v100": {"labels": {"a": "b"}}}})
    open_pool(prepare(experiment).runner(), experiment.pool, told.append)
    assert told == ["note: pool.placement is not used: pool.backend is in_process"]


class _Places(Runner):
    """Tells which process trains a block, and where its data is."""

    def block(self, package: Package, flat: Any, jobs: Any) -> Any:
        import os

        return os.getpid(), flat

    def data(self, package: Package, flat: Any) -> Any:
        columns = [*self.examples.inputs.values(), self.examples.labels, self.held_out.labels, *self.shares]
        arrays = [one for column in columns for one in ([column] if isinstance(column, np.ndarray) else column.arrays())]
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        named = [(*(int(edge, 16) for edge in words[0].split("-")), " ".join(words[5:])) for words in maps]
        found = {name for one in arrays for low, high, name in named if low <= one.ctypes.data < high and one.size}
        return json.dumps(sorted(found)), flat


def _pool(placement: dict[str, Any], examples: Any = None, workers: int = 1) -> RayPool:
    plain = prepare(tiny_experiment()).runner()
    runner = _Places(plain.architecture, examples or plain.examples, plain.shares, plain.held_out)
    return RayPool(runner, settings(workers=workers, **placement), classes=["laptop"] * 6 + ["v100"] * 6)


PACKAGE = Package(0, 1, (Plan(),), LocalSettings(), 0.1)
FLAT = np.arange(4, dtype=np.float32)


def test_classes_have_workers_of_their_own_also_after_one_is_lost(four_cores) -> None:
    pool = _pool({"v100": {"workers": 1}})
    try:
        calls = [("block", PACKAGE, ((Job(client, 0),),)) for client in range(12)]
        for _ in range(2):
            trained = [small for small, _ in pool.run(FLAT, calls, [1.0] * 12, lambda *_: None)]
            laptops, others = set(trained[:6]), set(trained[6:])
            assert len(others) == 1
            assert laptops.isdisjoint(others)
            ray.kill(next(seat.actor for seat in pool._seats if seat.team == 1))
    finally:
        pool.close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_workers_of_a_node_share_one_copy_of_the_data(four_cores) -> None:
    pool = _pool({}, workers=2)
    try:
        where = [small for small, _ in pool.run(FLAT, [("data", PACKAGE, ())] * 4, [1.0] * 4, lambda *_: None)]
    finally:
        pool.close()
    assert len(set(where)) == 1
    (name,) = json.loads(where[0])
    assert "plasma" in name
    plain = prepare(tiny_experiment()).runner().examples
    copied = SimpleNamespace(
        inputs={}, labels=plain.labels.copy().view(np.memmap)
    )  # control: what is not a plain array is copied
    pool = _pool({}, copied)
    try:
        ((where, _),) = pool.run(FLAT, [("data", PACKAGE, ())], [1.0], lambda *_: None)
    finally:
        pool.close()
    assert len(json.loads(where)) > 1
