"""Rounds whose clients do nothing: the time of pool and server, compared with bare Ray."""

from dataclasses import replace
from time import perf_counter

from raffm_ray.axes.indexing import Plan
from raffm_ray.benchmarks.bare_ray import adders, bare_round, dismiss
from raffm_ray.benchmarks.measurement import Bench, Row, interleaved, scaled
from raffm_ray.benchmarks.rounds import federation, nothing_runner, numpy_of
from raffm_ray.benchmarks.synthetic_data import synthetic, vit
from raffm_ray.preparation.prepare import Prepared

LOCAL = {"batch_size": 1, "steps": 1}


def _prepared(config: dict[str, object], registered: int, per_round: int) -> Prepared:
    return synthetic(
        config=config,
        kind="grey",
        clients=registered,
        per_round=per_round,
        local=LOCAL,
        examples=1,
        strategy={"name": "full", "client_weight": "equal"},
    )


def _milliseconds(bench: Bench, prepared: Prepared, rounds: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Milliseconds a round of ours and of bare Ray, by repetition."""
    clients = prepared.setup.experiment.clients.per_round
    with federation(prepared, nothing_runner(prepared), bench.workers, bench.backend) as ours:
        actors = adders(bench.workers)
        parameters = numpy_of(ours.state.parameters)

        def our_own() -> float:
            start = perf_counter()
            ours.run(rounds)
            return 1000 * (perf_counter() - start) / rounds

        def bare() -> float:
            start = perf_counter()
            for _ in range(rounds):
                bare_round(actors, parameters, clients)
            return 1000 * (perf_counter() - start) / rounds

        try:
            bare()
            measured, limit = interleaved(bench, bench.repetitions, (our_own, bare))
        finally:
            dismiss(actors)
    return measured, limit


def _noop(bench: Bench, clients: int, config: dict[str, object], rounds: int) -> tuple[Row, Row]:
    """Milliseconds a round and milliseconds a client."""
    prepared = _prepared(config, 2 * clients, clients)
    measured, limit = _milliseconds(bench, prepared, rounds)
    details = {"clients": clients, "bytes_a_client": prepared.setup.costs(Plan()).bytes, "rounds_timed_together": rounds}
    a_round = Row("a round", "ms", measured, limit, details=details)
    return a_round, replace(a_round, what="a client", ours=scaled(measured, 1 / clients), limit=scaled(limit, 1 / clients))


def noop_small(bench: Bench) -> list[Row]:
    """500 clients of 10 kB a round."""
    a_round, a_client = _noop(bench, 6 if bench.quick else 500, vit(13, 1, 1), 1 if bench.quick else 10)
    return [a_round, replace(a_client, target=0.1, judged="ours")]


def noop_large(bench: Bench) -> list[Row]:
    """50 clients of 45 MB a round."""
    clients, config = (4, vit(16, 1, 1)) if bench.quick else (50, vit(394, 6, 2))
    a_round, a_client = _noop(bench, clients, config, 1)
    return [replace(a_round, target=1.2), a_client]
