"""Runs the blocks of one round on a pool, and adds their sums in block order."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raffm_ray.basics.errors import BadUpdateError
from raffm_ray.clients.messages import Call, Update
from raffm_ray.clients.reach.block_reach import reach_of
from raffm_ray.clients.update_checks import check_sum
from raffm_ray.pool.worker_pool import Pool
from raffm_ray.runs.client_states.store import ClientStates, arguments_of
from raffm_ray.runs.evaluation import EvaluationRequest
from raffm_ray.runs.progress import Display
from raffm_ray.runs.summary import Evaluation
from raffm_ray.server.state import Round, ServerState, Setup
from raffm_ray.server.workload import block_costs


def run_round(
    setup: Setup,
    work: Round,
    state: ServerState,
    pool: Pool,
    display: Display,
    beside: EvaluationRequest[Evaluation] | None = None,
    states: ClientStates | None = None,
) -> tuple[Tensor, list[Update], list[Tensor], Evaluation | None]:
    """Runs a round's blocks on the pool, and an evaluation of the same parameters beside them.

    Returns the flat sum, added in block order, the blocks' updates, the sums of its late blocks, which are not in it, and the
    evaluation. `states`: where clients' states are read and written, None where they keep nothing.
    """
    blocks = zip(work.blocks, block_costs(setup, work), strict=True)
    calls = [Call("block", work.context, arguments_of(block, state, states), cost) for block, cost in blocks]
    sent = state.sent_array
    summed, done = torch.zeros(len(sent)), 0
    updates: list[Update] = []
    late: list[Tensor] = []
    told: list[Any] = []
    if beside is not None:
        calls += beside.calls

    def progress(index: int, _: Any) -> None:
        nonlocal done
        done += len(work.blocks[index]) if index < len(work.blocks) else 0
        number = work.context.round
        share = done / max(1, len(work.jobs))  # an evaluation may run beside a round in which nobody trains
        display.advance(number - 1 + share, f"round {number}/{display.rounds}  {done}/{len(work.jobs)} clients")

    for small, part in pool.run(sent, calls, progress, state.frozen_array):
        if len(updates) == len(work.blocks):
            told.append(small)
            continue
        with pool.profile.during("add"), np.errstate(over="ignore", invalid="ignore"):  # it is looked for below
            reach = reach_of(work.context, work.blocks[len(updates)], setup.architecture, setup.words)
            check_sum(part, sum(reach.lengths(len(sent), setup.memory[1])), work.context.round, work.blocks[len(updates)])
            if len(updates) >= len(work.blocks) - work.late:
                late.append(torch.zeros(len(sent)))
            reach.add_to(late[-1] if late else summed, part, setup.memory[1])
        updates.append(small if states is None else states.keep(work.context.round, small))
    # Every client's part is finite, as was checked where it was trained. Least and greatest are NaN where any entry is; nothing is copied.
    if not bool(torch.stack(summed.aminmax()).isfinite().all()):
        raise BadUpdateError(f"round {work.context.round}: the sum of its updates is beyond the range of float32")
    with pool.profile.during("evaluate"):
        return summed, updates, late, None if beside is None else beside.answer(told)
