"""Blocks on Ray: one actor a core or a share of a GPU."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from raffm_ray.client import Runner, device_of
from raffm_ray.errors import ClientError, UserError, WorkerLostError
from raffm_ray.gpu import HELP, NoRoomError, Turns, gpu_memory_bytes, told, workers_a_gpu
from raffm_ray.messages import Call, Flat, Progress, Result, described
from raffm_ray.phases import Profile
from raffm_ray.ray_start import connect
from raffm_ray.running import PoolSettings
from raffm_ray.worker import NotBegunError, Worker

READY_SECONDS = 180.0
"""How long workers may take to start before that is an error."""
NO_GPU = "pool: workers are to compute on a GPU, but torch sees none there (pool.device: cpu would do without)"
DEPTH = 4
"""Calls that an actor has at most, the one that it is at included, so that it never waits for the driver."""
AHEAD = 2
"""It has another only while more than so many an actor wait for each that it has: the last calls go to whoever is idle, so that nobody
ends much later than the others."""


class _Worker(Worker):
    """The actor."""

    call = ray.method(num_returns=2)(Worker.call)


@dataclass
class _Seat:
    """An actor, where it is, and its calls in flight, (index, small, large) each: it works them off in this order."""

    actor: Any
    place: Any
    flying: deque[tuple[int, Any, Any]] = field(default_factory=deque)


class RayPool:
    """One actor a core, or a share of a GPU; a client is a call, not a process.

    Dispatch is dynamic, costliest call first; completion is by event. What the calls of a run share goes to every actor once. An actor
    that dies is replaced and its calls run again; a call is a pure function of its arguments, so it counts once.
    """

    def __init__(self, runner: Runner, settings: PoolSettings, note: Callable[[str], None] = lambda line: None) -> None:
        connect(settings)
        resources = ray.cluster_resources()
        share = _share(settings, runner.gpu_bytes, resources)
        fitting = int(resources.get("GPU", 0) / share + 1e-6) if share else int(resources.get("CPU", 1))
        self.workers = settings.workers or max(1, fitting)
        if self.workers > fitting:
            there = (
                f"{share:g} GPU each, and there are {resources.get('GPU', 0):g}"
                if share
                else f"a core each, and there are {fitting}"
            )
            raise UserError(f"pool.workers: {self.workers} workers need {there}")
        self.attempts, self.profile = settings.attempts, Profile()
        self._sent: tuple[Flat, Any] | None = None
        self._options = {"num_cpus": 0 if share else 1, "num_gpus": share, "max_restarts": 0, "max_task_retries": 0}
        self.architecture, self.note = runner.architecture, note
        self._arguments = (ray.put(runner), device_of(settings), share)
        self._runs = 0
        self._seats = [_Seat(*self._spawn()) for _ in range(self.workers)]
        try:
            self._await_ready([seat.place for seat in self._seats])
        except BaseException:
            self.close()
            raise

    def _spawn(self) -> tuple[Any, Any]:
        actor: Any = ray.remote(_Worker).options(**self._options).remote(*self._arguments)
        return actor, actor.place.remote()

    def _await_ready(self, asked: Sequence[Any]) -> None:
        ready, missing = ray.wait(list(asked), num_returns=len(asked), timeout=READY_SECONDS)
        if missing:
            free = {name: ray.available_resources().get(name, 0) for name in ("CPU", "GPU")}
            raise UserError(
                f"pool: {len(missing)} of {len(asked)} workers did not start within {READY_SECONDS:.0f} s; free now: {free} "
                "(is another run using them? pool.workers sets how many are wanted)"
            )
        if not all(ray.get(ready)):
            raise UserError(NO_GPU)

    def run(self, flat: Flat, calls: Sequence[Call], costs: Sequence[float], progress: Progress) -> Iterator[Result]:
        """See `pool.Pool.run`. Raises WorkerLostError after too many deaths, ClientError for whatever a call itself raises."""
        with self.profile.during("broadcast"):
            # The array sent last is kept alive, so one at its address is the same one.
            if self._sent is None or self._sent[0].ctypes.data != flat.ctypes.data:
                self._sent = (flat, ray.put(flat))
            self._runs += 1
            flight = _Flights(self, self._seats, self._runs, self._sent[1], calls, costs, progress)
        for wanted in range(len(calls)):
            while (result := flight.take(wanted)) is None:
                flight.land()
            yield result

    def replace(self, seat: _Seat) -> None:
        """Kills an actor that failed and seats another in its place."""
        ray.kill(seat.actor)
        seat.actor, seat.place = self._spawn()

    def close(self) -> None:
        """Kills the actors; Ray itself stays up for the next pool of this process."""
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats, self._sent = [], None


class _Flights:
    """The calls of one run: waiting, in flight, done."""

    def __init__(
        self, pool: RayPool, seats: Sequence[_Seat], run: int, flat: Any, calls: Sequence[Call], costs: Sequence[float],
        progress: Progress,
    ) -> None:  # fmt: skip
        self.pool, self.seats, self.run, self.flat, self.calls, self.progress = pool, seats, run, flat, calls, progress
        number_of: dict[int, int] = {}
        self.package_of = [number_of.setdefault(id(package), len(number_of)) for _, package, _ in calls]
        self.packages = ray.put([calls[self.package_of.index(number)][1] for number in number_of.values()])
        self.waiting = sorted(range(len(calls)), key=lambda index: (costs[index], -index))
        self.tries = [0] * len(calls)
        self.done: dict[int, tuple[Any, Any]] = {}
        self.told: set[int] = set()
        self.suspects: set[int] = set()
        self.turns = Turns()
        for seat in seats:
            seat.flying.clear()  # of a run that was abandoned: the actor ends it first
            self.begin(seat)
        self.start()

    def begin(self, seat: _Seat) -> None:
        """Sends what all calls share."""
        seat.actor.begin.remote(self.run, self.packages, self.flat)

    def start(self) -> None:
        """Gives every idle actor the costliest call that waits, and, while many wait, every actor its next ones.

        A call that was in flight when an actor died flies alone from then on, so that it is clear which one is to blame. One that found
        no room on its GPU runs there while no other does.
        """
        places = [_place_of(seat) for seat in self.seats] if self.turns.closed() else [""] * len(self.seats)
        for gpu in self.turns.waiting():
            beside = [seat for seat, place in zip(self.seats, places, strict=True) if place == gpu]
            if not beside:
                self.waiting += self.turns.leave(gpu)
            elif not any(seat.flying for seat in beside):
                emptied = [seat.actor.make_room.remote() for seat in beside]
                ray.wait(emptied, num_returns=len(emptied))
                self.send(beside[0], self.turns.begin(gpu), alone=True)
        closed = self.turns.closed()
        seats = [seat for seat, place in zip(self.seats, places, strict=True) if place not in closed]
        for depth in range(DEPTH):
            for seat in seats:
                if len(seat.flying) <= depth and len(self.waiting) > depth * AHEAD * len(self.seats):
                    if seat.flying and not self.suspects.isdisjoint([self.waiting[-1], seat.flying[-1][0]]):
                        continue
                    self.send(seat, self.waiting.pop())

    def send(self, seat: _Seat, index: int, alone: bool = False) -> None:
        """Puts a call behind those that an actor has."""
        self.tries[index] += 1
        method, _, arguments = self.calls[index]
        seat.flying.append((index, *seat.actor.call.remote(self.run, method, self.package_of[index], arguments, alone)))

    def land(self) -> None:
        """Waits for one call to end, and starts the next on its actor."""
        oldest = {seat.flying[0][1]: seat for seat in self.seats if seat.flying}
        with self.pool.profile.during("wait"):
            (ready, *_), _ = ray.wait(list(oldest), num_returns=1)
        seat = oldest[ready]
        index, _, large = seat.flying.popleft()
        try:
            small, seconds = ray.get(ready)
        except NoRoomError as error:
            self.crowded(seat, index, error)
        except ray.exceptions.RayError as error:
            self.lost(seat, index, error)
        else:
            self.done[index] = (small, large)
            self.pool.profile.add(seconds, self.pool.workers)
            if index not in self.told:
                self.told.add(index)
                with self.pool.profile.during("record"):
                    self.progress(index, small)
        self.turns.ended(index)
        self.start()

    def crowded(self, seat: _Seat, index: int, error: NoRoomError) -> None:
        """Lets a call that its GPU had no room for run again without neighbours. Raises ClientError if it had none."""
        what = told(self.pool.architecture, self.calls[index], getattr(error, "cause", error))  # Ray adds where it came from
        if not self.turns.refused(_place_of(seat), index):
            raise ClientError(f"{what}, also with nothing else at work there; {HELP}") from None
        self.tries[index] -= 1
        self.pool.note(f"note: {what}; it runs again while nothing else does there")

    def lost(self, seat: _Seat, index: int, error: Exception) -> None:
        """Replaces an actor that died over its oldest call; the others were not tried. Raises what the call itself raised."""
        own = isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.UnserializableException)
        if own and not isinstance(error, NotBegunError):
            raise ClientError(f"round {self.calls[index][1].round}, {described(self.calls[index])}: {error}") from None
        self.suspects.add(index)
        while seat.flying:
            other, *_ = seat.flying.pop()
            self.suspects.add(other)
            self.tries[other] -= 1
            self.waiting.append(other)
        self.again(index, error)
        self.pool.replace(seat)
        self.begin(seat)

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
            cause = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            raise WorkerLostError(f"{what}: the worker was lost {self.tries[index]} times, the last time by {cause}")
        self.waiting.append(index)


def _place_of(seat: _Seat) -> str:
    """Where an actor is; nowhere if it died."""
    try:
        return str(ray.get(seat.place))
    except ray.exceptions.RayError:
        return ""


def _share(settings: PoolSettings, need_bytes: int, resources: Mapping[str, float]) -> float:
    """The part of a GPU that a worker gets."""
    if settings.gpus_per_worker != "auto":
        return settings.gpus_per_worker
    gpus = resources.get("GPU", 0)
    if not gpus:
        raise UserError("pool.gpus_per_worker: auto needs a GPU, and Ray sees none")
    memory = settings.gpu_memory_bytes
    if memory is None:
        asked = ray.remote(gpu_memory_bytes).options(num_cpus=0, num_gpus=1).remote()
        if not ray.wait([asked], timeout=READY_SECONDS)[0]:
            raise UserError(f"pool.gpus_per_worker: auto found no GPU that is free within {READY_SECONDS:.0f} s")
        memory = ray.get(asked)
    if not memory:
        raise UserError(NO_GPU)
    wanted = min(resources.get("CPU", 1), settings.workers or math.inf)
    return 1 / workers_a_gpu(need_bytes, memory, max(1, math.ceil(wanted / gpus)))
