"""What runs in an actor's process. It does not use Ray."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from socket import gethostname
from typing import Any

import torch

from raffm_ray.axes.flat_parameters import Flat
from raffm_ray.basics.machine import peak_rss_bytes, resident_bytes, return_freed_memory, trim_heap
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.messages import Result, RoundContext
from raffm_ray.pool.gpu_sharing import GpuOutOfMemoryError, limit_gpu_memory, release_gpu_memory, use_deterministic_kernels

NO_TRIMMING, NO_MAPPING = (-1, -1), (-4, 0)
TRIMMING, MAPPING, LARGE = (-1, 1 << 17), (-4, 65536), (-3, 1 << 20)
"""Arguments of mallopt(3), parameter and value, as malloc.h has them: M_TRIM_THRESHOLD, M_MMAP_MAX, M_MMAP_THRESHOLD."""


def _adjust_memory(*settings: tuple[int, int]) -> None:
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if sys.platform == "linux" and adjust is not None:
        for name, value in settings:
            adjust(name, value)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next block: it would return large arrays, whose pages cost more to get anew than to fill."""
    _adjust_memory(NO_TRIMMING, NO_MAPPING)


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Within it, large arrays are returned when they are freed. Kept memory falls into pieces that larger arrays do not fit in: a calibration, with its
    many backward passes, took twice what it uses, and so did the evaluation of a language model, whose outputs differ in length. An evaluation of
    texts takes as long with it (1.01 times, MiniLM)."""
    _adjust_memory(TRIMMING, MAPPING, LARGE)
    return_freed_memory()
    try:
        yield
    finally:
        keep_freed_memory()


def leaves_pieces(runner: ClientRunner) -> bool:
    """Whether what one call frees is of little use for the next: batches of texts differ in length, and so do their arrays. Kept, it grew from
    call to call to twice what MiniLM uses."""
    return runner.examples.lengths() is not None


class NotStartedError(Exception):
    """An actor was called for a run whose packages and parameters never reached it."""


class Worker:
    """A `ClientRunner` on a device, with its share of a GPU, and what all calls of a run share."""

    def __init__(self, runner: ClientRunner, device: str, share: float, number: int = 0) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self.runner, self.run, self.doing = runner, -1, ""
        self.runner.device, self.share, self.number = device, share, number
        if device == "cuda":
            if runner.deterministic:
                use_deterministic_kernels()
            limit_gpu_memory(share)
        gc.collect()
        gc.freeze()

    def __repr__(self) -> str:
        """What Ray's dashboard and logs call the actor: `raffm worker 3 (0.25 GPU)`."""
        return f"raffm worker {self.number} ({f'{self.share:.3g} GPU' if self.share else '1 core'})"

    def place(self) -> str | None:
        """The machine and GPUs of this process; None if it cannot compute where it was told to."""
        if self.runner.device != "cpu" and not torch.cuda.is_available():
            return None
        return f"{gethostname()} {os.environ.get('CUDA_VISIBLE_DEVICES')}"

    def memory(self) -> tuple[int, int]:
        """Bytes that this process holds now, and the most that it has held."""
        return resident_bytes(), peak_rss_bytes()

    def begin(self, run: int, contexts: Sequence[RoundContext], flat: Flat, frozen: Flat) -> None:
        """Takes what the calls of a run share."""
        self.run, self.contexts, self.flat = run, contexts, flat
        self.runner.hold(frozen)

    def call(self, run: int, method: str, context: int, arguments: tuple[Any, ...], alone: bool = False) -> Result:
        """A call of a run. `alone`: it is the only one on its GPU and may take all of it. Raises GpuOutOfMemoryError, NotStartedError, and what the
        call itself raises."""
        if run != self.run:
            raise NotStartedError
        if alone:
            limit_gpu_memory(self.share, alone)
        calibrates = method == "block" and any(job.calibrate for job in arguments[0])
        doing = "calibrate" if calibrates else method
        if doing != "block" or doing != self.doing or leaves_pieces(self.runner):
            trim_heap()  # what others left, the arrays of this call do not fit in
            self.doing = doing
        try:
            returns = calibrates or (method != "block" and leaves_pieces(self.runner))
            with returning_freed_memory() if returns else nullcontext():
                return self.runner.perform(method, self.contexts[context], self.flat, arguments)
        except torch.OutOfMemoryError as error:
            problem = GpuOutOfMemoryError(*error.args)
        finally:
            if alone:
                self.release_gpu_memory()
                limit_gpu_memory(self.share)
        self.release_gpu_memory()  # only here is the error gone, which held what the call had allocated
        raise problem

    def release_gpu_memory(self) -> None:
        """Frees all that this process keeps of a GPU between calls."""
        self.runner.forget()
        release_gpu_memory()
