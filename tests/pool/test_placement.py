"""Which workers train whose clients, how many of them there is room for, and what is said where there is none."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from conftest import tiny_experiment

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.messages import Call, Job, RoundContext
from raffm_ray.pool.ray_pool import RayPool
from raffm_ray.pool.worker_groups import capacity, check_capacity, worker_group_of, worker_groups_of
from raffm_ray.pool.worker_pool import open_pool
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.execution import PoolSettings
from raffm_ray.settings.experiment import LocalSettings

# Workers cannot import this module: what it defines travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def node(cores: int = 0, gpus: int = 0, alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": float(cores), "GPU": float(gpus)}, "Labels": {"ray.io/node-id": "0", **labels}}


def settings(share: float = 0.0, workers: int | None = None, **placement: dict[str, Any]) -> PoolSettings:
    return PoolSettings.model_validate({"gpus_per_worker": share, "workers": workers, "placement": placement})


def rooms(asked: PoolSettings, *nodes: dict[str, Any]) -> list[int]:
    return capacity(worker_groups_of(asked, float(asked.gpus_per_worker))[0], nodes)


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
        (settings(0.5, v100={"workers": 2, "gpus_per_worker": 0.5}), [node(4, 2)], [2, 2]),  # two of four halves are taken
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
        (
            settings(v100=H100),
            [node(4, kind="H100")],
            "v100.workers: 1 workers need 0.5 GPU each, and there are 0 on nodes with kind=H100",
        ),
        (settings(laptop=SMALL), [node(4, kind="small")], "a core each, and there are 0 on nodes that are no device type's own"),
    ],
)
def test_without_room_there_is_one_line(asked, nodes, told) -> None:
    worker_groups, _ = worker_groups_of(asked, float(asked.gpus_per_worker))
    with pytest.raises(UserError, match=told):
        check_capacity(worker_groups, capacity(worker_groups, nodes), nodes, growing=False)


def test_where_nodes_may_join_workers_that_were_asked_for_wait() -> None:
    for workers in (9, None):
        worker_groups, _ = worker_groups_of(settings(workers=workers), 0.0)
        if workers:
            check_capacity(worker_groups, [0], [node(0)], growing=True)
        else:
            with pytest.raises(UserError, match="there are 0"):
                check_capacity(worker_groups, [0], [node(0)], growing=True)


def test_a_block_is_trained_where_the_first_of_its_placed_device_types_is() -> None:
    worker_groups, by_device_type = worker_groups_of(settings(v100=H100, laptop=SMALL, jetson=H100), 0.0)
    assert [worker_group.device for worker_group in worker_groups] == ["cpu", "cuda", "cpu"]
    assert by_device_type == {"v100": 1, "laptop": 2, "jetson": 1}
    device_types = ["laptop", "v100", "phone", "jetson"]

    def worker_group(*clients: int, method: str = "block") -> int:
        jobs = tuple(Job(client, 0) for client in clients)
        return worker_group_of(
            Call(method, RoundContext(seed=0, round=1, plans=(Plan(),), local=LocalSettings(), learning_rate=0.1), (jobs,)),
            device_types,
            by_device_type,
        )

    assert [worker_group(0), worker_group(1), worker_group(2), worker_group(3)] == [2, 1, 0, 1]
    assert worker_group(2, 0) == 2
    assert worker_group(0, 1) == worker_group(1, 0) == 1
    assert worker_group(1, method="evaluate") == 0


@pytest.mark.parametrize(
    ("placed", "told"),
    [
        ({"v10": {}}, "pool.placement: device type 'v10' is not known"),
        ({"v100": {"gpus_per_worker": 0.3}}, "must be 1/k"),
        ({"v100": {"label": {}}}, r"pool.placement.v100.label: unknown key \(did you mean 'labels'\?\)"),
    ],
)
def test_bad_settings_are_one_line(placed, told) -> None:
    with pytest.raises(UserError, match=told):
        prepare(tiny_experiment(pool={"placement": placed}))


def test_nodes_that_are_not_there_are_missed_before_any_work(four_cores, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("raffm_ray.runs.simulation.starting", lambda *_: pytest.fail("no work"))
    experiment = tiny_experiment(pool={"backend": "ray", "placement": {"v100": {"labels": {"kind": "H100"}}}})
    with pytest.raises(UserError, match="pool.placement.v100.labels: no node has kind=H100"):
        simulate(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_in_one_process_it_is_said_that_nothing_is_placed() -> None:
    told: list[str] = []
    experiment = tiny_experiment(pool={"placement": {"v100": {"labels": {"a": "b"}}}})
    open_pool(prepare(experiment).runner(), experiment.pool, told.append)
    assert told == ["note: pool.placement is not used: pool.backend is in_process"]


class _Tells(ClientRunner):
    """Tells which process trains a block, and in which files its data is mapped; and a copy of it."""

    def block(self, context: RoundContext, flat: Any, jobs: Any) -> Any:
        columns = [*self.examples.inputs.values(), self.examples.labels, self.held_out.labels, *self.shares]
        arrays = [one for column in columns for one in ([column] if isinstance(column, np.ndarray) else column.arrays())]
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()] if MAPS.exists() else []
        named = [(*(int(edge, 16) for edge in words[0].split("-")), " ".join(words[5:])) for words in maps]

        def mapped(some: Sequence[Any]) -> list[str]:
            return sorted({name for one in some for low, high, name in named if low <= one.ctypes.data < high and one.size})

        return (os.getpid(), mapped(arrays), mapped([one.copy() for one in arrays])), flat


MAPS = Path("/proc/self/maps")
PACKAGE = RoundContext(seed=0, round=1, plans=(Plan(),), local=LocalSettings(), learning_rate=0.1)
FLAT = np.arange(4, dtype=np.float32)
CALLS = [Call("block", PACKAGE, ((Job(client, 0),),)) for client in range(12)]


@pytest.fixture(scope="module")
def runner() -> _Tells:
    plain = prepare(tiny_experiment()).runner()
    return _Tells(plain.architecture, plain.examples, plain.shares, plain.held_out)


@pytest.fixture(scope="module")
def pool(four_cores, runner) -> Iterator[RayPool]:
    """Two workers, one of which is there for the clients of one device type."""
    opened = RayPool(runner, settings(workers=1, v100={"workers": 1}), device_types=["laptop"] * 6 + ["v100"] * 6)
    yield opened
    opened.close()


def test_workers_that_are_lost_are_replaced_in_their_team(pool) -> None:
    seen: list[set[int]] = []
    for _ in range(2):
        trained = [small[0] for small, _ in pool.run(FLAT, CALLS, lambda *_: None)]
        laptops, others = set(trained[:6]), set(trained[6:])
        assert len(laptops) == len(others) == 1
        assert laptops != others
        seen += [laptops, others]
        ray.kill(next(slot.actor for slot in pool._slots if slot.worker_group == 1))
    assert seen[0] == seen[2]
    assert seen[1] != seen[3]  # control: it was another


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's /proc")
def test_workers_of_a_node_share_one_copy_of_the_data(pool) -> None:
    told = [small for small, _ in pool.run(FLAT, CALLS, lambda *_: None)]
    assert len({pid for pid, _, _ in told}) == 2
    ((name,),) = {tuple(data) for _, data, _ in told}
    assert "plasma" in name
    assert not [copy for _, _, copies in told for copy in copies if "plasma" in copy]  # control
