"""Where blocks run: Ray actors, and an in-process twin with the same results.

Both give results in the order of the calls, whatever the order of their completion: sums are made in one order (law 6).
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from raffm_ray.client import Runner
from raffm_ray.errors import ClientError, UserError, WorkerLostError
from raffm_ray.messages import Package
from raffm_ray.phases import Profile
from raffm_ray.settings import PoolSettings
from raffm_ray.training import one_thread

Flat = NDArray[np.float32]
Call = tuple[str, tuple[Any, ...]]
"""(method of `Runner`, arguments after the package and the parameters)."""
Result = tuple[Any, Any]
"""(small result, flat array or None)."""
Progress = Callable[[int, Any], None]


READY_SECONDS = 180.0
"""How long workers may take to start before that is an error."""


class Pool(Protocol):
    """Runs calls over one package and one set of parameters."""

    workers: int
    profile: Profile

    def run(
        self, package: Package, flat: Flat, calls: Sequence[Call], costs: Sequence[float], progress: Progress
    ) -> Iterator[Result]:
        """Results in the order of `calls`; `progress(index, small result)` as each completes; costliest calls start first."""
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...


def perform(runner: Runner, method: str, package: Package, flat: Flat, arguments: tuple[Any, ...]) -> Result:
    """A call's result, its small part with the seconds that it took by phase."""
    runner.watch.taken()
    small, large = getattr(runner, method)(package, flat, *arguments)
    return (small, runner.watch.taken()), large


class InProcessPool:
    """Runs every call in this process, one after the other."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.workers, self.profile = runner, 1, Profile()

    def run(
        self, package: Package, flat: Flat, calls: Sequence[Call], costs: Sequence[float], progress: Progress
    ) -> Iterator[Result]:
        """See `Pool.run`."""
        for index, (method, arguments) in enumerate(calls):
            with one_thread(), self.profile.during("wait"):
                (small, seconds), large = perform(self.runner, method, package, flat, arguments)
            self.profile.add(seconds, 1)
            with self.profile.during("record"):
                progress(index, small)
            yield small, large

    def close(self) -> None:
        """Nothing to end."""


class _Worker:
    """The actor: a `Runner` and nothing else."""

    def __init__(self, runner: Runner, device: str) -> None:
        torch.set_num_threads(1)
        self.runner = runner
        self.runner.device = device
        gc.collect()
        gc.freeze()

    def ready(self) -> bool:
        """Whether this process can compute where it was told to."""
        return self.runner.device == "cpu" or torch.cuda.is_available()

    def call(self, method: str, package: Package, flat: Flat, arguments: tuple[Any, ...]) -> Result:
        small, large = perform(self.runner, method, package, flat, arguments)
        return small, large


class RayPool:
    """One actor a core, or a share of a GPU; a client is a call, not a process.

    Dispatch is dynamic, costliest call first, one call in flight an actor; completion is by event. An actor that dies is replaced
    and its call run again; a call is a pure function of its arguments, so it counts once.
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
        self._leftover: list[Any] = []
        self._actors = [self._spawn() for _ in range(self.workers)]
        try:
            self._await_ready(self._actors)
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

    def run(
        self, package: Package, flat: Flat, calls: Sequence[Call], costs: Sequence[float], progress: Progress
    ) -> Iterator[Result]:
        """See `Pool.run`. Raises WorkerLostError after too many deaths, ClientError for whatever a call itself raises."""
        # The array sent last is kept alive, so one at its address is the same one.
        with self.profile.during("broadcast"):
            if self._sent is None or self._sent[0].ctypes.data != flat.ctypes.data:
                self._sent = (flat, ray.put(flat))
            given = (ray.put(package), self._sent[1])
        if self._leftover:  # a run before was abandoned: its actors are still at work
            ray.wait(self._leftover, num_returns=len(self._leftover))
            self._leftover = []
        flight = _Flights(self, package, given, calls, costs, progress)
        try:
            for wanted in range(len(calls)):
                while (result := flight.take(wanted)) is None:
                    flight.land()
                flight.start()
                yield result
        finally:
            self._leftover = list(flight.flying)

    def replace(self, actor: Any) -> Any:
        """Kills an actor that failed and starts another in its place."""
        ray.kill(actor)
        fresh = self._spawn()
        self._actors = [fresh if other is actor else other for other in self._actors]
        return fresh

    @property
    def actors(self) -> list[Any]:
        """The actors, all idle between runs."""
        return list(self._actors)

    def close(self) -> None:
        """Kills the actors; Ray itself stays up for the next pool of this process."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._sent = [], None


class _Flights:
    """The calls of one run: waiting, in flight, done."""

    def __init__(
        self,
        pool: RayPool,
        package: Package,
        shared: tuple[Any, Any],
        calls: Sequence[Call],
        costs: Sequence[float],
        progress: Progress,
    ) -> None:
        self.pool, self.package, self.shared, self.calls, self.progress = pool, package, shared, calls, progress
        self.waiting = sorted(range(len(calls)), key=lambda index: (costs[index], -index))
        self.tries = [0] * len(calls)
        self.idle = pool.actors
        self.flying: dict[Any, tuple[int, Any, Any]] = {}
        self.done: dict[int, tuple[Any, Any]] = {}
        self.told: set[int] = set()
        self.start()

    def start(self) -> None:
        """Gives every idle actor the costliest call that waits."""
        while self.waiting and self.idle:
            index, actor = self.waiting.pop(), self.idle.pop()
            self.tries[index] += 1
            method, arguments = self.calls[index]
            small, large = actor.call.options(num_returns=2).remote(method, *self.shared, arguments)
            self.flying[small] = (index, actor, large)

    def land(self) -> None:
        """Waits for one call to end, and starts the next on its actor."""
        with self.pool.profile.during("wait"):
            (ready, *_), _ = ray.wait(list(self.flying), num_returns=1)
        index, actor, large = self.flying.pop(ready)
        try:
            small, seconds = ray.get(ready)
            self.done[index] = (small, large)
            self.idle.append(actor)
            self.pool.profile.add(seconds, self.pool.workers)
            if index not in self.told:
                self.told.add(index)
                with self.pool.profile.during("record"):
                    self.progress(index, small)
        except (ray.exceptions.RayTaskError, ray.exceptions.UnserializableException) as error:
            raise ClientError(f"round {self.package.round}, {_describe(self.calls[index])}: {error}") from None
        except ray.exceptions.RayError as error:
            self.again(index, error)
            self.idle.append(self.pool.replace(actor))
        self.start()

    def take(self, index: int) -> Result | None:
        """The result of a call once it is done and still to be had; it is forgotten here."""
        if index not in self.done:
            return None
        small, large = self.done.pop(index)
        try:
            return small, ray.get(large)
        except ray.exceptions.RayError as error:
            self.again(index, error)
            self.start()
            return None

    def again(self, index: int, error: Exception) -> None:
        """Puts a call whose worker or result was lost first in the queue, unless it was tried too often."""
        if self.tries[index] >= self.pool.attempts:
            what = f"round {self.package.round}, {_describe(self.calls[index])}"
            cause = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            raise WorkerLostError(f"{what}: the worker was lost {self.tries[index]} times, the last time by {cause}")
        self.waiting.append(index)


def _describe(call: Call) -> str:
    method, arguments = call
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
    cores = max(settings.workers or 0, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def open_pool(runner: Runner, settings: PoolSettings) -> Pool:
    """The pool that the settings ask for."""
    if settings.backend == "ray":
        return RayPool(runner, settings)
    runner.device = device_of(settings)
    if runner.device == "cuda" and not torch.cuda.is_available():
        raise UserError("pool.device: cuda, but torch sees no GPU here")
    return InProcessPool(runner)


def device_of(settings: PoolSettings) -> str:
    """The torch device that workers compute on."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if settings.gpus_per_worker > 0 else "cpu"
