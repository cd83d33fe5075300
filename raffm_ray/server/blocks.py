"""How a round's clients are divided into blocks: fixed by the round, whatever the workers."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.messages import Job
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.stacked_modules import why_not_stacked
from raffm_ray.server.state import Setup
from raffm_ray.settings.experiment import Experiment


def not_stacked(experiment: Experiment, architecture: Architecture) -> str | None:
    """Why clients are trained one by one, None where they need not. Raises UserError where the experiment asks for more at once."""
    asked = experiment.pool.stack_clients
    update = experiment.local.client_update
    one_by_one = None if CLIENT_UPDATES[update].stacks else f"local.client_update {update!r} trains one by one"
    one_by_one = "strategy.personal trains one by one" if experiment.strategy.personal else one_by_one
    one_by_one = "local.gradient_checkpointing trains one by one" if experiment.local.gradient_checkpointing else one_by_one
    reason = why_not_stacked(architecture) or one_by_one if asked != 1 else None
    if reason and asked:
        raise UserError(f"pool.stack_clients: {asked} clients of this model cannot be trained at once: {reason}")
    return reason


STACK_CLIENTS = 16
"""Clients of a small model trained at once; more of them gain no more (a ViT of 45,000 parameters: 0.59, 0.53, 0.50, 0.53 of the time of
one by one with 4, 8, 16, 32)."""
STACK_FLOPS = 5e8
"""A training step of at most so many FLOPs is small. On a CPU core, stacked took 0.5 of the time at 8e7 FLOPs, 0.7 at 3e8, 0.95 at 1e9."""


def stack_sizes(setup: Setup, plans: Sequence[Plan]) -> tuple[int, ...]:
    """How many clients of each plan may be trained at once: a property of the round, so that any worker does the same."""
    asked, batch_size = setup.experiment.pool.stack_clients, setup.experiment.local.batch_size
    stacks = CLIENT_UPDATES[setup.experiment.local.client_update].stacks
    alone = setup.personal or setup.strategy.distill or setup.strategy.factors != "both"
    alone = alone or setup.experiment.local.gradient_checkpointing
    if setup.not_stacked or not stacks or alone or asked == 1:
        return ()
    return tuple(
        asked or (STACK_CLIENTS if setup.costs(plan).training_flops * batch_size <= STACK_FLOPS else 1) for plan in plans
    )


WORTH_FLOPS = 12.0
"""FLOPs of training for which a byte of a block's sum is worth moving. Returned and added it takes about 0.3 ns of a core, or 3 FLOPs at
10 GFLOP/s: so moving is at most a quarter of the work."""
LEAST_BLOCKS = 16
"""That a round is divided into even so: more workers have something to do."""


def least_clients(flops: Sequence[float], sum_bytes: int) -> int:
    """How many clients a block must have at least, so that their training outweighs the moving of their sum. `flops`: of every client's
    training; `sum_bytes`: of a block's sum. A property of the round, whatever the workers."""
    mean = sum(flops) / max(1, len(flops))
    return max(1, min(ceil(WORTH_FLOPS * sum_bytes / mean) if mean else len(flops), len(flops) // LEAST_BLOCKS))


def blocks_of(
    jobs: Sequence[Job], steps: Sequence[int], size: int | None, stack: Sequence[int], least: int = 1
) -> tuple[tuple[Job, ...], ...]:
    """Fixed groups of clients, whatever the workers: the same sums in the same order.

    Runs of `size` clients, where it is given. Else one stack a block, of clients with like numbers of steps, in 2, 4, 8 ... even parts
    of those that train a plan, so that as many workers have as much to do; and runs of a 64th of the others, of `least` clients or more.
    """
    alone, together = list[Job](), dict[int, list[tuple[int, int, Job]]]()
    for position, (job, count) in enumerate(zip(jobs, steps, strict=True)):
        if size is None and stack and job.plan is not None and stack[job.plan] > 1:
            together.setdefault(job.plan, []).append((count, position, job))
        else:
            alone.append(job)
    length = size or max(least, -(-len(alone) // 64))
    blocks = [tuple(alone[start : start + length]) for start in range(0, len(alone), length)]
    for plan, clients in sorted(together.items()):
        parts = 1
        while parts * stack[plan] < len(clients):
            parts *= 2
        ordered = [job for *_, job in sorted(clients)]
        edges = [len(ordered) * part // parts for part in range(parts + 1)]
        blocks += [tuple(ordered[start:stop]) for start, stop in pairwise(edges)]
    return tuple(blocks)
