"""How time and the driver's memory grow with registered clients, with clients a round and with workers."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from raffm_ray.basics.machine import peak_rss_bytes
from raffm_ray.benchmarks.measurement import Backend, Bench, Row, interleaved, peak_growth, scaled
from raffm_ray.benchmarks.rounds import federation, nothing_runner, starting_flat
from raffm_ray.benchmarks.synthetic_data import CIFAR, synthetic, synthetic_on, synthetic_task, vit
from raffm_ray.benchmarks.training import WORKLOADS
from raffm_ray.benchmarks.warm_processes import in_fresh_process
from raffm_ray.clients.local_training import one_thread
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import starting_state

LOCAL = {"batch_size": 1, "steps": 1}
REGISTERED = (100, 1_000, 10_000, 100_000)
PER_ROUND = (10, 100, 1_000)
Measured = Callable[..., tuple[float, float]]


def registered(clients: int, examples: int) -> tuple[float, float]:
    """(seconds, bytes at the peak) of preparing a run of so many clients and beginning its first round; the data is there before."""
    with one_thread():
        task = synthetic_task("grey", examples)
        warm = synthetic_on(task, vit(8, 1, 1), 10, 10, LOCAL)
        state = starting_state(warm.setup, starting_flat(warm))
        begin_round(warm.setup, state)
        kept: list[Any] = []
        taken = 0.0

        def begin() -> None:
            nonlocal taken
            start = perf_counter()
            prepared = synthetic_on(task, vit(8, 1, 1), clients, 10, LOCAL)
            kept.append((prepared, begin_round(prepared.setup, state)))
            taken = perf_counter() - start

        grown, _ = peak_growth(begin)
    return taken, float(grown)


def per_round(clients: int, workers: int, quick: bool, backend: Backend) -> tuple[float, float]:
    """(seconds a client, the driver's peak bytes since its process began) of rounds of so many clients that do nothing."""
    with one_thread():
        prepared = synthetic(
            config=vit(8, 1, 1) if quick else CIFAR,
            kind="grey" if quick else "pictures",
            clients=clients,
            per_round=clients,
            local=LOCAL,
            examples=1,
        )
        with federation(prepared, nothing_runner(prepared), workers, backend) as rounds:
            gc.collect()
            start = perf_counter()
            rounds.run(2)
            return (perf_counter() - start) / (2 * clients), float(peak_rss_bytes())


def _rows(
    bench: Bench,
    counts: tuple[int, ...],
    function: Measured,
    beside: tuple[Any, ...],
    what: str,
    units: Sequence[tuple[str, str, float]],
) -> list[Row]:
    """The most clients beside the fewest: what `function(clients, *beside)` gives of each unit (what, unit, factor), measured in a
    fresh process for every count and repetition. The slope is what one more client takes between the fewest and the most."""
    actions = [
        partial(function, count, *beside) if bench.quick else partial(in_fresh_process, function, count, *beside)
        for count in counts
    ]
    given = interleaved(bench, bench.few, actions, what)
    rows = []
    for position, (measure, unit, factor) in enumerate(units):
        by_count = [scaled([one[position] for one in values], factor) for values in given]
        slope = (median(by_count[-1]) - median(by_count[0])) / (counts[-1] - counts[0])
        details = {"clients": counts, "by_clients": by_count, "slope_a_client": slope}
        rows.append(Row(f"{counts[-1]:,} {what} over {counts[0]:,}: {measure}", unit, by_count[-1], by_count[0], details=details))
    return rows


def _registered_rows(bench: Bench) -> list[Row]:
    counts = (10, 20) if bench.quick else REGISTERED
    units = (("time", "s", 1.0), ("memory", "MB", 1e-6))
    seconds, memory = _rows(bench, counts, registered, (2 * counts[-1],), "registered", units)
    return [replace(seconds, judged="extra", target=1.0), replace(memory, judged="extra", target=200.0)]


def _per_round_rows(bench: Bench) -> list[Row]:
    counts = (2, 4) if bench.quick else PER_ROUND
    units = (("time each", "ms", 1e3), ("driver's peak", "MB", 1e-6))
    seconds, memory = _rows(bench, counts, per_round, (bench.workers, bench.quick, bench.backend), "a round", units)
    return [seconds, replace(memory, target=1.2)]


def _worker_rows(bench: Bench) -> list[Row]:
    """What training gains by workers: clients a second a worker, of the most workers over one."""
    workload = WORKLOADS["digits"].shortened() if bench.quick else WORKLOADS["digits"]
    prepared = workload.prepared()
    counts = sorted({1, bench.workers, *(2**power for power in range(bench.workers.bit_length() - 1))})
    rates: dict[int, tuple[float, ...]] = {}
    for count in counts:
        with federation(prepared, prepared.runner(), count, bench.backend) as rounds:

            def rate(rounds: Any = rounds) -> float:
                start = perf_counter()
                rounds.run(workload.rounds)
                return workload.rounds * workload.per_round / (perf_counter() - start)

            (rates[count],) = interleaved(bench, bench.few, [rate], f"{count} workers")
    details = {"workers": counts, "clients_a_second": [rates[count] for count in counts]}
    most = counts[-1]
    return [Row(f"{most} workers over 1: rate of each", "clients/s", scaled(rates[most], 1 / most), rates[1], details=details)]


def scale(bench: Bench) -> list[Row]:
    """Registered clients 10^2 to 10^5, clients a round 10 to 1,000, workers 1 to all cores; the limit is the smallest of each."""
    return [*_registered_rows(bench), *_per_round_rows(bench), *_worker_rows(bench)]
