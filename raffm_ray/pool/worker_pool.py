"""The pool that runs blocks: Ray actors, or this process, with the same results.

Both give results in the order of the calls, whatever the order of their completion: sums are made in one order (law 6).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from raffm_ray.axes.flat_parameters import NOTHING, Flat
from raffm_ray.basics.errors import ClientError, UserError
from raffm_ray.basics.machine import trim_heap
from raffm_ray.basics.plugins import Plugin, check_rows_reach_workers
from raffm_ray.basics.profiling import Profile
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.local_training import one_thread
from raffm_ray.clients.messages import Call, Progress, Result
from raffm_ray.pool.gpu_sharing import HELP, describe_out_of_memory, use_deterministic_kernels
from raffm_ray.pool.worker import leaves_pieces
from raffm_ray.settings.execution import PoolSettings


class Pool(Protocol):
    """Runs calls over one set of parameters. `lost_workers`: how many died or hung so far and were replaced."""

    workers: int
    lost_workers: int
    profile: Profile

    def run(self, flat: Flat, calls: Sequence[Call], progress: Progress, frozen: Flat = NOTHING) -> Iterator[Result]:
        """Results in the order of `calls`; `progress(index, small result)` as each completes; costliest calls start first.

        `flat`: the trained parameters; `frozen`: the others, which are sent once as long as it is the same array.
        """
        ...

    def placed(self, frozen: Flat) -> Flat:
        """The same numbers where the workers read them, so that this process need not keep another copy."""
        ...

    def memory(self) -> Sequence[tuple[int, int]]:
        """Of every process besides this one that runs calls: bytes that it holds now, and the most that it has held."""
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...


class InProcessPool:
    """Runs every call in this process, one after the other."""

    def __init__(self, runner: ClientRunner) -> None:
        self.runner, self.workers, self.lost_workers, self.profile = runner, 1, 0, Profile()

    def run(self, flat: Flat, calls: Sequence[Call], progress: Progress, frozen: Flat = NOTHING) -> Iterator[Result]:
        """See `Pool.run`."""
        self.runner.hold(frozen)
        for index, call in enumerate(calls):
            if leaves_pieces(self.runner):
                trim_heap()
            try:
                with one_thread(), self.profile.during("wait"):
                    (small, seconds), large = self.runner.perform(call.method, call.context, flat, call.arguments)
            except torch.OutOfMemoryError as error:
                raise ClientError(f"{describe_out_of_memory(self.runner.architecture, call, error)}; {HELP}") from None
            self.profile.add(seconds, 1)
            with self.profile.during("record"):
                progress(index, small)
            yield small, large

    def placed(self, frozen: Flat) -> Flat:
        """See `Pool.placed`: the array itself."""
        return frozen

    def memory(self) -> Sequence[tuple[int, int]]:
        """See `Pool.memory`: there is no other process."""
        return []

    def close(self) -> None:
        """Nothing to end."""


def device_of(settings: PoolSettings) -> str:
    """The torch device that workers compute on."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if settings.gpus_per_worker else "cpu"


def check_pool(settings: PoolSettings, plugins: Sequence[Plugin] = ()) -> None:
    """Raises UserError where a pool will not find the nodes that the settings ask for, or its workers would lack rows of tables. It is asked
    before anything is trained, of clusters that are joined and nodes that are chosen; else Ray would have to be waited for, which starts
    meanwhile."""
    if settings.backend == "ray":
        check_rows_reach_workers(plugins)
        from raffm_ray.pool.ray_start import check_start

        check_start()
    if settings.backend == "ray" and (settings.placement or os.environ.get("RAY_ADDRESS")):
        from raffm_ray.pool.ray_pool import check_cluster

        check_cluster(settings)


def open_pool(
    runner: ClientRunner,
    settings: PoolSettings,
    note: Callable[[str], None] = lambda line: None,
    device_types: Sequence[str] = (),
) -> Pool:
    """The pool that the settings ask for; `note` is told what the user should know of what happens there. `device_types`: the device type of
    every client, where `pool.placement` names some."""
    if settings.backend == "ray":
        from raffm_ray.pool.ray_pool import RayPool

        return RayPool(runner=runner, settings=settings, note=note, device_types=device_types)
    if settings.placement:
        note("note: pool.placement is not used: pool.backend is in_process")
    runner.device = device_of(settings)
    if runner.device == "cuda" and not torch.cuda.is_available():
        raise UserError("pool.device: cuda, but torch sees no GPU here")
    if runner.device == "cuda" and runner.deterministic:
        use_deterministic_kernels()
    return InProcessPool(runner)
