"""Rounds of real training beside a plain PyTorch loop on as many processes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Self

from raffm_ray.basics.seeding import generator
from raffm_ray.benchmarks.measurement import Bench, Row, interleaved, scaled
from raffm_ray.benchmarks.plain_loop import Batches, forget, give, load, train
from raffm_ray.benchmarks.rounds import Rounds, federation, numpy_of
from raffm_ray.benchmarks.synthetic_data import CIFAR, MINILM, synthetic, vit
from raffm_ray.benchmarks.warm_processes import WarmProcesses
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.data.examples import batches
from raffm_ray.preparation.prepare import Prepared


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

    def shortened(self) -> Self:
        """The same in small, for tests."""
        layers = {**self.config, "num_hidden_layers": 1}
        if self.kind.endswith("texts"):
            layers |= {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 1000}
        return replace(self, config=layers, clients=4, per_round=2, steps=1, rounds=1, batch_size=4)

    def prepared(self) -> Prepared:
        """As an experiment on data in memory: every client has as many examples as it sees."""
        return self.experiment({})

    def experiment(self, local: dict[str, Any], **changes: Any) -> Prepared:
        """`prepared` with other settings of local training, and others."""
        settings = {"batch_size": self.batch_size, "steps": self.steps, "learning_rate": 1e-3, **local}
        examples = self.steps * self.batch_size
        return synthetic(
            config=self.config,
            kind=self.kind,
            clients=self.clients,
            per_round=self.per_round,
            local=settings,
            examples=examples,
            **changes,
        )


WORKLOADS: dict[str, Workload] = {
    "digits": Workload(config=vit(32, 3, 4), kind="grey", clients=1000, per_round=100, steps=2, rounds=5, target=0.6),
    "cifar": Workload(config=CIFAR, kind="pictures", clients=100, per_round=10, steps=3, rounds=1, target=1.05),
    "sst2": Workload(config=MINILM, kind="texts", clients=100, per_round=10, steps=4, rounds=1, target=1.05),
}
"""Models of 39 thousand, 2.7 million and 22.7 million parameters."""


def batches_of(prepared: Prepared, context: RoundContext, job: Job) -> Batches:
    """The batches that a client will see in a round."""
    local = context.local
    assert local.steps is not None
    rng = generator(context.seed, "batches", context.round, job.client)
    return list(batches(prepared.shares[job.client], local.batch_size, local.steps, rng))


def _plain_seconds(processes: WarmProcesses, prepared: Prepared, ours: Rounds, rounds: int) -> float:
    """What the plain loop takes for the clients of our next round, so many times."""
    work = ours.next()
    clients = [batches_of(prepared, work.context, job) for job in work.jobs]
    processes.each(give, [(clients[position :: processes.count],) for position in range(processes.count)])
    start = perf_counter()
    for _ in range(rounds):
        processes.each(train, [()] * processes.count)
    return perf_counter() - start


def beside_plain(bench: Bench, workload: Workload, what: str, processes: WarmProcesses, workers: int | None, device: str) -> Row:
    """A workload's rounds on so many workers (None: as many as there is room for) beside the plain loop on a processes."""
    prepared = workload.prepared()
    setup, count = prepared.setup, workload.per_round * workload.rounds
    with federation(prepared, prepared.runner(), workers, bench.backend) as ours:
        flat = numpy_of(ours.state.parameters)
        given = (setup.architecture, flat, prepared.task.clients, setup.experiment.local, device)
        processes.each(load, [given] * processes.count)

        def our_own() -> float:
            start = perf_counter()
            ours.run(workload.rounds)
            return perf_counter() - start

        def plain() -> float:
            return _plain_seconds(processes, prepared, ours, workload.rounds)

        try:
            plain()
            measured, limit = interleaved(bench, bench.repetitions, (our_own, plain))
        finally:
            processes.each(forget, [()] * processes.count)
    rates = [[count / seconds for seconds in values] for values in (measured, limit)]
    details = {
        "clients": count,
        "workers": ours.pool.workers,
        "ours_clients_a_second": rates[0],
        "limit_clients_a_second": rates[1],
    }
    to_each = 1000 / count
    return Row(what, "ms", scaled(measured, to_each), scaled(limit, to_each), workload.target, details=details)


def training(name: str) -> Callable[[Bench], list[Row]]:
    """The case of a workload."""

    def case(bench: Bench) -> list[Row]:
        workload = WORKLOADS[name].shortened() if bench.quick else WORKLOADS[name]
        return [
            beside_plain(
                bench=bench, workload=workload, what="a client", processes=bench.processes, workers=bench.workers, device="cpu"
            )
        ]

    return case
