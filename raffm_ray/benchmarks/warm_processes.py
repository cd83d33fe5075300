"""Processes without Ray for measurements: several that stay alive, or one that is new."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Memory = dict[str, Any]
"""What a process keeps between two calls."""
_SPAWN = multiprocessing.get_context("spawn")


NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112  # the name that Ray reads
"""Ray's workers stand back behind other processes by so much (its `worker_niceness`): on a machine that does something else besides,
both sides of a ratio must be held back alike."""


def _serve(pipe: Connection, niceness: int) -> None:
    torch.set_num_threads(1)
    os.nice(niceness)
    memory: Memory = {}
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((function(memory, *arguments), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))


class WarmProcesses:
    """Processes of one torch thread each, started when they are first needed. `niceness`: how far they stand back."""

    def __init__(self, count: int, niceness: int = NICENESS) -> None:
        self.count, self.niceness = count, niceness
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def _start(self) -> None:
        for _ in range(self.count):
            mine, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=_serve, args=(theirs, self.niceness), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def each(self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        """`function(memory, *arguments[i])` in process i, all at once; `function` is one of a module. Raises RuntimeError where it does."""
        if not self._processes:
            self._start()
        for pipe, given in zip(self._pipes, arguments, strict=True):
            pipe.send((function, given))
        answers = [pipe.recv() for pipe in self._pipes]
        for _, error in answers:
            if error:
                raise RuntimeError(error)
        return [result for result, _ in answers]

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()
        self._pipes, self._processes = [], []


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """What a module's function gives in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=_SPAWN) as one:
        return one.submit(function, *arguments).result()
