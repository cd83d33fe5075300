"""Fits this machine's training speed to measured blocks of reference models, with the code that workers run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.optimize import lsq_linear

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.profiling import BY_WORKERS
from raffm_ray.benchmarks.measurement import Backend
from raffm_ray.benchmarks.rounds import starting_flat
from raffm_ray.benchmarks.subnetworks import plan_of_fraction
from raffm_ray.benchmarks.synthetic_data import MINILM, synthetic, vit
from raffm_ray.clients.local_training import one_thread
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.devices.profiles import LEAST, Host
from raffm_ray.fleet.time_prediction import BlockWork, block_work
from raffm_ray.pool.worker import keep_freed_memory
from raffm_ray.pool.worker_pool import open_pool
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.runs.callbacks import Callback, Listeners
from raffm_ray.runs.loop import Environment, train
from raffm_ray.runs.resuming import opened
from raffm_ray.runs.rounds.rows import RoundRow

Row = tuple[dict[str, Any], str, int, tuple[float, ...], tuple[int, ...]]
REFERENCES: tuple[Row, ...] = (
    (vit(16, 3, 2), "grey", 4, (1.0,), (1, 2, 16)),
    (vit(48, 3, 3), "grey", 16, (1.0, 0.3), (1, 2, 16)),
    (vit(96, 3, 6), "grey", 16, (1.0, 0.5, 0.25), (1, 4, 16)),
    (vit(128, 2, 4, image=32, channels=3), "pictures", 8, (1.0, 0.5, 0.25), (1,)),
    (vit(256, 1, 8, image=32, channels=3), "pictures", 16, (1.0, 0.5, 0.25), (1,)),
    (MINILM | {"num_hidden_layers": 1, "vocab_size": 8000}, "texts", 16, (1.0, 0.4), (1,)),
)
"""Configurations, their data, the batch, the parts of the parameters in layers that are kept, and how many clients are trained at once."""
STEPS = 4
"""Of every client."""
SLOWEST = (1e-7, 1e-7, 1e-2, 1e-2)
"""Seconds a FLOP, a byte, a dispatch and a stacked dispatch that no machine exceeds: bounds of the fit."""
FASTEST = 1e-18
BESIDE = "from raffm_ray.fleet.reference_models import keep_busy; keep_busy()"
"""What the other cores do meanwhile: they train as well, and share caches and memory."""


@dataclass(frozen=True)
class Rates:
    """What fits best: of float32 operations, of memory, and seconds a dispatch alone and in a stack."""

    flops_per_second: float
    memory_bytes_per_second: float
    dispatch_seconds: float
    stacked_dispatch_seconds: float


def prepared_reference(config: dict[str, Any], kind: str, batch_size: int, clients: int) -> Prepared:
    """An experiment of so many clients that train a reference model for STEPS steps."""
    local = {"batch_size": batch_size, "steps": STEPS}
    changes = {"pool": {"stack_clients": clients}, "extraction": {"floors": {}}}
    return synthetic(
        config=config, kind=kind, clients=clients, per_round=clients, local=local, examples=STEPS * batch_size, **changes
    )


def references(rows: Sequence[Row]) -> Iterator[tuple[BlockWork, Callable[[], object]]]:
    """(the work of a block, what does it) for every reference, part and number of clients."""
    for config, kind, batch_size, fractions, numbers in rows:
        for clients in numbers:
            prepared = prepared_reference(config, kind, batch_size, clients)
            runner, flat = prepared.runner(), starting_flat(prepared).numpy()
            local = prepared.setup.experiment.local
            for fraction in fractions:
                context = RoundContext(
                    seed=0,
                    round=1,
                    plans=(plan_of_fraction(prepared, fraction),),
                    local=local,
                    learning_rate=local.learning_rate or 0.0,
                    stack=(clients,),
                )
                jobs = [Job(client, 0) for client in range(clients)]

                def block(
                    context: RoundContext = context, jobs: Sequence[Job] = jobs, runner: Any = runner, flat: Any = flat
                ) -> None:
                    runner.block(context, flat, jobs)

                yield block_work(prepared.setup, context, jobs), block


def seconds_in_turns(actions: Sequence[Callable[[], object]], seconds: float, least: int = 3) -> list[float]:
    """Medians of the CPU time of actions, done in turns for about `seconds` each, after one turn that does not count.

    In turns, as every block of a run follows another: what it needs is no longer in the caches, and fast and slow periods meet all alike.
    """
    times: list[list[float]] = [[] for _ in actions]
    end = float("inf")
    for turn in count():
        for action, taken in zip(actions, times, strict=True):
            start = time.process_time()
            action()
            taken.append(time.process_time() - start)
        if not turn:
            end = time.perf_counter() + seconds * len(actions)
        elif turn >= least and time.perf_counter() > end:
            return [median(taken[1:]) for taken in times]
    raise AssertionError


def fitted(measured: Sequence[tuple[BlockWork, float]]) -> Rates:
    """The rates that leave the least squares of relative errors, each within bounds (Stark and Parker 1995, bounded least squares):

    seconds = FLOPs / F + bytes / M + dispatches x o + stacked dispatches x o'.
    """
    amounts = np.array([[*block.work[:2], block.work.dispatches, block.stacked] for block, _ in measured])
    seconds: NDArray[np.float64] = np.array([taken for _, taken in measured])
    scale = np.array(SLOWEST)
    found = (
        lsq_linear(amounts / seconds[:, None] * scale, np.ones(len(seconds)), (FASTEST / scale, np.ones(len(scale)))).x * scale
    )
    return Rates(
        flops_per_second=1 / found[0],
        memory_bytes_per_second=1 / found[1],
        dispatch_seconds=float(found[2]),
        stacked_dispatch_seconds=float(found[3]),
    )


def keep_busy() -> None:
    """Trains a reference model until this process is ended; says so once it is at it."""
    config, kind, batch_size, *_ = REFERENCES[-2]
    keep_freed_memory()
    prepared = prepared_reference(config, kind, batch_size, 1)
    runner, flat, local = prepared.runner(), starting_flat(prepared).numpy(), prepared.setup.experiment.local
    with one_thread():
        while True:
            runner.block(
                RoundContext(seed=0, round=1, plans=(Plan(),), local=local, learning_rate=local.learning_rate or 0.0),
                flat,
                [Job(0, 0)],
            )
            print("busy", flush=True)


@contextmanager
def others_busy(others: int) -> Iterator[None]:
    """Keeps so many other cores busy."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BESIDE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(others)
    ]
    try:
        for process in processes:
            assert process.stdout
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


FLEET = {
    "mix": "medium",
    "shares": {"raspberry_pi_4": 0.2, "v100": 0.2},
    "budgets": {
        "raspberry_pi_4": {"params": 0.25},
        "raspberry_pi_5": {"params": 0.35},
        "laptop": {"params": 0.5},
        "jetson_agx_orin": {"params": 0.75},
    },
}
"""Five classes, as the examples have."""
WIDTHS = (32, 320)
"""Of two models whose clients do next to nothing: what the driver's part of a round takes, whatever the model, and with its bytes."""


def driver(widths: tuple[int, int] = WIDTHS, rounds: int = 8, backend: Backend = "ray") -> Host:
    """What the driver's part of a round takes, from whole runs of a small and a larger model: of all phases but the workers', with records,
    checkpoints and what calls take on their way. Stacked dispatches are not in it."""
    points = []
    for width in widths:
        config = vit(width, 4, 4)
        prepared = synthetic(
            config=config,
            kind="grey",
            clients=20,
            per_round=10,
            local={"batch_size": 4, "steps": 1},
            examples=4,
            strategy={"name": "raffm"},
            rounds=rounds,
            fleet=FLEET,
            evaluation={"every": rounds, "sizes": 0},
            pool={"backend": backend},
            model={"config": config, "pretrain": {"epochs": 0}},
        )
        points.append((prepared.setup.costs(Plan()).bytes, _driver_seconds(prepared)))
    (small, fixed), (large, more) = points
    a_byte = max((more - fixed) / (large - small), 1e-15)
    return Host(round_seconds=max(0.0, fixed - small * a_byte), round_bytes_per_second=max(LEAST, 1 / a_byte))


def _driver_seconds(prepared: Prepared) -> float:
    rows: list[RoundRow] = []
    with TemporaryDirectory(prefix="raffm-ray-calibrate-") as folder, one_thread():
        recorder = opened(Path(folder) / "run", prepared.setup.experiment, lambda line: None)
        pool = open_pool(prepared.runner(), prepared.setup.experiment.pool)
        try:
            train(
                prepared,
                starting_flat(prepared),
                recorder,
                Environment(pool, Console(quiet=True), Listeners([Callback(round=rows.append)])),
            )
        finally:
            pool.close()
    inside = [row.wall_seconds - sum(row.phase_seconds.get(phase, 0.0) for phase in BY_WORKERS) for row in rows]
    return median(inside[2:-1])
