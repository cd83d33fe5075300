"""Which call goes to which worker, and when each call ends if its duration is known. It does not use Ray."""

from collections import deque
from collections.abc import Callable, Sequence

DEPTH = 4
"""Calls that an actor has at most, the one that it is at included, so that it never waits for the driver."""
AHEAD = 2
"""It has another only while more than so many an actor wait for each that it has: the last calls go to whoever is idle, so that nobody
ends much later than the others."""


def accepts_call(held: int, depth: int, waiting: int, workers: int) -> bool:
    """Whether an actor with `held` calls gets another in the pass of this depth, 0 to DEPTH - 1, while so many calls wait for so many actors."""
    return held <= depth and waiting > depth * AHEAD * workers


def completion_times(
    costs: Sequence[float], seconds: Callable[[int, int], float], members: Sequence[int], worker_group_of: Sequence[int]
) -> tuple[list[float], list[int]]:
    """When each call ends, in seconds from the first one's start, and which worker it was on.

    `costs`: by which calls are ordered; `seconds`: (call, worker) -> how long it takes there; `members`: the worker group of every worker;
    `worker_group_of`: which worker group does a call. It is list scheduling, longest processing time first (Graham 1969), with calls given ahead as
    `call_scheduler.CallScheduler` gives them.
    """
    waiting: dict[int, list[int]] = {worker_group: [] for worker_group in members}
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], -index)):
        waiting[worker_group_of[index]].append(index)
    in_flight: list[deque[int]] = [deque() for _ in members]
    ended, where, due = [0.0] * len(costs), [0] * len(costs), [0.0] * len(members)
    now = 0.0
    while True:
        for depth in range(DEPTH):
            for worker, (held, worker_group) in enumerate(zip(in_flight, members, strict=True)):
                if accepts_call(len(held), depth, len(waiting[worker_group]), members.count(worker_group)):
                    held.append(waiting[worker_group].pop())
                    if len(held) == 1:
                        due[worker] = now + seconds(held[0], worker)
        busy = [worker for worker, held in enumerate(in_flight) if held]
        if not busy:
            return ended, where
        first = min(busy, key=lambda worker: due[worker])
        now, call = due[first], in_flight[first].popleft()
        ended[call], where[call] = now, first
        if in_flight[first]:
            due[first] = now + seconds(in_flight[first][0], first)
