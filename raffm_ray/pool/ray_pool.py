"""Runs blocks on Ray: creates one actor for each core or share of a GPU. `call_scheduler` supervises them while they work."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count as numbers
from time import monotonic
from typing import Any

import ray

from raffm_ray.axes.flat_parameters import NOTHING, Flat, is_same
from raffm_ray.basics.errors import UserError, WorkerLostError
from raffm_ray.basics.formatting import counted
from raffm_ray.basics.plugins import Plugin, check_rows_reach_workers, use
from raffm_ray.basics.profiling import Profile
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.messages import Call, Progress, Result
from raffm_ray.pool.call_scheduler import READY_SECONDS, CallScheduler, WorkerSlot, cause
from raffm_ray.pool.call_timeout import CallTimeout
from raffm_ray.pool.gpu_sharing import gpu_memory_bytes, workers_a_gpu
from raffm_ray.pool.ray_start import connect
from raffm_ray.pool.worker import Worker
from raffm_ray.pool.worker_groups import capacity, check_capacity, worker_group_of, worker_groups_of
from raffm_ray.settings.execution import PoolSettings

NO_GPU = "pool: workers are to compute on a GPU, but torch sees none there (pool.device: cpu would do without)"


LOOK_SECONDS = 5.0
"""How often it is looked which nodes there are, while workers are waited for."""
TOLD_SECONDS = 15.0
"""After how long it is told that workers are waited for."""


class _Worker(Worker):
    """The actor. What the runner is made of may be of plug-ins, so they are imported before it is unpacked: it comes inside a list, which Ray
    leaves as it is."""

    def __init__(self, plugins: Sequence[Plugin], runner: Sequence[Any], device: str, share: float, number: int) -> None:
        use(plugins)
        super().__init__(ray.get(runner[0]), device, share, number)

    call = ray.method(num_returns=2)(Worker.call)


class RayPool:
    """One actor a core, or a share of a GPU; a client is a call, not a process. `device_types`: the device type of every client, for
    `pool.placement`.

    Nodes that join a cluster get workers before the next run. Dispatch is dynamic, costliest call first; completion is by event. What the calls of a run share goes to every actor once. An actor
    that dies, or whose call takes far longer than its cost predicts, is replaced and its calls run again; a call is a pure function of its
    arguments, so it counts once.
    """

    def __init__(
        self,
        runner: ClientRunner,
        settings: PoolSettings,
        note: Callable[[str], None] = lambda line: None,
        device_types: Sequence[str] = (),
    ) -> None:
        check_rows_reach_workers(runner.plugins)
        connect(settings)
        self._plugins = runner.plugins
        self._device_types, self._grows = device_types, bool(os.environ.get("RAY_ADDRESS"))
        self._worker_groups, self._by_device_type = worker_groups_of(
            settings, _share(settings, runner.gpu_bytes, ray.cluster_resources())
        )
        nodes = ray.nodes()
        found = capacity(self._worker_groups, nodes)
        check_capacity(self._worker_groups, found, nodes, self._grows)
        self.attempts, self.profile, self.call_timeout = settings.attempts, Profile(), CallTimeout(settings.patience_seconds)
        self._sent: dict[bool, tuple[Flat, Any]] = {}
        self.architecture, self.note = runner.architecture, note
        self._runner, self._numbers, self.lost_workers = ray.put(runner), numbers(1), 0
        self._runs = 0
        wanted = [worker_group.workers or count for worker_group, count in zip(self._worker_groups, found, strict=True)]
        self._slots = [
            WorkerSlot(*self.spawn(worker_group), worker_group) for worker_group, count in enumerate(wanted) for _ in range(count)
        ]
        self.workers = len(self._slots)
        try:
            self._await_ready(found)
        except BaseException:
            self.close()
            raise
        if sum(found) < self.workers:
            note(f"note: {sum(found)} of {self.workers} workers have room now; the others start when nodes join")

    def spawn(self, worker_group: int) -> tuple[Any, Any]:
        """A new actor of a worker group, and the promise of its place, which is kept once it has started."""
        asked = self._worker_groups[worker_group]
        resource, each = asked.need
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0, "max_restarts": 0, "max_task_retries": 0}
        options |= {"num_gpus" if resource == "GPU" else "num_cpus": each}
        if asked.selector:
            options["label_selector"] = asked.selector
        actor: Any = (
            ray.remote(_Worker)
            .options(**options)
            .remote(self._plugins, [self._runner], asked.device, asked.share, next(self._numbers))
        )
        return actor, actor.place.remote()

    def worker_group_of(self, call: Call) -> int:
        """Which worker group does a call."""
        return worker_group_of(call, self._device_types, self._by_device_type)

    def _await_ready(self, found: Sequence[int]) -> None:
        """Waits for as many workers of each worker group as there is room for, and for one at least."""
        began, died, told = monotonic(), Counter[int](), False
        end = began + READY_SECONDS
        while True:
            started = Counter(slot.worker_group for slot in self._slots if slot.place is not None)
            missing = sum(max(0, max(1, count) - started[worker_group]) for worker_group, count in enumerate(found))
            if not missing:
                return
            asked = {slot.starting: slot for slot in self._slots if slot.place is None}
            ready, _ = ray.wait(list(asked), num_returns=1, timeout=min(LOOK_SECONDS, max(0.0, end - monotonic())))
            if not ready and not told and monotonic() > began + TOLD_SECONDS:
                told = True
                self.note(
                    f"pool: waiting for {missing} of {counted(self.workers, 'worker')} to start, at most {READY_SECONDS:.0f} s"
                )
            if not ready and monotonic() < end:
                found = capacity(self._worker_groups, ray.nodes())  # one may be gone
                continue
            if not ready:
                free = {name: ray.available_resources().get(name, 0) for name in ("CPU", "GPU")}
                raise UserError(
                    f"pool: {missing} of {self.workers} workers did not start within {READY_SECONDS:.0f} s; free now: {free}, load of this machine "
                    f"{os.getloadavg()[0]:.1f} on {counted(os.cpu_count() or 1, 'core')}. Another run may have taken them (pool.workers sets how many are wanted), "
                    "or other processes keep them from starting, as Ray gives its workers a low priority: pool.backend in_process needs none"
                )
            slot = asked[ready[0]]
            try:
                place = ray.get(slot.starting)
            except ray.exceptions.RayError as error:
                died[id(slot)] += 1
                if died[id(slot)] == self.attempts:
                    raise WorkerLostError(f"pool: {self.attempts} workers died as they started, {cause(error)}") from None
                slot.actor, slot.starting = self.spawn(slot.worker_group)
                continue
            if place is None:
                raise UserError(NO_GPU)
            slot.started(place)

    def _fit(self) -> None:
        """Gives nodes that joined their workers, and lets go of those that wait for a node that left."""
        found = capacity(self._worker_groups, ray.nodes())
        for number, worker_group in enumerate(self._worker_groups):
            slots = [slot for slot in self._slots if slot.worker_group == number]
            wanted = len(slots) if worker_group.workers else max(1, found[number])
            for slot in [slot for slot in slots if slot.place is None][: max(0, len(slots) - wanted)]:
                ray.kill(slot.actor)
                self._slots.remove(slot)
            self._slots += [WorkerSlot(*self.spawn(number), number) for _ in range(wanted - len(slots))]
        self.workers = len(self._slots)

    def _in_store(self, flat: Flat, frozen: bool) -> Any:
        """The promise of an array, which is sent anew only if it is another one than the last; that one is kept alive, so one at its address
        is the same one."""
        last = self._sent.get(frozen)
        if last is None or not is_same(last[0], flat):
            last = self._sent[frozen] = (flat, ray.put(flat))
        return last[1]

    def run(self, flat: Flat, calls: Sequence[Call], progress: Progress, frozen: Flat = NOTHING) -> Iterator[Result]:
        """See `worker_pool.Pool.run`. Raises WorkerLostError after too many deaths, ClientError for whatever a call itself raises."""
        with self.profile.during("broadcast"):
            if self._grows:
                self._fit()
            parameters = self._in_store(flat, False), self._in_store(frozen, True)
            self._runs += 1
            scheduler = CallScheduler(
                pool=self, slots=self._slots, run=self._runs, parameters=parameters, calls=calls, progress=progress
            )
        for wanted in range(len(calls)):
            while (result := scheduler.take_result(wanted)) is None:
                scheduler.wait_for_next()
            yield result

    def placed(self, frozen: Flat) -> Flat:
        """See `Pool.placed`: in the object store of this node, read-only."""
        promise = self._in_store(frozen, True)
        there: Flat = ray.get(promise)
        self._sent[True] = (there, promise)
        return there

    def memory(self) -> Sequence[tuple[int, int]]:
        """See `Pool.memory`; of those that answer soon."""
        asked = [slot.actor.memory.remote() for slot in self._slots if slot.place is not None]
        told, found = ray.wait(asked, num_returns=len(asked), timeout=LOOK_SECONDS)[0] if asked else [], []
        for one in told:
            try:
                found.append(ray.get(one))
            except ray.exceptions.RayError:  # a worker that died is replaced when it is needed
                continue
        return found

    def close(self) -> None:
        """Kills the actors; Ray itself stays up for the next pool of this process."""
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots, self._sent = [], {}


def check_cluster(settings: PoolSettings) -> None:
    """Joins or starts Ray. Raises UserError where it has no room for workers as they are asked for."""
    connect(settings)
    if settings.gpus_per_worker != "auto":
        nodes, (worker_groups, _) = ray.nodes(), worker_groups_of(settings, settings.gpus_per_worker)
        check_capacity(worker_groups, capacity(worker_groups, nodes), nodes, bool(os.environ.get("RAY_ADDRESS")))


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
