"""Where blocks run: Ray actors, and an in-process twin with the same results.

Both give results in the order of the calls, whatever the order of their completion: sums are made in one order (law 6).
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from raffm_ray.client import Runner, one_thread
from raffm_ray.config import PoolSettings
from raffm_ray.errors import UserError
from raffm_ray.messages import Package

Flat = NDArray[np.float32]
Call = tuple[str, tuple[Any, ...]]
"""(method of `Runner`, arguments after the package and the parameters)."""
Result = tuple[Any, Any]
"""(small result, flat array or None)."""
Progress = Callable[[int, Any], None]


class WorkerLostError(RuntimeError):
    """A block could not be finished because its worker died too often."""


class Pool(Protocol):
    """Runs calls over one package and one set of parameters."""

    workers: int

    def run(
        self, package: Package, flat: Flat, calls: Sequence[Call], costs: Sequence[float], progress: Progress
    ) -> Iterator[Result]:
        """Results in the order of `calls`; `progress(index, small result)` as each completes; costliest calls start first."""
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...


class InProcessPool:
    """Runs every call in this process, one after the other."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.workers = runner, 1

    def run(
        self, package: Package, flat: Flat, calls: Sequence[Call], costs: Sequence[float], progress: Progress
    ) -> Iterator[Result]:
        """See `Pool.run`."""
        for index, (method, arguments) in enumerate(calls):
            with one_thread():
                small, large = getattr(self.runner, method)(package, flat, *arguments)
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
        small, large = getattr(self.runner, method)(package, flat, *arguments)
        return small, large


@dataclass
class _Flight:
    index: int
    actor: Any
    large: Any


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
            what = (
                f"{share:g} GPU each, and there are {resources.get('GPU', 0):g}"
                if share
                else f"a core each, and there are {fitting}"
            )
            raise UserError(f"pool.workers: {self.workers} workers need {what}")
        self.attempts = settings.attempts
        self._sent: tuple[Flat, Any] | None = None
        self._options = {"num_cpus": 0 if share else 1, "num_gpus": share, "max_restarts": 0, "max_task_retries": 0}
        self._runner = ray.put(runner)
        self._device = device_of(settings)
        self._actors = [self._spawn() for _ in range(self.workers)]
        if not all(ray.get([actor.ready.remote() for actor in self._actors])):
            self.close()
            raise UserError(
                "pool: workers are to compute on a GPU, but torch sees none there (pool.device: cpu would do without)"
            )

    def _spawn(self) -> Any:
        return ray.remote(_Worker).options(**self._options).remote(self._runner, self._device)

    def run(
        self, package: Package, flat: Flat, calls: Sequence[Call], costs: Sequence[float], progress: Progress
    ) -> Iterator[Result]:
        """See `Pool.run`. Raises WorkerLostError after too many deaths, and whatever a call itself raises."""
        # The array sent last is kept alive, so one at its address is the same one.
        if self._sent is None or self._sent[0].ctypes.data != flat.ctypes.data:
            self._sent = (flat, ray.put(flat))
        shared = (ray.put(package), self._sent[1])
        waiting = sorted(range(len(calls)), key=lambda index: (costs[index], -index))
        tries = dict.fromkeys(range(len(calls)), 0)
        idle = list(self._actors)
        flying: dict[Any, _Flight] = {}
        done: dict[int, tuple[Any, Any]] = {}
        wanted = 0
        try:
            while wanted < len(calls):
                while waiting and idle:
                    index, actor = waiting.pop(), idle.pop()
                    tries[index] += 1
                    method, arguments = calls[index]
                    small, large = actor.call.options(num_returns=2).remote(method, *shared, arguments)
                    flying[small] = _Flight(index, actor, large)
                ready, _ = ray.wait(list(flying), num_returns=1)
                flight = flying.pop(ready[0])
                try:
                    result = (ray.get(ready[0]), flight.large)
                    idle.append(flight.actor)
                    done[flight.index] = result
                    progress(flight.index, result[0])
                except (ray.exceptions.RayTaskError, ray.exceptions.UnserializableException):
                    raise
                except ray.exceptions.RayError as error:
                    idle.append(self._replace(flight.actor))
                    self._again(flight.index, tries, waiting, package, error)
                while wanted in done:
                    small, reference = done.pop(wanted)
                    try:
                        yield small, ray.get(reference)
                        wanted += 1
                    except ray.exceptions.RayTaskError:
                        raise
                    except ray.exceptions.RayError as error:
                        self._again(wanted, tries, waiting, package, error)
                        break
        finally:
            if flying:
                ray.wait(list(flying), num_returns=len(flying), timeout=0)

    def _again(self, index: int, tries: dict[int, int], waiting: list[int], package: Package, error: Exception) -> None:
        if tries[index] >= self.attempts:
            raise WorkerLostError(
                f"round {package.round}, block {index}: its worker was lost {tries[index]} times: {type(error).__name__}: {error}"
            )
        waiting.append(index)

    def _replace(self, actor: Any) -> Any:
        ray.kill(actor)
        fresh = self._spawn()
        ray.get(fresh.ready.remote())
        self._actors = [fresh if other is actor else other for other in self._actors]
        return fresh

    def close(self) -> None:
        """Kills the actors; Ray itself stays up for the next pool of this process."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


def _connect(settings: PoolSettings) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine alone."""
    if ray.is_initialized():
        return
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
