"""Texts of unlike length: those of like length together in a step (`local.batches: by_length`) beside shuffled ones."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from time import perf_counter

from raffm_ray.benchmarks.measurement import Bench, Row, interleaved, scaled
from raffm_ray.benchmarks.rounds import Rounds, federation
from raffm_ray.benchmarks.training import WORKLOADS

BATCHES = ("by_length", "shuffled")


def _seconds(rounds: Rounds) -> float:
    start = perf_counter()
    rounds.run()
    return perf_counter() - start


def lengths(bench: Bench) -> list[Row]:
    """Milliseconds for each client of a round of MiniLM; the limit trains the same clients on shuffled batches."""
    sst2 = WORKLOADS["sst2"].shortened() if bench.quick else WORKLOADS["sst2"]
    workload = replace(sst2, kind="uneven texts")
    with ExitStack() as stack:
        both = []
        for name in BATCHES:
            prepared = workload.experiment({"batches": name})
            both.append(stack.enter_context(federation(prepared, prepared.runner(), bench.workers, bench.backend)))
        by_length, shuffled = interleaved(bench, bench.repetitions, [partial(_seconds, one) for one in both])
    to_each = 1000 / workload.per_round
    return [Row("a client", "ms", scaled(by_length, to_each), scaled(shuffled, to_each), 1.0)]
