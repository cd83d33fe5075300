"""Blocks on Ray: one actor a core or a share of a GPU."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from raffm_ray.client import Runner, device_of
from raffm_ray.errors import UserError, WorkerLostError
from raffm_ray.flights import READY_SECONDS, Flights, Seat, cause
from raffm_ray.gpu import gpu_memory_bytes, workers_a_gpu
from raffm_ray.messages import Call, Flat, Progress, Result
from raffm_ray.pace import Pace
from raffm_ray.phases import Profile
from raffm_ray.ray_start import connect
from raffm_ray.running import PoolSettings
from raffm_ray.worker import Worker

NO_GPU = "pool: workers are to compute on a GPU, but torch sees none there (pool.device: cpu would do without)"


class _Worker(Worker):
    """The actor."""

    call = ray.method(num_returns=2)(Worker.call)


class RayPool:
    """One actor a core, or a share of a GPU; a client is a call, not a process.

    Dispatch is dynamic, costliest call first; completion is by event. What the calls of a run share goes to every actor once. An actor
    that dies, or whose call takes far longer than its cost predicts, is replaced and its calls run again; a call is a pure function of its
    arguments, so it counts once.
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
        self.attempts, self.profile, self.pace = settings.attempts, Profile(), Pace(settings.patience_seconds)
        self._sent: tuple[Flat, Any] | None = None
        self._options = {"num_cpus": 0 if share else 1, "num_gpus": share, "max_restarts": 0, "max_task_retries": 0}
        self.architecture, self.note = runner.architecture, note
        self._arguments = (ray.put(runner), device_of(settings), share)
        self._runs = 0
        self._seats = [Seat(*self.spawn()) for _ in range(self.workers)]
        try:
            self._await_ready()
        except BaseException:
            self.close()
            raise

    def spawn(self) -> tuple[Any, Any]:
        """A new actor, and the promise of its place, which is kept once it has started."""
        actor: Any = ray.remote(_Worker).options(**self._options).remote(*self._arguments)
        return actor, actor.place.remote()

    def _await_ready(self) -> None:
        for tried in range(1, self.attempts + 1):
            asked = {seat.starting: seat for seat in self._seats if seat.place is None}
            _, missing = ray.wait(list(asked), num_returns=len(asked), timeout=READY_SECONDS)
            if missing:
                free = {name: ray.available_resources().get(name, 0) for name in ("CPU", "GPU")}
                raise UserError(
                    f"pool: {len(missing)} of {len(asked)} workers did not start within {READY_SECONDS:.0f} s; free now: {free} "
                    "(is another run using them? pool.workers sets how many are wanted)"
                )
            for starting, seat in asked.items():
                try:
                    place = ray.get(starting)
                except ray.exceptions.RayError as error:
                    if tried == self.attempts:
                        raise WorkerLostError(f"pool: {tried} workers died as they started, {cause(error)}") from None
                    seat.actor, seat.starting = self.spawn()
                    continue
                if place is None:
                    raise UserError(NO_GPU)
                seat.started(place)
            if all(seat.place is not None for seat in self._seats):
                return

    def run(self, flat: Flat, calls: Sequence[Call], costs: Sequence[float], progress: Progress) -> Iterator[Result]:
        """See `pool.Pool.run`. Raises WorkerLostError after too many deaths, ClientError for whatever a call itself raises."""
        with self.profile.during("broadcast"):
            # The array sent last is kept alive, so one at its address is the same one.
            if self._sent is None or self._sent[0].ctypes.data != flat.ctypes.data:
                self._sent = (flat, ray.put(flat))
            self._runs += 1
            flight = Flights(self, self._seats, self._runs, self._sent[1], calls, costs, progress)
        for wanted in range(len(calls)):
            while (result := flight.take(wanted)) is None:
                flight.land()
            yield result

    def close(self) -> None:
        """Kills the actors; Ray itself stays up for the next pool of this process."""
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats, self._sent = [], None


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
