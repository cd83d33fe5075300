"""What came of a client's training, before its change is added to others'."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from raffm_ray.axes.indexing import Indices
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.messages import Job


class TrainingResult(NamedTuple):
    """What came of a client's training: mean loss, examples by plan, its change, flat in its plan's order without what is frozen, and its part of the seconds
    where it was trained together with others; what it keeps, and the change of the server's control variate, flat as `change`, where there are any; `ranks`: how many it keeps from now on, None for as many as before;
    `words`: of which words, ascending, `change` has the rows of their table, None for all."""

    loss: float
    seen: dict[int, int]
    change: Tensor
    seconds: float = 0.0
    state: ClientState | None = None
    variate: Tensor | None = None
    ranks: int | None = None
    words: Indices | None = None


def by_plan(seen: Mapping[int | None, int], job: Job) -> dict[int, int]:
    """Examples by plan, from those by the place among the job's prefixes, None for its own plan."""
    assert job.plan is not None
    return {job.plan if position is None else job.prefixes[position]: count for position, count in seen.items()}
