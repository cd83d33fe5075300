"""Predicts the real time of a round on workers of known speed, from the round's jobs, blocks and order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.seeding import generator
from raffm_ray.clients.local_training import ClientData
from raffm_ray.clients.messages import Call, Job, RoundContext
from raffm_ray.clients.stacked_training import passes_of, stacking_groups
from raffm_ray.devices.profiles import Device, Host
from raffm_ray.devices.round_costs import Workload, compute_seconds
from raffm_ray.pool.dispatch import completion_times
from raffm_ray.pool.worker_groups import worker_group_of
from raffm_ray.server.round_schedule import planned_work
from raffm_ray.server.state import Round, Setup
from raffm_ray.server.workload import block_costs, reported_work

CUT, CHANGE, SUM, ADD = 4, 6, 6, 3
"""How often memory is read or written, for each byte of a client's plan when it is cut (read, written; the optimizer's state cleared) and when
its change is taken (two read, one written) and added (two read, one written); for each byte of the full model when a block's sum is cleared,
filled and returned, and when the driver adds it."""


MOVED = 0.2
"""Operators that cutting a parameter and adding its change take, as a part of those of a training step: three of some fifteen. A pass of
a smaller plan takes them twice: to cut it, and to read the client's own entries and add their gradients."""


class BlockWork(NamedTuple):
    """A block's work: of clients trained one by one, and `stacked` dispatches of those trained at once, whose other work is in `work`."""

    work: Workload
    stacked: float = 0.0


def _passes(setup: Setup, context: RoundContext, plan: int, group: Sequence[Job]) -> tuple[Workload, int]:
    """The work of training a group of clients at once, or one alone, and its steps with the optimizer's; the same draws as in training.

    In a stack a shorter batch is filled up, and who is done goes on computing, as `stacked_training.train_stack` does.
    """
    reports = [planned_work(setup, context, job) for job in group]
    size = context.local.batch_size
    rngs = [generator(context.seed, "prefixes", context.round, job.client) for job in group]
    clients_data = [ClientData(np.empty(0, dtype=np.int64), rng, rng) for rng in rngs]
    first, total = group[0], Workload()
    for step in range(max(report.steps for report in reports)):
        sizes = [
            min(size, one.examples - step % ceil(one.examples / size) * size) if step < one.steps else None for one in reports
        ]
        drawn = [None if count is None else np.empty(count, dtype=np.int64) for count in sizes]
        longest, active = max(count or 0 for count in sizes), sum(count is not None for count in sizes)
        for position, rows in passes_of(clients_data, drawn, first.prefix, len(first.prefixes), step).items():
            costs = setup.costs(context.plans[plan if position is None else first.prefixes[position]])
            clients = len(group) if position is None and len(rows) == active else len(rows)
            moves = 0 if position is None else 2
            moved = moves * CUT * costs.bytes
            total = total.plus(
                Workload(
                    clients * longest * costs.training_flops,
                    clients * (longest * costs.example_traffic_bytes + costs.step_traffic_bytes + moved),
                    (1 + moves * MOVED) * costs.tensors,
                )
            )
    return total, len(group)


def block_work(setup: Setup, context: RoundContext, jobs: Sequence[Job]) -> BlockWork:
    """All that a worker does for a block: cutting, training, calibrating, summing."""
    full = setup.costs(Plan())
    alone, stacked = Workload(traffic_bytes=SUM * full.bytes_up), 0.0
    for plan, group in stacking_groups(jobs, context.stack):
        if plan is not None:
            costs = setup.costs(context.plans[plan])
            trained, clients = _passes(setup, context, plan, group)
            moved = clients * (CUT + CHANGE) * costs.bytes
            once = len(group) > 1
            stacked += trained.dispatches if once else 0.0
            started = MOVED * clients * costs.tensors + (0.0 if once else trained.dispatches)
            alone = alone.plus(Workload(trained.flops, trained.traffic_bytes + moved, started))
        for job in group:
            if job.calibrate:
                report = replace(planned_work(setup, context, job), forward_backward=())
                alone = alone.plus(reported_work(setup, context, report))
    return BlockWork(alone, stacked)


def block_seconds(device: Device, block: BlockWork) -> float:
    """`round_costs.compute_seconds`, and the stacked dispatches at the device's own rate for them."""
    each = device.host.stacked_dispatch_seconds if device.host else device.dispatch_seconds
    return compute_seconds(device, block.work) + block.stacked * each


@dataclass(frozen=True)
class WorkerSlot:
    """A worker: the number of its node, 0 the driver's, its rates, those of its node's link, and its worker group (see pool/worker_groups.py)."""

    node: int
    device: Device
    network_bytes_per_second: float
    worker_group: int = 0


@dataclass(frozen=True)
class RoundSeconds:
    """A round's predicted seconds. `sending`: parameters to the nodes; `training`: until the last block is there and added; `server`: the rest of the driver's.

    `busy`: by worker, how long it computes; `blocks`: by worker, how many.
    """

    sending: float
    training: float
    server: float
    busy: tuple[float, ...]
    blocks: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Of the whole round."""
        return self.sending + self.training + self.server


def round_seconds(
    setup: Setup,
    work: Round,
    slots: Sequence[WorkerSlot],
    driver: Device,
    by_device_type: Mapping[str, int] = MappingProxyType({}),
) -> RoundSeconds:
    """A round without evaluation: sending + training + server. `by_device_type`: device type -> its worker group, as `worker_groups.worker_groups_of` gives it.

    Sending: the trained parameters, B bytes, are copied to the object store, and go from the driver's node to every other one over its link (Hockney
    1994, without latency): 2 B / M + (nodes - 1) B / network. Training: blocks last `block_seconds` and run in `dispatch.completion_times`' order;
    the driver takes their sums in block order, each when it is done and the one before is added: end <- max(end, done + moving) + 3 B / M.
    Server: `round_seconds` + B / `round_bytes_per_second` of its `host`, both measured by fleet calibrate. M: sustained memory bytes/s of the driver's core.
    """
    host, full = driver.host or Host(), setup.costs(Plan()).bytes_up
    memory = driver.memory_bytes_per_second * driver.sustained
    blocks = [block_work(setup, work.context, block) for block in work.blocks]
    known: dict[tuple[int, int], float] = {}

    def seconds(block: int, slot: int) -> float:
        key = block, id(slots[slot].device)
        if key not in known:
            known[key] = block_seconds(slots[slot].device, blocks[block])
        return known[key]

    worker_groups = [
        worker_group_of(Call("block", work.context, (block,)), setup.device_types, by_device_type) for block in work.blocks
    ]
    done, where = completion_times(block_costs(setup, work), seconds, [slot.worker_group for slot in slots], worker_groups)
    links = {slot.node: slot.network_bytes_per_second for slot in slots if slot.node}
    end = 0.0
    for when, slot in zip(done, where, strict=True):
        moving = full / links[slots[slot].node] if slots[slot].node else 0.0
        end = max(end, when + moving) + ADD * full / memory
    busy = [sum(seconds(block, slot) for block, at in enumerate(where) if at == slot) for slot in range(len(slots))]
    sending = 2 * full / memory + sum(full / rate for rate in links.values())
    server = host.round_seconds + full / host.round_bytes_per_second
    return RoundSeconds(
        sending=sending,
        training=end,
        server=server,
        busy=tuple(busy),
        blocks=tuple(where.count(slot) for slot in range(len(slots))),
    )
