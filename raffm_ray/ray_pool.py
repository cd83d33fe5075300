"""Blocks on Ray: one actor a core or a share of a GPU. The only file that knows Ray."""

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from raffm_ray.client import Runner, device_of
from raffm_ray.errors import ClientError, UserError, WorkerLostError
from raffm_ray.messages import Call, Flat, Package, Progress, Result
from raffm_ray.phases import Profile
from raffm_ray.settings import PoolSettings

READY_SECONDS = 180.0
"""How long workers may take to start before that is an error."""
DEPTH = 4
"""Calls that an actor has at most, the one that it is at included, so that it never waits for the driver."""
AHEAD = 2
"""It has another only while more than so many an actor wait for each that it has: the last calls go to whoever is idle, so that nobody
ends much later than the others."""


def _keep_memory() -> None:
    """Makes glibc keep freed memory for the next block: it would return large arrays, whose pages cost more to get anew than to fill."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if sys.platform == "linux" and adjust is not None:
        no_trimming, no_mapping = (-1, -1), (-4, 0)  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        adjust(*no_trimming)
        adjust(*no_mapping)


class NotBegunError(Exception):
    """An actor was called for a run whose packages and parameters never reached it."""


class _Worker:
    """The actor: a `Runner`, and what all calls of a run share."""

    def __init__(self, runner: Runner, device: str) -> None:
        torch.set_num_threads(1)
        _keep_memory()
        self.runner, self.run = runner, -1
        self.runner.device = device
        gc.collect()
        gc.freeze()

    def ready(self) -> bool:
        """Whether this process can compute where it was told to."""
        return self.runner.device == "cpu" or torch.cuda.is_available()

    def begin(self, run: int, packages: Sequence[Package], flat: Flat) -> None:
        self.run, self.packages, self.flat = run, packages, flat

    @ray.method(num_returns=2)
    def call(self, run: int, method: str, package: int, arguments: tuple[Any, ...]) -> Result:
        if run != self.run:
            raise NotBegunError
        return self.runner.perform(method, self.packages[package], self.flat, arguments)


@dataclass
class _Seat:
    """An actor and its calls in flight, (index, small, large) each: it works them off in this order."""

    actor: Any
    flying: deque[tuple[int, Any, Any]] = field(default_factory=deque)


class RayPool:
    """One actor a core, or a share of a GPU; a client is a call, not a process.

    Dispatch is dynamic, costliest call first; completion is by event. What the calls of a run share goes to every actor once. An actor
    that dies is replaced and its calls run again; a call is a pure function of its arguments, so it counts once.
    """

    def __init__(self, runner: Runner, settings: PoolSettings) -> None:
        _connect(settings)
        resources = ray.cluster_resources()
        share = settings.gpus_per_worker
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
        self._runner = ray.put(runner)
        self._device = device_of(settings)
        self._runs = 0
        self._seats = [_Seat(self._spawn()) for _ in range(self.workers)]
        try:
            self._await_ready([seat.actor for seat in self._seats])
        except BaseException:
            self.close()
            raise

    def _spawn(self) -> Any:
        return ray.remote(_Worker).options(**self._options).remote(self._runner, self._device)

    def _await_ready(self, actors: Sequence[Any]) -> None:
        asked = [actor.ready.remote() for actor in actors]
        ready, missing = ray.wait(asked, num_returns=len(asked), timeout=READY_SECONDS)
        if missing:
            free = {name: ray.available_resources().get(name, 0) for name in ("CPU", "GPU")}
            raise UserError(
                f"pool: {len(missing)} of {len(asked)} workers did not start within {READY_SECONDS:.0f} s; free now: {free} "
                "(is another run using them? pool.workers sets how many are wanted)"
            )
        if not all(ray.get(ready)):
            raise UserError(
                "pool: workers are to compute on a GPU, but torch sees none there (pool.device: cpu would do without)"
            )

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
        seat.actor = self._spawn()

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
        for seat in seats:
            seat.flying.clear()  # of a run that was abandoned: the actor ends it first
            self.begin(seat)
        self.start()

    def begin(self, seat: _Seat) -> None:
        """Sends what all calls share."""
        seat.actor.begin.remote(self.run, self.packages, self.flat)

    def start(self) -> None:
        """Gives every idle actor the costliest call that waits, and, while many wait, every actor its next ones.

        A call that was in flight when an actor died flies alone from then on, so that it is clear which one is to blame.
        """
        for depth in range(DEPTH):
            for seat in self.seats:
                if len(seat.flying) <= depth and len(self.waiting) > depth * AHEAD * len(self.seats):
                    if seat.flying and not self.suspects.isdisjoint([self.waiting[-1], seat.flying[-1][0]]):
                        continue
                    index = self.waiting.pop()
                    self.tries[index] += 1
                    method, _, arguments = self.calls[index]
                    seat.flying.append((index, *seat.actor.call.remote(self.run, method, self.package_of[index], arguments)))

    def land(self) -> None:
        """Waits for one call to end, and starts the next on its actor."""
        oldest = {seat.flying[0][1]: seat for seat in self.seats if seat.flying}
        with self.pool.profile.during("wait"):
            (ready, *_), _ = ray.wait(list(oldest), num_returns=1)
        seat = oldest[ready]
        index, _, large = seat.flying.popleft()
        try:
            small, seconds = ray.get(ready)
        except ray.exceptions.RayError as error:
            self.lost(seat, index, error)
        else:
            self.done[index] = (small, large)
            self.pool.profile.add(seconds, self.pool.workers)
            if index not in self.told:
                self.told.add(index)
                with self.pool.profile.during("record"):
                    self.progress(index, small)
        self.start()

    def lost(self, seat: _Seat, index: int, error: Exception) -> None:
        """Replaces an actor that died over its oldest call; the others were not tried. Raises what the call itself raised."""
        own = isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.UnserializableException)
        if own and not isinstance(error, NotBegunError):
            raise ClientError(f"round {self.calls[index][1].round}, {_describe(self.calls[index])}: {error}") from None
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
            what = f"round {self.calls[index][1].round}, {_describe(self.calls[index])}"
            cause = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            raise WorkerLostError(f"{what}: the worker was lost {self.tries[index]} times, the last time by {cause}")
        self.waiting.append(index)


def _describe(call: Call) -> str:
    method, _, arguments = call
    if method == "block":
        return f"block of clients {', '.join(str(job.client) for job in arguments[0])}"
    return f"{method} {arguments}"


def _connect(settings: PoolSettings) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine alone."""
    if ray.is_initialized():
        return
    # A call that fails also leaves its second result unread, which Ray would report on top of our own error.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", log_to_driver=False)
        return
    cores, before = max(settings.workers or 0, os.cpu_count() or 1), signal.getsignal(signal.SIGTERM)
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    if callable(before) and threading.current_thread() is threading.main_thread():  # Ray's own ends the process on the spot
        signal.signal(signal.SIGTERM, before)
