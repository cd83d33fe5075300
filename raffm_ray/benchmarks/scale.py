"""How time and the driver's memory grow with registered clients, with clients a round and with workers."""

import gc
from time import perf_counter
from typing import Any

from raffm_ray.benchmarks.crew import apart
from raffm_ray.benchmarks.measure import Bench, Row, interleaved
from raffm_ray.benchmarks.memory import peak_growth
from raffm_ray.benchmarks.rounds import federation, nothing_runner, starting_flat
from raffm_ray.benchmarks.synthetic import CIFAR, synthetic, synthetic_on, synthetic_task, vit
from raffm_ray.benchmarks.training import WORKLOADS
from raffm_ray.record import peak_rss_bytes
from raffm_ray.server import begin_round
from raffm_ray.state import new_state
from raffm_ray.training import one_thread

LOCAL = {"batch_size": 1, "steps": 1}
REGISTERED = (100, 1_000, 10_000, 100_000)
PER_ROUND = (10, 100, 1_000)


def registered(clients: int, examples: int) -> tuple[float, float]:
    """(seconds, bytes at the peak) of preparing a run of so many clients and beginning its first round; the data is there before."""
    with one_thread():
        task = synthetic_task("grey", examples)
        warm = synthetic_on(task, vit(8, 1, 1), 10, 10, LOCAL)
        state = new_state(starting_flat(warm))
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


def per_round(clients: int, workers: int, quick: bool) -> tuple[float, float]:
    """(seconds a client, the driver's peak bytes since its process began) of rounds of so many clients that do nothing."""
    with one_thread():
        prepared = synthetic(vit(8, 1, 1) if quick else CIFAR, "grey" if quick else "pictures", clients, clients, LOCAL, 1)
        with federation(prepared, nothing_runner(prepared), workers) as rounds:
            gc.collect()
            start = perf_counter()
            rounds.run(2)
            return (perf_counter() - start) / (2 * clients), float(peak_rss_bytes())


def _slope(counts: tuple[int, ...], values: list[float]) -> float:
    """What one more takes, between the fewest and the most."""
    return (values[-1] - values[0]) / (counts[-1] - counts[0])


def _grown(bench: Bench, counts: tuple[int, ...], function: Any, beside: tuple[Any, ...], told: str) -> tuple[list[list[float]], list[list[float]]]:  # fmt: skip
    """(seconds, bytes) of every count, by repetition, each in a process of its own."""

    def action(count: int) -> Any:
        return lambda: function(count, *beside) if bench.quick else apart(function, count, *beside)

    given = interleaved(bench, bench.few, *map(action, counts), told=told)
    return [[one[0] for one in values] for values in given], [[one[1] for one in values] for values in given]  # type: ignore[index]


def _registered_rows(bench: Bench) -> list[Row]:
    counts = (10, 20) if bench.quick else REGISTERED
    seconds, sizes = _grown(bench, counts, registered, (2 * counts[-1],), "registered clients")
    rows = []
    for values, unit, scale, target in ((seconds, "s", 1.0, 1.0), (sizes, "MB", 1e-6, 200.0)):
        scaled = [tuple(scale * one for one in each) for each in values]
        details = {"clients": counts, "by_clients": scaled, "slope_a_client": _slope(counts, [min(one) for one in scaled])}
        what = f"{counts[-1]:,} registered over {counts[0]:,}"
        rows.append(Row(what, unit, scaled[-1], scaled[0], target, "extra", details=details))
    return rows


def _per_round_rows(bench: Bench) -> list[Row]:
    counts = (2, 4) if bench.quick else PER_ROUND
    seconds, sizes = _grown(bench, counts, per_round, (bench.workers, bench.quick), "clients a round")
    rows = []
    for values, what, unit, scale, target in (
        (seconds, "time a client", "ms", 1000.0, None), (sizes, "driver's peak", "MB", 1e-6, 1.2),
    ):  # fmt: skip
        scaled = [tuple(scale * one for one in each) for each in values]
        details = {"clients": counts, "by_clients": scaled, "slope_a_client": _slope(counts, [min(one) for one in scaled])}
        rows.append(Row(f"{counts[-1]:,} a round over {counts[0]:,}: {what}", unit, scaled[-1], scaled[0], target, details=details))
    return rows


def _worker_rows(bench: Bench) -> list[Row]:
    """What training gains by workers: clients a second a worker, of the most workers over one."""
    workload = WORKLOADS["digits"].shortened() if bench.quick else WORKLOADS["digits"]
    prepared = workload.prepared()
    counts = sorted({1, bench.workers, *(2**power for power in range(bench.workers.bit_length() - 1))})
    rates: dict[int, tuple[float, ...]] = {}
    for count in counts:
        with federation(prepared, prepared.runner(), count) as rounds:

            def rate(rounds: Any = rounds) -> float:
                start = perf_counter()
                rounds.run(workload.rounds)
                return workload.rounds * workload.per_round / (perf_counter() - start)

            (rates[count],) = interleaved(bench, bench.few, rate, told=f"{count} workers")
    each = [tuple(rate / count for rate in rates[count]) for count in (counts[-1], 1)]
    details = {"workers": counts, "clients_a_second": [rates[count] for count in counts]}
    return [Row(f"{counts[-1]} workers over 1: rate of each", "clients/s", *each, details=details)]


def scale(bench: Bench) -> list[Row]:
    """Registered clients 10^2 to 10^5, clients a round 10 to 1,000, workers 1 to all cores; the limit is the smallest of each."""
    return [*_registered_rows(bench), *_per_round_rows(bench), *_worker_rows(bench)]
