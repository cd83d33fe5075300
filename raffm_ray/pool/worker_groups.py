"""Groups of equal workers: how many the cluster has capacity for, and which clients they train. It does not use Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raffm_ray.basics.errors import UserError, near_miss
from raffm_ray.clients.messages import Call
from raffm_ray.settings.execution import PoolSettings

Node = Mapping[str, Any]
"""Of a cluster: what `ray.nodes()` says of it."""


@dataclass(frozen=True)
class WorkerGroup:
    """Workers that are alike: what each has of GPUs (0: a core instead), on which nodes, how many at most, where they compute. `name`: the
    setting that asks for them; `labels`: what their nodes have; `avoided`: by label, values that their nodes do not have."""

    name: str
    share: float
    labels: Mapping[str, str]
    workers: int | None
    device: str
    avoided: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def need(self) -> tuple[str, float]:
        """Of which of Ray's resources a worker takes how much."""
        return ("GPU", self.share) if self.share else ("CPU", 1.0)

    @property
    def selector(self) -> dict[str, str]:
        """Its nodes, as Ray's `label_selector`."""
        return dict(self.labels) | {key: f"!in({','.join(values)})" for key, values in self.avoided.items()}

    def takes(self, node: Node) -> bool:
        """Whether a node is one for its workers."""
        labels = node["Labels"]
        avoided = any(labels.get(key) in values for key, values in self.avoided.items())
        return bool(node["Alive"]) and self.labels.items() <= labels.items() and not avoided


def worker_groups_of(settings: PoolSettings, share: float) -> tuple[list[WorkerGroup], dict[str, int]]:
    """The worker groups of a pool, first the one that does all that no other does; and by device type, which one trains its clients.

    `share`: of a GPU, that the first one's workers have. Device types that are placed alike share a worker group. Nodes whose labels are chosen for
    device types have no workers of the first worker group that would take cores, or GPUs, from those.
    """

    def device(part: float) -> str:
        return settings.device if settings.device != "auto" else "cuda" if part else "cpu"

    placed_groups, by_device_type = list[WorkerGroup](), dict[str, int]()
    alike, avoided = dict[str, int](), dict[str, list[str]]()
    for name, placed in settings.placement.items():
        by_device_type[name] = alike.setdefault(repr(placed), len(placed_groups) + 1)
        if by_device_type[name] > len(placed_groups):
            part = placed.gpus_per_worker
            placed_groups.append(
                WorkerGroup(
                    name=f"pool.placement.{name}", share=part, labels=placed.labels, workers=placed.workers, device=device(part)
                )
            )
            if placed.labels and bool(part) == bool(share):
                key, value = next(iter(placed.labels.items()))
                avoided.setdefault(key, []).append(value)
    return [
        WorkerGroup(name="pool", share=share, labels={}, workers=settings.workers, device=device(share), avoided=avoided),
        *placed_groups,
    ], by_device_type


def worker_group_of(call: Call, device_types: Sequence[str], by_device_type: Mapping[str, int]) -> int:
    """Which worker group does a call: of a block, the first in `pool.placement` that one of its clients has; the first worker group does all others.

    It goes by the call alone, whatever workers there are: the same block is always trained on the same kind of hardware.
    """
    method, arguments = call.method, call.arguments
    if method != "block" or not by_device_type:
        return 0
    return min((by_device_type[name] for job in arguments[0] if (name := device_types[job.client]) in by_device_type), default=0)


def capacity(worker_groups: Sequence[WorkerGroup], nodes: Sequence[Node]) -> list[int]:
    """How many workers of each worker group the nodes have room for, each worker group beside those that have room; those on chosen nodes come first."""
    free = [dict(node["Resources"]) for node in nodes]
    found = [0] * len(worker_groups)
    for number in [*range(1, len(worker_groups)), 0]:
        worker_group = worker_groups[number]
        resource, each = worker_group.need
        for node, left in zip(nodes, free, strict=True):
            if worker_group.takes(node):
                here = int(left.get(resource, 0) / each + 1e-6)
                here = here if worker_group.workers is None else min(here, worker_group.workers - found[number])
                left[resource] = left.get(resource, 0) - here * each
                found[number] += here
    return found


def check_capacity(worker_groups: Sequence[WorkerGroup], found: Sequence[int], nodes: Sequence[Node], growing: bool) -> None:
    """Raises UserError for a worker group without room, or with less than its workers need; where nodes may join (`growing`), those that were asked
    for may wait for them."""
    for worker_group, workers in zip(worker_groups, found, strict=True):
        labels = ", ".join(f"{key}={value}" for key, value in worker_group.labels.items())
        there = [node for node in nodes if worker_group.takes(node)]
        if worker_group.labels and not there:
            known = {f"{key}={value}" for node in nodes if node["Alive"] for key, value in node["Labels"].items()}
            known = {label for label in known if not label.startswith("ray.io/node-id")}
            raise UserError(
                f"{worker_group.name}.labels: no node has {labels}{near_miss(labels, known) if known else ' (nodes have no labels)'}"
            )
        wanted = worker_group.workers or 1
        if workers < wanted and not (growing and worker_group.workers):
            amount = sum(node["Resources"].get(worker_group.need[0], 0) for node in there)
            each = f"{worker_group.share:g} GPU each" if worker_group.share else "a core each"
            where = (
                f" on nodes with {labels}"
                if labels
                else " on nodes that are no device type's own"
                if worker_group.avoided
                else ""
            )
            raise UserError(f"{worker_group.name}.workers: {wanted} workers need {each}, and there are {amount:g}{where}")
