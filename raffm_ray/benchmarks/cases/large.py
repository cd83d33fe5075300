"""A model that is much larger than what is trained of it: memory and bytes of rounds of a LLaMA whose frozen part is in bfloat16."""

from collections.abc import Callable
from functools import partial
from threading import Event, Thread
from typing import Any, NamedTuple

import torch

from raffm_ray.basics.machine import peak_rss_bytes
from raffm_ray.benchmarks.bare_ray import stored_bytes
from raffm_ray.benchmarks.measurement import Backend, Bench, Row, interleaved
from raffm_ray.benchmarks.rounds import federation
from raffm_ray.benchmarks.synthetic_data import synthetic
from raffm_ray.benchmarks.warm_processes import in_fresh_process
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.server.ranking import random_state

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 5632,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
}
"""The shape of TinyLlama (Zhang et al. 2024): 1.0 billion parameters without an output for words."""
TINY = {**LLAMA, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 1000}
RANKS = {"v100": 32, "jetson_agx_orin": 16, "laptop": 8, "raspberry_pi_5": 4}
"""Ranks of the adapters by device type; one client has each."""
BYTES_RATIO, DRIVER_GIGABYTES, WORKER_GIGABYTES = 1.2, 4.0, 2.5
"""The most bytes on the wire over those of what is trained, and the most that the driver and a worker hold besides the object store."""


class Measured(NamedTuple):
    """Bytes. `wire`: that the simulated devices of a round are charged, up and down, without the frozen part's first delivery; `trained`: of what they train, there and
    back; `frozen`: of the frozen part, once; `store`: the most in Ray's object store; `driver`, `worker`: the most that this process held, and a
    worker, the object store's pages that they read among it."""

    wire: float
    trained: float
    frozen: float
    store: float
    driver: float
    worker: float


def prepared_large(config: dict[str, Any], ranks: bool) -> Prepared:
    """Four clients of one step of two texts. `ranks`: adapters of 32 to 4 ranks beside the head; else the head alone is trained."""
    model: dict[str, Any] = {"config": config, "frozen_precision": "bfloat16"}
    changes: dict[str, Any] = {"model": model | {"freeze": ["model.*"]}}
    if ranks:
        most = max(RANKS.values())
        budgets = {name: {"adapter_params": rank / most} for name, rank in RANKS.items()}
        changes = {
            "model": model | {"adapters": {"rank": most, "targets": ["query", "value"]}},
            "strategy": {"name": "rbla"},
            "extraction": {"kind": "common_rate", "steps": {"rank": 1}},
            "fleet": {"shares": dict.fromkeys(RANKS, 1 / len(RANKS)), "budgets": budgets},
        }
    local = {"batch_size": 2, "steps": 1, "learning_rate": 1e-4, "precision": "bfloat16"}
    count = len(RANKS)
    return synthetic(config=config, kind="texts", clients=count, per_round=count, local=local, examples=2, **changes)


def watched(action: Callable[[], None], look: Callable[[], float]) -> float:
    """The most that `look` saw while the action ran."""
    seen, done = [look()], Event()

    def watch() -> None:
        while not done.wait(0.2):
            seen.append(look())

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        action()
    finally:
        done.set()
        thread.join()
    return max(*seen, look())


def measured(config: dict[str, Any], ranks: bool, workers: int, backend: Backend) -> Measured:
    """What two rounds take, in this process and its workers."""
    prepared = prepared_large(config, ranks)
    state = random_state(prepared.setup, torch.Generator().manual_seed(0))
    frozen = state.frozen.numel() * state.frozen.element_size()
    with federation(prepared, prepared.runner(), workers, backend, state) as rounds:
        work = rounds.next()
        visits = work.visits
        wire = sum(visit.cost.bytes_down + visit.cost.bytes_up - visit.cost.frozen_bytes_down for visit in visits)
        costs = [prepared.setup.costs(work.context.plans[visit.job.plan or 0]) for visit in visits]
        store = watched(rounds.run, stored_bytes if backend == "ray" else lambda: float(frozen))
        worker = max((peak for _, peak in rounds.pool.memory()), default=0)
        trained = sum(2 * one.bytes_up for one in costs)
    return Measured(float(wire), float(trained), float(frozen), store, float(peak_rss_bytes()), float(worker))


def large(bench: Bench) -> list[Row]:
    """A head alone, and adapters of 32 to 4 ranks with it. The limits are what is trained, sent there and back, and one copy of the frozen part."""
    config, giga = TINY if bench.quick else LLAMA, 1e-9
    rows = []
    for ranks, what in ((False, "head"), (True, "adapters and head")):
        action = partial(measured, config, ranks, bench.workers, bench.backend)
        run = action if bench.quick else partial(in_fresh_process, action)
        (all_of,) = interleaved(bench, 1, [run], what)
        one, each = all_of[0], len(RANKS)
        driver, worker = (max(peak - one.store, 0.0) for peak in (one.driver, one.worker))
        rows += [
            Row(f"{what}: bytes of a client", "MB", (1e-6 * one.wire / each,), (1e-6 * one.trained / each,), BYTES_RATIO),
            Row(f"{what}: object store", "GB", (giga * one.store,), (giga * one.frozen,), 1.1),
            Row(f"{what}: driver besides", "GB", (giga * driver,), (giga * one.frozen,), DRIVER_GIGABYTES, judged="ours"),
            Row(f"{what}: a worker besides", "GB", (giga * worker,), (giga * one.frozen,), WORKER_GIGABYTES, judged="ours"),
        ]
    return rows
