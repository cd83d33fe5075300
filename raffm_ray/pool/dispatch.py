"""Which call goes to which worker, and when all are done if it is known how long each takes. No Ray in it."""

from collections import deque
from collections.abc import Callable, Sequence

DEPTH = 4
"""Calls that an actor has at most, the one that it is at included, so that it never waits for the driver."""
AHEAD = 2
"""It has another only while more than so many an actor wait for each that it has: the last calls go to whoever is idle, so that nobody
ends much later than the others."""


def takes_another(held: int, depth: int, waiting: int, workers: int) -> bool:
    """Whether an actor with `held` calls gets another in the pass of this depth, 0 to DEPTH - 1, while so many calls wait for so many actors."""
    return held <= depth and waiting > depth * AHEAD * workers


def ends(
    costs: Sequence[float], seconds: Callable[[int, int], float], members: Sequence[int], team_of: Sequence[int]
) -> tuple[list[float], list[int]]:
    """When each call ends, in seconds from the first one's start, and which worker it was on.

    `costs`: by which calls are ordered; `seconds`: (call, worker) -> how long it takes there; `members`: the team of every worker;
    `team_of`: which team does a call. It is list scheduling, longest processing time first (Graham 1969), with calls given ahead as
    `flights.Flights` gives them.
    """
    waiting: dict[int, list[int]] = {team: [] for team in members}
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], -index)):
        waiting[team_of[index]].append(index)
    flying: list[deque[int]] = [deque() for _ in members]
    ended, where, due = [0.0] * len(costs), [0] * len(costs), [0.0] * len(members)
    now = 0.0
    while True:
        for depth in range(DEPTH):
            for worker, (held, team) in enumerate(zip(flying, members, strict=True)):
                if takes_another(len(held), depth, len(waiting[team]), members.count(team)):
                    held.append(waiting[team].pop())
                    if len(held) == 1:
                        due[worker] = now + seconds(held[0], worker)
        busy = [worker for worker, held in enumerate(flying) if held]
        if not busy:
            return ended, where
        first = min(busy, key=lambda worker: due[worker])
        now, call = due[first], flying[first].popleft()
        ended[call], where[call] = now, first
        if flying[first]:
            due[first] = now + seconds(flying[first][0], first)
