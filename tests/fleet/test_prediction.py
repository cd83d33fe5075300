"""What a round would take on a described cluster: the order of its blocks, their work, the workers, the rates."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import tiny_experiment
from hypothesis import given
from hypothesis import strategies as st

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main as cli
from raffm_ray.devices.profiles import DEVICES, Device, Host
from raffm_ray.devices.round_costs import Workload, compute_seconds
from raffm_ray.fleet.cluster_description import Cluster, NodeGroup, load_cluster
from raffm_ray.fleet.cluster_placement import placed, predicted
from raffm_ray.fleet.device_plans import provisional_ranking
from raffm_ray.fleet.reference_models import driver, fitted
from raffm_ray.fleet.time_prediction import BlockWork, WorkerSlot, block_seconds, block_work, round_seconds
from raffm_ray.pool.dispatch import completion_times
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import Round
from raffm_ray.settings.loading import dump

CORE = DEVICES["server_core"]
ROOT = Path(__file__).parents[2]
DESCRIBED = sorted((ROOT / "cluster" / "described").glob("*.yaml"))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(tiny_experiment(pool={"gpus_per_worker": "auto", "block_clients": 1}))


def a_round(prepared: Prepared) -> Round:
    return begin_round(prepared.setup, provisional_ranking(prepared))


def on_cores(prepared: Prepared, *cores: Device) -> float:
    slots = [WorkerSlot(0, core, 1e9) for core in cores]
    return round_seconds(prepared.setup, a_round(prepared), slots, CORE).training


# Order


def test_calls_go_longest_first_to_whoever_is_idle() -> None:
    taken = [1.0, 7.0, 2.0, 3.0, 5.0]
    done, where = completion_times(taken, lambda call, worker: taken[call], [0, 0], [0] * 5)
    # 7 and 5; the second worker then takes 3; both are idle at 7 and 8, and take 2 and 1.
    assert done == [9.0, 7.0, 9.0, 8.0, 5.0]
    assert where == [1, 0, 0, 1, 1]


def test_calls_of_a_team_wait_for_its_workers() -> None:
    done, where = completion_times([1.0, 1.0, 1.0], lambda call, worker: 1.0, [0, 1], [1, 1, 1])
    assert done == [1.0, 2.0, 3.0]
    assert where == [1, 1, 1]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=40), st.integers(1, 6))
def test_a_schedule_is_one(taken, workers) -> None:
    done, where = completion_times(taken, lambda call, worker: taken[call], [0] * workers, [0] * len(taken))
    for worker in range(workers):
        mine = sorted((done[call] - taken[call], done[call]) for call in range(len(taken)) if where[call] == worker)
        assert all(later >= end - 1e-9 for (_, end), (later, _) in pairwise(mine))  # one after the other
    assert max(done) >= max(max(taken), sum(taken) / workers) - 1e-9
    assert max(done) <= sum(taken) / workers + max(taken) + 1e-9  # Graham 1966
    if workers == 1:
        assert max(done) == pytest.approx(sum(taken))


# Work


@pytest.mark.parametrize("stack", [1, 16])
def test_a_blocks_work_is_what_its_clients_report(stack) -> None:
    prepared = prepare(tiny_experiment(pool={"stack_clients": stack}, salience={"metric": "l1"}))
    work = a_round(prepared)
    reported = {visit.job.client: visit.cost.flops for visit in work.visits}
    for block in work.blocks:
        ours = block_work(prepared.setup, work.context, block)
        exact = sum(reported[job.client] for job in block)
        assert ours.work.flops == pytest.approx(exact) if stack == 1 else ours.work.flops >= exact - 1  # batches are filled up
        assert (ours.stacked > 0) == (stack > 1 and len(block) > 1)
        assert ours.work.dispatches > 0 or ours.stacked > 0


def test_overlap_is_between_the_sum_and_the_longer() -> None:
    work = Workload(3e9, 2e9, 0)
    device = CORE.model_copy(update={"flops_per_second": 1e9, "memory_bytes_per_second": 1e9})
    seconds = [compute_seconds(device.model_copy(update={"overlap": part}), work) for part in (0.0, 0.5, 1.0)]
    assert seconds == [5.0, 4.0, 3.0]


# Rounds


def test_a_round_is_shorter_on_more_and_faster_workers(prepared) -> None:
    slow = CORE.model_copy(update={"flops_per_second": 1e6})
    fast = CORE.model_copy(update={"flops_per_second": 2e6})
    one, two, mixed = on_cores(prepared, slow), on_cores(prepared, slow, slow), on_cores(prepared, slow, fast)
    assert one > two > mixed > one / 3
    assert one == pytest.approx(2 * on_cores(prepared, fast), rel=0.1)


def test_other_nodes_cost_their_links(prepared) -> None:
    work, setup = a_round(prepared), prepared.setup
    near = round_seconds(setup, work, [WorkerSlot(0, CORE, 1e6)], CORE)
    far = round_seconds(setup, work, [WorkerSlot(1, CORE, 1e6)], CORE)
    full = 4 * sum(int(np.prod(shape)) for shape in setup.architecture.shapes.values())
    assert far.sending - near.sending == pytest.approx(full / 1e6)
    assert far.training > near.training
    assert far.blocks == near.blocks == (len(work.blocks),)
    host = CORE.model_copy(update={"host": Host(round_seconds=0.5, round_bytes_per_second=full / 0.25)})
    assert round_seconds(setup, work, [WorkerSlot(0, CORE, 1e6)], host).server == pytest.approx(0.75)


# Workers


def cluster_of(*groups: NodeGroup) -> Cluster:
    return Cluster(groups, DEVICES)


def test_workers_are_where_the_pool_would_put_them(prepared) -> None:
    groups = NodeGroup(cpus=2), NodeGroup(count=2, cpus=8, gpus=2, gpu="h100")
    both = placed(prepared, cluster_of(*groups))
    assert (both.worker_groups[0].share, len(both.slots)) == (0.2, 20)  # 18 cores for 4 GPUs: no more than 5 a GPU
    assert {slot.node for slot in both.slots} == {1, 2}
    assert both.slots[0].device.flops_per_second == pytest.approx(DEVICES["h100"].flops_per_second / 5)
    assert both.slots[0].device.dispatch_seconds == CORE.dispatch_seconds
    tight = replace(
        prepared,
        setup=replace(prepared.setup, experiment=tiny_experiment(pool={"gpus_per_worker": "auto", "gpu_memory_bytes": 2e9})),
    )
    assert placed(tight, cluster_of(*groups)).worker_groups[0].share == 0.5
    alone = replace(prepared, setup=replace(prepared.setup, experiment=tiny_experiment()))
    assert [slot.node for slot in placed(alone, cluster_of(*groups)).slots] == [0] * 2 + [1] * 8 + [2] * 8
    ten = replace(prepared, setup=replace(prepared.setup, experiment=tiny_experiment(pool={"workers": 10})))
    assert [slot.node for slot in placed(ten, cluster_of(*groups)).slots] == [0] * 2 + [1] * 8


def test_device_types_are_placed_on_their_nodes(prepared) -> None:
    placement = {"v100": {"labels": {"kind": "big"}, "gpus_per_worker": 0.5}}
    experiment = tiny_experiment(pool={"placement": placement}, local={"learning_rate": 1e-3, "warmup_rounds": 0})
    mine = replace(prepared, setup=replace(prepared.setup, experiment=experiment))
    where = placed(mine, cluster_of(NodeGroup(cpus=2), NodeGroup(cpus=0, gpus=1, gpu="h100", labels={"kind": "big"})))
    assert [(slot.node, slot.worker_group) for slot in where.slots] == [(1, 1), (1, 1), (0, 0), (0, 0)]
    rounds = predicted(mine, provisional_ranking(mine), where, 4)
    assert all(sum(one.blocks) > 0 for one in rounds)
    with pytest.raises(UserError, match=r"labels: no node has kind=big"):
        placed(mine, cluster_of(NodeGroup(cpus=2)))


@pytest.mark.parametrize("path", DESCRIBED, ids=lambda path: path.stem)
def test_the_described_examples_are_shown(path, tmp_path, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump(tiny_experiment()), encoding="utf-8")
    assert cli(["fleet", "show", str(config), "--cluster", str(path), "--pool.gpus_per_worker", "0.25"]) == 0
    told = capsys.readouterr().out
    gpus = load_cluster(path).gpus
    assert gpus == {"one_gpu": 1, "eight_gpus": 8, "sixty_four_gpus": 64}[path.stem]
    assert f"{4 * gpus} workers" in told
    assert "a round* (sending" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"nodes": []}, "nodes: "),
        ({"nodes": [{"cpu": "server_core"}]}, "nodes.0.cpus: is required"),
        ({"nodes": [{"cpus": 2, "gpus": 1}]}, "nodes.0: gpus and gpu go together: gpus 1, gpu None"),
        ({"nodes": [{"cpus": 2, "gpus": 1, "gpu": "h10"}]}, "nodes.0.gpu: device type 'h10' is not known (did you mean 'h100'?"),
        ({"nodes": [{"cpus": 2, "gpu_s": 1}]}, "nodes.0.gpu_s: unknown key (did you mean 'gpus'?)"),
        ({"nodes": [{"cpus": 2}], "profiles": "mine.yaml"}, "mine.yaml: no such file"),
    ],
)
def test_a_mistake_in_a_description_is_one_line(content, words, tmp_path, capsys) -> None:
    path, config = tmp_path / "cluster.yaml", tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    config.write_text(dump(tiny_experiment()), encoding="utf-8")
    assert cli(["fleet", "show", str(config), "--cluster", str(path)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"raffm-ray: --cluster {path}: ")
    assert words in error
    assert len(error.splitlines()) == 1


# Calibration


def test_a_fit_finds_the_rates_that_made_it(rng) -> None:
    truth = CORE.model_copy(
        update={
            "flops_per_second": 5e10,
            "memory_bytes_per_second": 8e9,
            "dispatch_seconds": 5e-5,
            "host": Host(stacked_dispatch_seconds=2e-4),
        }
    )
    blocks = [BlockWork(Workload(*(10 ** rng.uniform((6, 5, 1), (10, 9, 4)))), float(10 ** rng.uniform(1, 3))) for _ in range(12)]
    found = fitted([(block, block_seconds(truth, block)) for block in blocks])
    assert found.flops_per_second == pytest.approx(5e10, rel=1e-3)
    assert found.memory_bytes_per_second == pytest.approx(8e9, rel=1e-3)
    assert (found.dispatch_seconds, found.stacked_dispatch_seconds) == pytest.approx((5e-5, 2e-4), rel=1e-3)
    wrong = fitted([(block, 2 * block_seconds(truth, block)) for block in blocks])
    assert wrong.flops_per_second == pytest.approx(2.5e10, rel=1e-3)  # control


def test_a_drivers_part_of_a_round_is_measured() -> None:
    found = driver((32, 48), 3, "in_process")
    assert found.round_seconds >= 0
    assert found.round_bytes_per_second > 0
