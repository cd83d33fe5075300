"""The workers that a run would get on a described cluster, and how long its rounds would take there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from statistics import mean
from typing import Any

from rich.table import Table
from rich.text import Text

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.formatting import human_bytes, human_seconds
from raffm_ray.devices.profiles import Device
from raffm_ray.fleet.cluster_description import Cluster, NodeGroup
from raffm_ray.fleet.time_prediction import RoundSeconds, WorkerSlot, round_seconds
from raffm_ray.pool.gpu_sharing import workers_a_gpu
from raffm_ray.pool.worker_groups import WorkerGroup, capacity, check_capacity, worker_groups_of
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import ServerState
from raffm_ray.settings.execution import PoolSettings

ROUNDS = 10
"""The first so many rounds are predicted, each with its own clients; shown are means."""


@dataclass(frozen=True)
class Placement:
    """Where a run's workers would be. `kinds`: by worker, the number of its kind of node; `need_bytes`: of a GPU, what a worker takes by
    estimate, 0 where it was not asked for."""

    cluster: Cluster
    worker_groups: Sequence[WorkerGroup]
    by_device_type: dict[str, int]
    slots: Sequence[WorkerSlot]
    kinds: Sequence[int]
    need_bytes: int


def share_of(settings: PoolSettings, cluster: Cluster, need_bytes: int) -> float:
    """The part of a GPU that a worker gets, as `ray_pool.RayPool` chooses it; of GPUs with unequal memory by the smallest, where Ray asks
    any one. Raises UserError where it asks for GPUs and there are none."""
    if settings.gpus_per_worker != "auto":
        return settings.gpus_per_worker
    if not cluster.gpus:
        raise UserError("pool.gpus_per_worker: auto needs a GPU, and the described cluster has none")
    least = min(cluster.devices[group.gpu].memory_bytes for group in cluster.groups if group.gpu is not None)
    wanted = min(cluster.cpus or 1, settings.workers or inf)
    return 1 / workers_a_gpu(need_bytes, settings.gpu_memory_bytes or least, max(1, ceil(wanted / cluster.gpus)))


def _node(group: NodeGroup) -> dict[str, Any]:
    """A node as Ray would say what it is."""
    return {"Alive": True, "Labels": dict(group.labels), "Resources": {"CPU": group.cpus, "GPU": group.gpus}}


def worker_device(cluster: Cluster, group: NodeGroup, share: float) -> Device:
    """The rates of a worker on a core, or on its share of GPUs while all others there work too; operators are started by a core."""
    core = cluster.devices[group.cpu]
    if not share or group.gpu is None:
        return core
    gpu, part = cluster.devices[group.gpu], min(1.0, share)
    return gpu.model_copy(
        update={
            "flops_per_second": gpu.flops_per_second * part,
            "memory_bytes_per_second": gpu.memory_bytes_per_second * part,
            "dispatch_seconds": core.dispatch_seconds,
            "host": core.host,
        }
    )


def placed(prepared: Prepared, cluster: Cluster) -> Placement:
    """The workers that the settings ask for, on the described nodes in their order. Raises UserError where there is no room for them."""
    settings = prepared.setup.experiment.pool
    need_bytes = prepared.runner().gpu_bytes
    worker_groups, by_device_type = worker_groups_of(settings, share_of(settings, cluster, need_bytes))
    kinds = [kind for kind, group in enumerate(cluster.groups) for _ in range(group.count)]
    nodes = [_node(cluster.groups[kind]) for kind in kinds]
    check_capacity(worker_groups, capacity(worker_groups, nodes), nodes, False)
    devices = {
        (kind, worker_group.share): worker_device(cluster, group, worker_group.share)
        for kind, group in enumerate(cluster.groups)
        for worker_group in worker_groups
    }
    slots, of_kind = list[WorkerSlot](), list[int]()
    left = [dict(node["Resources"]) for node in nodes]
    for number in [*range(1, len(worker_groups)), 0]:
        worker_group, wanted = worker_groups[number], worker_groups[number].workers or inf
        resource, each = worker_group.need
        for node, kind in enumerate(kinds):
            here = capacity([replace(worker_group, workers=None)], [nodes[node] | {"Resources": left[node]}])[0]
            here = int(min(here, wanted))
            left[node][resource] -= here * each
            wanted -= here
            slots += [
                WorkerSlot(node, devices[kind, worker_group.share], cluster.groups[kind].network_bytes_per_second, number)
            ] * here
            of_kind += [kind] * here
    return Placement(
        cluster=cluster,
        worker_groups=worker_groups,
        by_device_type=by_device_type,
        slots=slots,
        kinds=of_kind,
        need_bytes=need_bytes,
    )


def predicted(prepared: Prepared, state: ServerState, placement: Placement, rounds: int = ROUNDS) -> list[RoundSeconds]:
    """The first rounds of the run, from a provisional ranking, without evaluations."""
    setup, driver = prepared.setup, placement.cluster.devices[placement.cluster.groups[0].cpu]
    found = []
    for number in range(min(rounds, setup.experiment.rounds)):
        work = begin_round(setup, replace(state, round=number))
        found.append(round_seconds(setup, work, placement.slots, driver, placement.by_device_type))
    return found


def placement_table(placement: Placement, rounds: Sequence[RoundSeconds], table: Table) -> Table:
    """Workers by kind of node and team, and what a round gives them to do."""
    for heading in ("nodes", "hardware", "workers for"):
        table.add_column(heading)
    for heading in ("a GPU", "workers", "blocks a round", "at work"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, group in enumerate(placement.cluster.groups):
        for number, worker_group in enumerate(placement.worker_groups):
            mine = [at for at, slot in enumerate(placement.slots) if placement.kinds[at] == kind and slot.worker_group == number]
            if not mine:
                continue
            hardware = f"{group.gpus} x {group.gpu}" if worker_group.share else f"{group.cpus} cores of {group.cpu}"
            device_types = [name for name, one in placement.by_device_type.items() if one == number]
            blocks = mean(sum(one.blocks[at] for at in mine) / len(mine) for one in rounds)
            busy = mean(sum(one.busy[at] for at in mine) / len(mine) / one.seconds for one in rounds)
            a_gpu = f"{round(1 / worker_group.share)}" if 0 < worker_group.share < 1 else "1" if worker_group.share else "-"
            whose = ", ".join(device_types) if device_types else "all others" if placement.by_device_type else "all clients"
            table.add_row(f"{group.count}", hardware, whose, a_gpu, f"{len(mine)}", f"{blocks:.1f}", f"{busy:.0%}")
    return table


def notes(placement: Placement, rounds: Sequence[RoundSeconds], total: int) -> Text:
    """A round's seconds, and what they are made of."""
    whole = mean(one.seconds for one in rounds)
    parts = ", ".join(
        f"{what} {human_seconds(mean(getattr(one, what) for one in rounds))}" for what in ("sending", "training", "server")
    )
    lines = [f"{human_seconds(whole)} a round* ({parts}), {total} rounds without evaluations in {human_seconds(whole * total)}"]
    if placement.need_bytes:
        lines.append(f"a worker takes {human_bytes(placement.need_bytes)} of its GPU, by estimate")
    if placement.cluster.gpus and not any(worker_group.share for worker_group in placement.worker_groups):
        lines.append("its GPUs are not used: --pool.gpus_per_worker auto would")
    lines.append("at work: of the round; * predicted from the profiles of this hardware and the run's own blocks, not measured")
    return Text("\n".join(lines), style="italic")
