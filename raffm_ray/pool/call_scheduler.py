"""The calls of one run on Ray's actors: waiting, in flight, done; and what becomes of those whose actor is lost."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple, Protocol

import ray

from raffm_ray.basics.errors import ClientError, WorkerLostError
from raffm_ray.basics.profiling import Profile
from raffm_ray.clients.messages import Call, Progress, Result, described
from raffm_ray.models.architecture import Architecture
from raffm_ray.pool.call_timeout import Pace
from raffm_ray.pool.dispatch import DEPTH, takes_another
from raffm_ray.pool.gpu_sharing import HELP, NoRoomError, Turns, told
from raffm_ray.pool.worker import NotBegunError

READY_SECONDS = 180.0
"""How long workers may take to start before that is an error."""


class HungError(Exception):
    """A call took far longer than its cost predicts."""


class _Flight(NamedTuple):
    """A call on its actor, and the promises of its results."""

    call: int
    small: Any
    large: Any


@dataclass
class Seat:
    """An actor and its calls, which it works off in this order. `starting`: the promise of its place; `place`: where it is, None until it
    has started, and no call goes to it before; `since`: when it began with its first call, or to start (`time.monotonic`); `team`: of its
    pool's, which does only some of the calls."""

    actor: Any
    starting: Any
    team: int = 0
    place: str | None = None
    flying: deque[_Flight] = field(default_factory=deque)
    since: float = field(default_factory=monotonic)

    def started(self, place: str) -> None:
        """Notes that the actor is there."""
        self.place, self.since = place, monotonic()


class Owner(Protocol):
    """What flights need of their pool."""

    attempts: int
    workers: int
    lost_workers: int
    profile: Profile
    pace: Pace
    architecture: Architecture

    def note(self, line: str, /) -> None:
        """Tells the user."""

    def spawn(self, team: int, /) -> tuple[Any, Any]:
        """A new actor of a team, and the promise of its place."""

    def team_of(self, call: Call, /) -> int:
        """Which team does a call."""


class Flights:
    """The calls of one run."""

    def __init__(
        self,
        pool: Owner,
        seats: Sequence[Seat],
        run: int,
        flat: Any,
        calls: Sequence[Call],
        costs: Sequence[float],
        progress: Progress,
    ) -> None:
        self.pool, self.seats, self.run, self.flat, self.progress = pool, seats, run, flat, progress
        self.calls, self.costs = calls, costs
        number_of: dict[int, int] = {}
        self.package_of = [number_of.setdefault(id(package), len(number_of)) for _, package, _ in calls]
        self.packages = ray.put([calls[self.package_of.index(number)][1] for number in number_of.values()])
        self.team_of = [pool.team_of(call) for call in calls]
        self.waiting: dict[int, list[int]] = {seat.team: [] for seat in seats}
        for index in sorted(range(len(calls)), key=lambda index: (costs[index], -index)):
            self.waiting[self.team_of[index]].append(index)
        self.tries = [0] * len(calls)
        self.done: dict[int, tuple[Any, Any]] = {}
        self.told: set[int] = set()
        self.suspects: set[int] = set()
        self.turns = Turns()
        self.failed_starts = 0
        for seat in seats:
            seat.flying.clear()  # of a run that was abandoned: the actor ends it first
            if seat.place is not None:
                self.begin(seat)
        self.start()

    def begin(self, seat: Seat) -> None:
        """Sends what all calls share."""
        seat.actor.begin.remote(self.run, self.packages, self.flat)

    def start(self) -> None:
        """Gives every idle actor the costliest call that waits, and, while many wait, every actor its next ones.

        A call that was in flight when an actor died flies alone from then on, so that it is clear which one is to blame. One that found
        no room on its GPU runs there while no other does.
        """
        seated = [seat for seat in self.seats if seat.place is not None]
        for gpu in self.turns.waiting():
            beside = [seat for seat in seated if seat.place == gpu]
            if not beside:
                for index in self.turns.leave(gpu):
                    self.waits(index)
            elif not any(seat.flying for seat in beside):
                emptied = [seat.actor.make_room.remote() for seat in beside]
                ray.wait(emptied, num_returns=len(emptied))
                self.send(beside[0], self.turns.begin(gpu), alone=True)
        closed = self.turns.closed()
        seats = [seat for seat in seated if seat.place not in closed]
        members = Counter(seat.team for seat in self.seats)
        for depth in range(DEPTH):
            for seat in seats:
                waiting = self.waiting[seat.team]
                if takes_another(len(seat.flying), depth, len(waiting), members[seat.team]):
                    if seat.flying and not self.suspects.isdisjoint([waiting[-1], seat.flying[-1].call]):
                        continue
                    self.send(seat, waiting.pop())

    def waits(self, index: int) -> None:
        """Puts a call first in its team's queue."""
        self.waiting[self.team_of[index]].append(index)

    def send(self, seat: Seat, index: int, alone: bool = False) -> None:
        """Puts a call behind those that an actor has."""
        self.tries[index] += 1
        method, _, arguments = self.calls[index]
        if not seat.flying:
            seat.since = monotonic()
        promised = seat.actor.call.remote(self.run, method, self.package_of[index], arguments, alone)
        seat.flying.append(_Flight(index, *promised))

    def land(self) -> None:
        """Waits for a call to end, or an actor to start, and starts the next there; takes a call for hung that should have ended."""
        flying = {seat.flying[0].small: seat for seat in self.seats if seat.flying}
        starting = {seat.starting: seat for seat in self.seats if seat.place is None}
        due = {small: seat.since + self.limit_seconds(seat) for small, seat in flying.items()}
        first = min(due.values(), default=max((seat.since for seat in starting.values()), default=monotonic()) + READY_SECONDS)
        with self.pool.profile.during("wait"):
            ready, _ = ray.wait([*flying, *starting], num_returns=1, timeout=max(0.0, first - monotonic()))
        if ready and ready[0] in flying:
            self.landed(flying[ready[0]])
        elif ready:
            self.seat(starting[ready[0]])
        elif flying:
            late = flying[min(due, key=lambda small: due[small])]
            predicted = self.pool.pace.predicted_seconds(*self.kind_and_cost(late))
            taken = f"not done after {monotonic() - late.since:.3g} s, and its cost predicts at most {predicted:.2g} s"
            self.lost(late, HungError(taken))
        else:
            raise WorkerLostError(f"no worker started within {READY_SECONDS:.0f} s in place of those that were lost")
        self.start()

    def kind_and_cost(self, seat: Seat) -> tuple[str, float]:
        """Of the call that an actor is at."""
        index = seat.flying[0].call
        return self.calls[index][0], self.costs[index]

    def limit_seconds(self, seat: Seat) -> float:
        """How long an actor may be at its call."""
        return self.pool.pace.limit_seconds(*self.kind_and_cost(seat))

    def landed(self, seat: Seat) -> None:
        """Takes the result of an actor's oldest call, or learns why there is none."""
        kind, cost = self.kind_and_cost(seat)
        index, small, large = seat.flying[0]
        try:
            result, seconds = ray.get(small)
        except NoRoomError as error:
            self.pop(seat)
            self.crowded(seat, index, error)
        except ray.exceptions.RayError as error:
            self.lost(seat, error)
        else:
            self.pool.pace.ended(kind, cost, monotonic() - seat.since)
            self.pop(seat)
            self.done[index] = (result, large)
            self.pool.profile.add(seconds, self.pool.workers)
            if index not in self.told:
                self.told.add(index)
                with self.pool.profile.during("record"):
                    self.progress(index, result)
        self.turns.ended(index)

    def pop(self, seat: Seat) -> None:
        """An actor is done with its oldest call, and at the next."""
        seat.flying.popleft()
        seat.since = monotonic()

    def seat(self, seat: Seat) -> None:
        """Takes an actor that has started to the others, or tries another. Raises WorkerLostError after too many that died at once."""
        try:
            place = ray.get(seat.starting)
        except ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= self.pool.attempts:
                raise WorkerLostError(f"{self.failed_starts} workers died as they started, {cause(error)}") from None
            self.replace(seat)
            return
        if place is None:
            raise WorkerLostError("a worker started where torch sees no GPU, in place of one that was lost")
        seat.started(place)
        self.begin(seat)

    def replace(self, seat: Seat) -> None:
        """Kills an actor that failed and has another started in its place."""
        self.pool.lost_workers += 1
        ray.kill(seat.actor)
        seat.actor, seat.starting = self.pool.spawn(seat.team)
        seat.place, seat.since = None, monotonic()

    def crowded(self, seat: Seat, index: int, error: NoRoomError) -> None:
        """Lets a call that its GPU had no room for run again without neighbours. Raises ClientError if it had none."""
        what = told(self.pool.architecture, self.calls[index], getattr(error, "cause", error))  # Ray adds where it came from
        if not self.turns.refused(str(seat.place), index):
            raise ClientError(f"{what}, also with nothing else at work there; {HELP}") from None
        self.tries[index] -= 1
        self.pool.note(f"note: {what}; it runs again while nothing else does there")

    def lost(self, seat: Seat, error: Exception) -> None:
        """Replaces an actor that died over its oldest call; the others were not tried. Raises what the call itself raised."""
        index = seat.flying.popleft().call
        own = isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.UnserializableException)
        if own and not isinstance(error, NotBegunError):
            raise ClientError(f"round {self.calls[index][1].round}, {described(self.calls[index])}: {error}") from None
        self.suspects.add(index)
        while seat.flying:
            other = seat.flying.pop().call
            self.suspects.add(other)
            self.tries[other] -= 1
            self.waits(other)
        self.again(index, error)
        self.replace(seat)

    def take(self, index: int) -> Result | None:
        """The result of a call once it is done and still to be had; it is forgotten here."""
        if index not in self.done:
            return None
        small, large = self.done.pop(index)
        try:
            with self.pool.profile.during("wait"):
                return small, ray.get(large)
        except ray.exceptions.RayError as error:
            self.again(index, error)
            self.start()
            return None

    def again(self, index: int, error: Exception) -> None:
        """Puts a call whose worker or result was lost first in the queue, unless it was tried too often."""
        if self.tries[index] >= self.pool.attempts:
            what = f"round {self.calls[index][1].round}, {described(self.calls[index])}"
            raise WorkerLostError(f"{what}: the worker was lost {self.tries[index]} times, {cause(error)}")
        self.waits(index)


def cause(error: Exception) -> str:
    """Of a worker's end, in words."""
    return f"the last time by {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
