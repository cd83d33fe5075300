"""Supervises Ray actors while they run the calls of one `RayPool.run`: sends calls, replaces actors that die or hang, retries their calls."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple, Protocol

import ray

from raffm_ray.basics.errors import ClientError, WorkerLostError
from raffm_ray.basics.formatting import human_seconds
from raffm_ray.basics.profiling import Profile
from raffm_ray.clients.messages import Call, Progress, Result, describe_call
from raffm_ray.models.architecture import Architecture
from raffm_ray.pool.call_timeout import CallTimeout
from raffm_ray.pool.dispatch import DEPTH, accepts_call
from raffm_ray.pool.gpu_sharing import HELP, ExclusiveGpuQueue, GpuOutOfMemoryError, describe_out_of_memory
from raffm_ray.pool.worker import NotStartedError

READY_SECONDS = 180.0
"""How long workers may take to start before that is an error."""


class HungError(Exception):
    """A call took far longer than its cost predicts."""


class _InFlightCall(NamedTuple):
    """A call on its actor, and the promises of its results."""

    call: int
    small: Any
    large: Any


@dataclass
class WorkerSlot:
    """An actor and its calls, which it works off in this order. `starting`: the promise of its place; `place`: where it is, None until it
    has started, and no call goes to it before; `since`: when it began with its first call, or to start (`time.monotonic`); `worker_group`: of its
    pool's, which does only some of the calls."""

    actor: Any
    starting: Any
    worker_group: int = 0
    place: str | None = None
    in_flight: deque[_InFlightCall] = field(default_factory=deque)
    since: float = field(default_factory=monotonic)

    def started(self, place: str) -> None:
        """Notes that the actor is there."""
        self.place, self.since = place, monotonic()


class SchedulerHost(Protocol):
    """What the scheduler needs of its pool."""

    attempts: int
    workers: int
    lost_workers: int
    profile: Profile
    call_timeout: CallTimeout
    architecture: Architecture

    def note(self, line: str, /) -> None:
        """Tells the user."""

    def spawn(self, worker_group: int, /) -> tuple[Any, Any]:
        """A new actor of a worker group, and the promise of its place."""

    def worker_group_of(self, call: Call, /) -> int:
        """Which worker group does a call."""


class CallScheduler:
    """The calls of one run."""

    def __init__(
        self,
        pool: SchedulerHost,
        slots: Sequence[WorkerSlot],
        run: int,
        parameters: tuple[Any, Any],
        calls: Sequence[Call],
        progress: Progress,
    ) -> None:
        self.pool, self.slots, self.run, self.parameters, self.progress = pool, slots, run, parameters, progress
        self.calls = calls
        number_of: dict[int, int] = {}
        self.context_of = [number_of.setdefault(id(context), len(number_of)) for context in (call.context for call in calls)]
        self.contexts = ray.put([calls[self.context_of.index(number)].context for number in number_of.values()])
        self.worker_group_of = [pool.worker_group_of(call) for call in calls]
        self.waiting: dict[int, list[int]] = {slot.worker_group: [] for slot in slots}
        for index in sorted(range(len(calls)), key=lambda index: (calls[index].cost, -index)):
            self.waiting[self.worker_group_of[index]].append(index)
        self.tries = [0] * len(calls)
        self.done: dict[int, tuple[Any, Any]] = {}
        self.reported: set[int] = set()
        self.suspects: set[int] = set()
        self.gpu_queue = ExclusiveGpuQueue()
        self.failed_starts = 0
        for slot in slots:
            slot.in_flight.clear()  # of a run that was abandoned: the actor ends it first
            if slot.place is not None:
                self.begin(slot)
        self.start()

    def begin(self, slot: WorkerSlot) -> None:
        """Sends what all calls share."""
        slot.actor.begin.remote(self.run, self.contexts, *self.parameters)

    def start(self) -> None:
        """Gives every idle actor the costliest call that waits, and, while many wait, every actor its next ones.

        A call that was in flight when an actor died runs alone from then on, so that it is clear which one is to blame. One that found
        no room on its GPU runs there while no other does.
        """
        started_slots = [slot for slot in self.slots if slot.place is not None]
        for gpu in self.gpu_queue.waiting():
            beside = [slot for slot in started_slots if slot.place == gpu]
            if not beside:
                for index in self.gpu_queue.leave(gpu):
                    self.requeue(index)
            elif not any(slot.in_flight for slot in beside):
                emptied = [slot.actor.release_gpu_memory.remote() for slot in beside]
                ray.wait(emptied, num_returns=len(emptied))
                self.submit(beside[0], self.gpu_queue.begin(gpu), alone=True)
        closed = self.gpu_queue.closed()
        slots = [slot for slot in started_slots if slot.place not in closed]
        members = Counter(slot.worker_group for slot in self.slots)
        for depth in range(DEPTH):
            for slot in slots:
                waiting = self.waiting[slot.worker_group]
                if accepts_call(len(slot.in_flight), depth, len(waiting), members[slot.worker_group]):
                    if slot.in_flight and not self.suspects.isdisjoint([waiting[-1], slot.in_flight[-1].call]):
                        continue
                    self.submit(slot, waiting.pop())

    def requeue(self, index: int) -> None:
        """Puts a call first in its worker group's queue."""
        self.waiting[self.worker_group_of[index]].append(index)

    def submit(self, slot: WorkerSlot, index: int, alone: bool = False) -> None:
        """Puts a call behind those that an actor has."""
        self.tries[index] += 1
        call = self.calls[index]
        if not slot.in_flight:
            slot.since = monotonic()
        promised = slot.actor.call.remote(self.run, call.method, self.context_of[index], call.arguments, alone)
        slot.in_flight.append(_InFlightCall(index, *promised))

    def wait_for_next(self) -> None:
        """Waits for a call to end, or an actor to start, and starts the next there; takes a call for hung that should have ended."""
        in_flight = {slot.in_flight[0].small: slot for slot in self.slots if slot.in_flight}
        starting = {slot.starting: slot for slot in self.slots if slot.place is None}
        due = {small: slot.since + self.limit_seconds(slot) for small, slot in in_flight.items()}
        first = min(due.values(), default=max((slot.since for slot in starting.values()), default=monotonic()) + READY_SECONDS)
        with self.pool.profile.during("wait"):
            ready, _ = ray.wait([*in_flight, *starting], num_returns=1, timeout=max(0.0, first - monotonic()))
        if ready and ready[0] in in_flight:
            self.finish_call(in_flight[ready[0]])
        elif ready:
            self.admit(starting[ready[0]])
        elif in_flight:
            late = in_flight[min(due, key=lambda small: due[small])]
            predicted = self.pool.call_timeout.predicted_seconds(*self.kind_and_cost(late))
            taken = f"not done after {human_seconds(monotonic() - late.since)}, and its cost predicts at most {human_seconds(predicted)}"
            self.actor_lost(late, HungError(taken))
        else:
            raise WorkerLostError(f"no worker started within {READY_SECONDS:.0f} s in place of those that were lost")
        self.start()

    def kind_and_cost(self, slot: WorkerSlot) -> tuple[str, float]:
        """Of the call that an actor is at."""
        index = slot.in_flight[0].call
        return self.calls[index].method, self.calls[index].cost

    def limit_seconds(self, slot: WorkerSlot) -> float:
        """How long an actor may be at its call."""
        return self.pool.call_timeout.limit_seconds(*self.kind_and_cost(slot))

    def finish_call(self, slot: WorkerSlot) -> None:
        """Takes the result of an actor's oldest call, or learns why there is none."""
        kind, cost = self.kind_and_cost(slot)
        index, small, large = slot.in_flight[0]
        try:
            result, seconds = ray.get(small)
        except GpuOutOfMemoryError as error:
            self.pop(slot)
            self.retry_alone(slot, index, error)
        except ray.exceptions.RayError as error:
            self.actor_lost(slot, error)
        else:
            self.pool.call_timeout.ended(kind, cost, monotonic() - slot.since)
            self.pop(slot)
            self.done[index] = (result, large)
            self.pool.profile.add(seconds, self.pool.workers)
            if index not in self.reported:
                self.reported.add(index)
                with self.pool.profile.during("record"):
                    self.progress(index, result)
        self.gpu_queue.ended(index)

    def pop(self, slot: WorkerSlot) -> None:
        """An actor is done with its oldest call, and at the next."""
        slot.in_flight.popleft()
        slot.since = monotonic()

    def admit(self, slot: WorkerSlot) -> None:
        """Takes an actor that has started to the others, or tries another. Raises WorkerLostError after too many that died at once."""
        try:
            place = ray.get(slot.starting)
        except ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= self.pool.attempts:
                raise WorkerLostError(f"{self.failed_starts} workers died as they started, {cause(error)}") from None
            self.replace(slot)
            return
        if place is None:
            raise WorkerLostError("a worker started where torch sees no GPU, in place of one that was lost")
        slot.started(place)
        self.begin(slot)

    def replace(self, slot: WorkerSlot) -> None:
        """Kills an actor that failed and has another started in its place."""
        self.pool.lost_workers += 1
        ray.kill(slot.actor)
        slot.actor, slot.starting = self.pool.spawn(slot.worker_group)
        slot.place, slot.since = None, monotonic()

    def retry_alone(self, slot: WorkerSlot, index: int, error: GpuOutOfMemoryError) -> None:
        """Lets a call that its GPU had no room for run again without neighbours. Raises ClientError if it had none."""
        what = describe_out_of_memory(
            self.pool.architecture, self.calls[index], getattr(error, "cause", error)
        )  # Ray adds where it came from
        if not self.gpu_queue.refused(str(slot.place), index):
            raise ClientError(f"{what}, also with nothing else at work there; {HELP}") from None
        self.tries[index] -= 1
        self.pool.note(f"note: {what}; it runs again while nothing else does there")

    def actor_lost(self, slot: WorkerSlot, error: Exception) -> None:
        """Replaces an actor that died over its oldest call; the others were not tried. Raises what the call itself raised."""
        index = slot.in_flight.popleft().call
        own = isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.UnserializableException)
        if own and not isinstance(error, NotStartedError):
            raise ClientError(f"round {self.calls[index].context.round}, {describe_call(self.calls[index])}: {error}") from None
        self.suspects.add(index)
        while slot.in_flight:
            other = slot.in_flight.pop().call
            self.suspects.add(other)
            self.tries[other] -= 1
            self.requeue(other)
        self.retry(index, error)
        self.replace(slot)

    def take_result(self, index: int) -> Result | None:
        """The result of a call once it is done and still to be had; it is forgotten here."""
        if index not in self.done:
            return None
        small, large = self.done.pop(index)
        try:
            with self.pool.profile.during("wait"):
                return small, ray.get(large)
        except ray.exceptions.RayError as error:
            self.retry(index, error)
            self.start()
            return None

    def retry(self, index: int, error: Exception) -> None:
        """Puts a call whose worker or result was lost first in the queue, unless it was tried too often."""
        if self.tries[index] >= self.pool.attempts:
            what = f"round {self.calls[index].context.round}, {describe_call(self.calls[index])}"
            raise WorkerLostError(f"{what}: the worker was lost {self.tries[index]} times, {cause(error)}")
        self.requeue(index)


def cause(error: Exception) -> str:
    """Of a worker's end, in words."""
    return f"the last time by {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
