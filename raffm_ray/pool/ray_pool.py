"""Blocks on Ray: one actor a core or a share of a GPU."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count as numbers
from time import monotonic
from typing import Any

import ray

from raffm_ray.axes.flat_parameters import Flat
from raffm_ray.basics.errors import UserError, WorkerLostError
from raffm_ray.basics.profiling import Profile
from raffm_ray.clients.client_runner import Runner
from raffm_ray.clients.messages import Call, Progress, Result
from raffm_ray.pool.call_scheduler import READY_SECONDS, Flights, Seat, cause
from raffm_ray.pool.call_timeout import Pace
from raffm_ray.pool.gpu_sharing import gpu_memory_bytes, workers_a_gpu
from raffm_ray.pool.ray_start import connect
from raffm_ray.pool.worker import Worker
from raffm_ray.pool.worker_groups import check_room, room, team_of, teams_of
from raffm_ray.settings.execution import PoolSettings

NO_GPU = "pool: workers are to compute on a GPU, but torch sees none there (pool.device: cpu would do without)"


LOOK_SECONDS = 5.0
"""How often it is looked which nodes there are, while workers are waited for."""


class _Worker(Worker):
    """The actor."""

    call = ray.method(num_returns=2)(Worker.call)


class RayPool:
    """One actor a core, or a share of a GPU; a client is a call, not a process. `classes`: the device class of every client, for
    `pool.placement`.

    Nodes that join a cluster get workers before the next run. Dispatch is dynamic, costliest call first; completion is by event. What the calls of a run share goes to every actor once. An actor
    that dies, or whose call takes far longer than its cost predicts, is replaced and its calls run again; a call is a pure function of its
    arguments, so it counts once.
    """

    def __init__(
        self, runner: Runner, settings: PoolSettings, note: Callable[[str], None] = lambda line: None, classes: Sequence[str] = ()
    ) -> None:
        connect(settings)
        self._classes, self._grows = classes, bool(os.environ.get("RAY_ADDRESS"))
        self._teams, self._by_class = teams_of(settings, _share(settings, runner.gpu_bytes, ray.cluster_resources()))
        nodes = ray.nodes()
        found = room(self._teams, nodes)
        check_room(self._teams, found, nodes, self._grows)
        self.attempts, self.profile, self.pace = settings.attempts, Profile(), Pace(settings.patience_seconds)
        self._sent: tuple[Flat, Any] | None = None
        self.architecture, self.note = runner.architecture, note
        self._runner, self._numbers, self.lost_workers = ray.put(runner), numbers(1), 0
        self._runs = 0
        wanted = [team.workers or count for team, count in zip(self._teams, found, strict=True)]
        self._seats = [Seat(*self.spawn(team), team) for team, count in enumerate(wanted) for _ in range(count)]
        self.workers = len(self._seats)
        try:
            self._await_ready(found)
        except BaseException:
            self.close()
            raise
        if sum(found) < self.workers:
            note(f"note: {sum(found)} of {self.workers} workers have room now; the others start when nodes join")

    def spawn(self, team: int) -> tuple[Any, Any]:
        """A new actor of a team, and the promise of its place, which is kept once it has started."""
        asked = self._teams[team]
        resource, each = asked.need
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0, "max_restarts": 0, "max_task_retries": 0}
        options |= {"num_gpus" if resource == "GPU" else "num_cpus": each}
        if asked.selector:
            options["label_selector"] = asked.selector
        actor: Any = ray.remote(_Worker).options(**options).remote(self._runner, asked.device, asked.share, next(self._numbers))
        return actor, actor.place.remote()

    def team_of(self, call: Call) -> int:
        """Which team does a call."""
        return team_of(call, self._classes, self._by_class)

    def _await_ready(self, found: Sequence[int]) -> None:
        """Waits for as many workers of each team as there is room for, and for one at least."""
        died, end = Counter[int](), monotonic() + READY_SECONDS
        while True:
            started = Counter(seat.team for seat in self._seats if seat.place is not None)
            missing = sum(max(0, max(1, count) - started[team]) for team, count in enumerate(found))
            if not missing:
                return
            asked = {seat.starting: seat for seat in self._seats if seat.place is None}
            ready, _ = ray.wait(list(asked), num_returns=1, timeout=min(LOOK_SECONDS, max(0.0, end - monotonic())))
            if not ready and monotonic() < end:
                found = room(self._teams, ray.nodes())  # one may be gone
                continue
            if not ready:
                free = {name: ray.available_resources().get(name, 0) for name in ("CPU", "GPU")}
                raise UserError(
                    f"pool: {missing} of {self.workers} workers did not start within {READY_SECONDS:.0f} s; free now: {free} "
                    "(is another run using them? pool.workers sets how many are wanted)"
                )
            seat = asked[ready[0]]
            try:
                place = ray.get(seat.starting)
            except ray.exceptions.RayError as error:
                died[id(seat)] += 1
                if died[id(seat)] == self.attempts:
                    raise WorkerLostError(f"pool: {self.attempts} workers died as they started, {cause(error)}") from None
                seat.actor, seat.starting = self.spawn(seat.team)
                continue
            if place is None:
                raise UserError(NO_GPU)
            seat.started(place)

    def _fit(self) -> None:
        """Gives nodes that joined their workers, and lets go of those that wait for a node that left."""
        found = room(self._teams, ray.nodes())
        for number, team in enumerate(self._teams):
            seats = [seat for seat in self._seats if seat.team == number]
            wanted = len(seats) if team.workers else max(1, found[number])
            for seat in [seat for seat in seats if seat.place is None][: max(0, len(seats) - wanted)]:
                ray.kill(seat.actor)
                self._seats.remove(seat)
            self._seats += [Seat(*self.spawn(number), number) for _ in range(wanted - len(seats))]
        self.workers = len(self._seats)

    def run(self, flat: Flat, calls: Sequence[Call], costs: Sequence[float], progress: Progress) -> Iterator[Result]:
        """See `pool.Pool.run`. Raises WorkerLostError after too many deaths, ClientError for whatever a call itself raises."""
        with self.profile.during("broadcast"):
            if self._grows:
                self._fit()
            # The array sent last is kept alive, so one at its address is the same one.
            if self._sent is None or self._sent[0].ctypes.data != flat.ctypes.data:
                self._sent = (flat, ray.put(flat))
            self._runs += 1
            flight = Flights(
                pool=self, seats=self._seats, run=self._runs, flat=self._sent[1], calls=calls, costs=costs, progress=progress
            )
        for wanted in range(len(calls)):
            while (result := flight.take(wanted)) is None:
                flight.land()
            yield result

    def close(self) -> None:
        """Kills the actors; Ray itself stays up for the next pool of this process."""
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats, self._sent = [], None


def check_cluster(settings: PoolSettings) -> None:
    """Joins or starts Ray. Raises UserError where it has no room for workers as they are asked for."""
    connect(settings)
    if settings.gpus_per_worker != "auto":
        nodes, (teams, _) = ray.nodes(), teams_of(settings, settings.gpus_per_worker)
        check_room(teams, room(teams, nodes), nodes, bool(os.environ.get("RAY_ADDRESS")))


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
