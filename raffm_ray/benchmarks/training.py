"""Rounds of real training beside a plain PyTorch loop on as many processes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from raffm_ray.benchmarks.measure import Bench, Row, interleaved, scaled
from raffm_ray.benchmarks.plain_loop import Batches, forget, give, load, train
from raffm_ray.benchmarks.rounds import Rounds, federation, numpy_of
from raffm_ray.benchmarks.synthetic import CIFAR, MINILM, synthetic, vit
from raffm_ray.examples import batches
from raffm_ray.messages import Job, Package
from raffm_ray.prepare import Prepared
from raffm_ray.seeding import generator


@dataclass(frozen=True)
class Workload:
    """What is trained: `clients` registered, `per_round` a round, `steps` of 16 examples each, full-size plans.

    `rounds` are timed together; `target`: the most that our time may be, as a multiple of the plain loop's.
    """

    config: dict[str, Any]
    kind: str
    clients: int
    per_round: int
    steps: int
    rounds: int
    target: float
    batch_size: int = 16

    def shortened(self) -> "Workload":
        """The same in small, for tests."""
        layers = {**self.config, "num_hidden_layers": 1}
        if self.kind == "texts":
            layers |= {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 1000}
        return replace(self, config=layers, clients=4, per_round=2, steps=1, rounds=1, batch_size=4)

    def prepared(self) -> Prepared:
        """As an experiment on data in memory: every client has as many examples as it sees."""
        local = {"batch_size": self.batch_size, "steps": self.steps, "learning_rate": 1e-3}
        return synthetic(self.config, self.kind, self.clients, self.per_round, local, self.steps * self.batch_size)


WORKLOADS: dict[str, Workload] = {
    "digits": Workload(vit(32, 3, 4), "grey", 1000, 100, 2, 5, 0.6),
    "cifar": Workload(CIFAR, "pictures", 100, 10, 3, 1, 1.05),
    "sst2": Workload(MINILM, "texts", 100, 10, 4, 1, 1.05),
}
"""Models of 39 thousand, 2.7 million and 22.7 million parameters."""


def batches_of(prepared: Prepared, package: Package, job: Job) -> Batches:
    """The batches that a client will see in a round."""
    local = package.local
    assert local.steps is not None
    rng = generator(package.seed, "batches", package.round, job.client)
    return list(batches(prepared.shares[job.client], local.batch_size, local.steps, rng))


def _plain_seconds(bench: Bench, prepared: Prepared, ours: Rounds, rounds: int) -> float:
    """What the plain loop takes for the clients of our next round, so many times."""
    work = ours.next()
    clients = [batches_of(prepared, work.package, job) for job in work.jobs]
    bench.crew.each(give, [(clients[position :: bench.workers],) for position in range(bench.workers)])
    start = perf_counter()
    for _ in range(rounds):
        bench.crew.each(train, [()] * bench.workers)
    return perf_counter() - start


def training(name: str) -> Callable[[Bench], list[Row]]:
    """The case of a workload."""

    def case(bench: Bench) -> list[Row]:
        workload = WORKLOADS[name].shortened() if bench.quick else WORKLOADS[name]
        prepared = workload.prepared()
        setup, count = prepared.setup, workload.per_round * workload.rounds
        with federation(prepared, prepared.runner(), bench.workers, bench.backend) as ours:
            flat = numpy_of(ours.state.parameters)
            given = (setup.architecture, flat, prepared.task.clients, setup.experiment.local)
            bench.crew.each(load, [given] * bench.workers)

            def our_own() -> float:
                start = perf_counter()
                ours.run(workload.rounds)
                return perf_counter() - start

            def plain() -> float:
                return _plain_seconds(bench, prepared, ours, workload.rounds)

            try:
                plain()
                measured, limit = interleaved(bench, bench.repetitions, (our_own, plain))
            finally:
                bench.crew.each(forget, [()] * bench.workers)
        rates = [[count / seconds for seconds in values] for values in (measured, limit)]
        details = {"clients": count, "ours_clients_a_second": rates[0], "limit_clients_a_second": rates[1]}
        to_each = 1000 / count
        return [Row("a client", "ms", scaled(measured, to_each), scaled(limit, to_each), workload.target, details=details)]

    return case
