"""Rounds through the path that a run takes: begun, run on a pool, finished; nothing is evaluated or recorded."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from raffm_ray.axes.flat_parameters import as_tensor, flatten
from raffm_ray.benchmarks.bare_ray import add_client
from raffm_ray.benchmarks.measurement import Backend
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.messages import Job, Report, RoundContext, Update
from raffm_ray.models.architecture import new_model
from raffm_ray.models.freezing import from_array
from raffm_ray.pool.worker_pool import Pool, open_pool
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.runs.progress import Display
from raffm_ray.runs.rounds.run_round import run_round
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import Round, ServerState, Setup, starting_state


@dataclass
class NothingRunner(ClientRunner):
    """A worker whose clients do nothing but change every parameter by a thousandth."""

    def block(
        self,
        context: RoundContext,
        flat: NDArray[np.float32],
        jobs: Sequence[Job],
        states: Mapping[int, ClientState] | None = None,
    ) -> tuple[Update, NDArray[np.float32]]:
        """See `ClientRunner.block`."""
        total = np.zeros_like(flat)
        weights: dict[int, float] = {}
        for job in jobs:
            add_client(total, flat, job.weight)
            if job.plan is not None:
                weights[job.plan] = weights.get(job.plan, 0.0) + job.weight
        reports = tuple(
            Report(
                client=job.client, plan=job.plan, examples=len(self.shares[job.client]), steps=0, loss=float("nan"), seconds=0.0
            )
            for job in jobs
        )
        return Update(weights, reports, covers={job.client: job.weight for job in jobs}), total


def nothing_runner(prepared: Prepared) -> NothingRunner:
    """What a worker needs whose clients do nothing."""
    return NothingRunner(prepared.setup.architecture, prepared.task.clients, prepared.shares, prepared.task.held_out)


def starting_flat(prepared: Prepared) -> Tensor:
    """Random weights of the full model, flat."""
    architecture = prepared.setup.architecture
    return flatten(dict(new_model(architecture, 0).named_parameters()), architecture.shapes)


@dataclass
class Rounds:
    """A federation that goes on round by round."""

    setup: Setup
    pool: Pool
    state: ServerState

    def next(self) -> Round:
        """The work of the next round, which `run` will do."""
        return begin_round(self.setup, self.state)

    def run(self, rounds: int = 1) -> None:
        """The next rounds."""
        display = Display(Console(quiet=True), "", rounds)
        for _ in range(rounds):
            work = begin_round(self.setup, self.state)
            summed, updates, late, _ = run_round(self.setup, work, self.state, self.pool, display)
            self.state = finish_round(setup=self.setup, state=self.state, work=work, summed=summed, updates=updates, late=late)


@contextmanager
def federation(
    prepared: Prepared, runner: ClientRunner, workers: int | None, backend: Backend, state: ServerState | None = None
) -> Iterator[Rounds]:
    """A federation with a pool of its own, of as many workers as there is room for where none are given, which is closed at the end; one round has
    been run, so that everything is warm. `state`: before it; default: of random weights."""
    pool = open_pool(runner, prepared.setup.experiment.pool.model_copy(update={"workers": workers, "backend": backend}))
    try:
        first = starting_state(prepared.setup, starting_flat(prepared)) if state is None else state
        first = first.with_frozen(from_array(as_tensor(pool.placed(first.frozen_array))))
        rounds = Rounds(prepared.setup, pool, first)
        rounds.run()
        yield rounds
    finally:
        pool.close()


def numpy_of(flat: Tensor) -> NDArray[np.float32]:
    """The same values as an array of their own."""
    return flat.to(torch.float32).numpy().copy()
