"""Subnetworks: whether a smaller one trains faster and in less memory, and how fast they are cut and added back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter, process_time
from typing import Any

import torch

from raffm_ray.axes.indexing import Plan, scatter_add_selected, take_selected
from raffm_ray.axes.layout import selections
from raffm_ray.basics.seeding import generator
from raffm_ray.benchmarks.measurement import Bench, Row, interleaved, peak_growth, return_memory_at_once, scaled
from raffm_ray.benchmarks.rounds import starting_flat
from raffm_ray.benchmarks.synthetic_data import CIFAR, MINILM, synthetic
from raffm_ray.benchmarks.training import Workload
from raffm_ray.benchmarks.warm_processes import WarmProcesses, in_fresh_process
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.local_training import one_thread
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.pool.worker import keep_freed_memory
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.server.state import ServerState, parameters_of, starting_state
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.extraction import longest_prefix, ranked_list
from raffm_ray.subnetworks.salience import METRICS, rank

FRACTIONS = (1.0, 0.75, 0.5, 0.35)
"""Parts of the parameters in layers (of the encoder)."""
STEPS = (2, 6)
"""A step takes the difference of these two trainings, by the difference of their steps: what a client costs however long it trains
(cutting, adding up) is not in it."""
TARGETS: Mapping[float, tuple[float, float]] = {0.5: (0.6, 0.65)}
"""By fraction: the most that a step's time and its memory may be of the full model's."""
MODELS: dict[str, Workload] = {
    "ViT": Workload(config=CIFAR, kind="pictures", clients=1, per_round=1, steps=STEPS[1], rounds=1, target=1.0),
    "MiniLM": Workload(config=MINILM, kind="texts", clients=1, per_round=1, steps=STEPS[1], rounds=1, target=1.0),
}
MODEL_SETTINGS: dict[str, dict[str, Any]] = {"ViT": {}, "MiniLM": {"freeze": ["*embeddings*"]}}
"""Settings of `model` besides its configuration."""


def plan_of_fraction(prepared: Prepared, fraction: float) -> Plan:
    """The longest prefix of a ranked list by random salience within a fraction of the parameters in layers."""
    setup = prepared.setup
    architecture = setup.architecture
    if fraction == 1:
        return Plan()
    scores = METRICS["random"].score(architecture.layout, {}, {}, generator(0, "salience", 0))
    budget = Budget(layer_params=fraction * setup.costs(Plan()).layer_params)
    return longest_prefix(architecture, ranked_list(architecture, scores, setup.cutting), rank(scores), setup.cutting, budget)


@dataclass
class Client:
    """One client in this process, through the code that a worker runs. `state`: what it is given."""

    prepared: Prepared
    runner: ClientRunner
    state: ServerState

    def train(self, plan: Plan, steps: int) -> None:
        """A client's whole work: cut, so many steps, added up."""
        local = self.prepared.setup.experiment.local.model_copy(update={"steps": steps})
        self.runner.block(
            RoundContext(seed=0, round=1, plans=(plan,), local=local, learning_rate=local.learning_rate or 0.0),
            self.state.parameters.numpy(),
            [Job(0, 0)],
        )


def client_of(name: str, quick: bool) -> Client:
    """A client of a row of `MODELS`, with random weights."""
    workload = MODELS[name].shortened() if quick else MODELS[name]
    local = {"batch_size": workload.batch_size, "learning_rate": 1e-3}
    prepared = synthetic(
        config=workload.config,
        kind=workload.kind,
        clients=1,
        per_round=1,
        local=local,
        examples=workload.batch_size * workload.steps,
        model={"config": workload.config, **MODEL_SETTINGS[name]},
        extraction={"floors": {}},
    )
    state, runner = starting_state(prepared.setup, starting_flat(prepared)), prepared.runner()
    runner.hold(state.frozen_array)
    return Client(prepared, runner, state)


def step_memory(name: str, fraction: float, quick: bool, repetitions: int) -> tuple[list[float], str]:
    """Bytes by which a process grows while a client trains, of which its peak is in a step, by repetition; and how that is known."""
    return_memory_at_once()  # before anything is held: what was freed into the heap would be used again and never given back
    with one_thread():
        client = client_of(name, quick)
        plan = plan_of_fraction(client.prepared, fraction)
        client.train(plan, 1)
        grown = [peak_growth(lambda: client.train(plan, 2)) for _ in range(repetitions)]
    return [float(size) for size, _ in grown], grown[0][1]


def _step_seconds(client: Client, plan: Plan) -> float:
    taken = []
    for steps in STEPS:
        start = process_time()
        client.train(plan, steps)
        taken.append(process_time() - start)
    return (taken[1] - taken[0]) / (STEPS[1] - STEPS[0])


def _model_rows(bench: Bench, name: str) -> list[Row]:
    client = client_of(name, bench.quick)
    plans = {fraction: plan_of_fraction(client.prepared, fraction) for fraction in FRACTIONS}
    for plan in plans.values():
        client.train(plan, 1)
    times = interleaved(bench, bench.repetitions, [partial(_step_seconds, client, plan) for plan in plans.values()], name)
    seconds = dict(zip(FRACTIONS, times, strict=True))
    memory, method = {}, ""
    for fraction in FRACTIONS:
        bench.progress(1.0, f"{name}: memory at {fraction:.0%}")
        asked = (name, fraction, bench.quick, bench.few)
        memory[fraction], method = step_memory(*asked) if bench.quick else in_fresh_process(step_memory, *asked)
    rows = []
    for fraction in FRACTIONS[1:]:
        most_time, most_memory = TARGETS.get(fraction, (None, None))
        costs = client.prepared.setup.costs(plans[fraction])
        milliseconds, all_milliseconds = (scaled(seconds[one], 1e3) for one in (fraction, 1.0))
        megabytes, all_megabytes = (scaled(memory[one], 1e-6) for one in (fraction, 1.0))
        shape = {"params": costs.params, "layer_params": costs.layer_params, "training_flops": costs.training_flops}
        rows.append(Row(f"{name} {fraction:.0%}: step", "ms", milliseconds, all_milliseconds, most_time, details=shape))
        told = {**shape, "method": method, "estimated_bytes": costs.memory_bytes}
        rows.append(Row(f"{name} {fraction:.0%}: memory", "MB", megabytes, all_megabytes, most_memory, details=told))
    return rows


def subnet(bench: Bench) -> list[Row]:
    """A training step's CPU time and peak memory at 75, 50 and 35% of the encoder; the limit is the full model's."""
    return [row for name in MODELS for row in _model_rows(bench, name)]


def _rates(quick: bool, repetitions: int) -> tuple[list[tuple[float, ...]], dict[str, int]]:
    """GB cut, added back and copied a second, by repetition, in a process that keeps its memory as a worker does."""
    if not quick:
        keep_freed_memory()
    client = client_of("MiniLM", quick)
    architecture, plan = client.prepared.setup.architecture, plan_of_fraction(client.prepared, 0.5)
    parameters = parameters_of(client.prepared.setup, client.state)
    chosen = selections(architecture.shapes, architecture.layout, plan)
    sources = {name: take_selected(parameters[name], selected).clone() for name, selected in chosen.items()}
    targets = {name: torch.zeros_like(values) for name, values in sources.items()}
    totals = {name: torch.zeros(shape) for name, shape in architecture.shapes.items()}
    moved = 4 * sum(values.numel() for values in sources.values()) / 1e9
    times = 1 if quick else 10

    def rate(action: Callable[[], None]) -> float:
        start = perf_counter()
        for _ in range(times):
            action()
        return times * moved / (perf_counter() - start)

    def cut() -> None:
        for name, selected in chosen.items():
            values = take_selected(parameters[name], selected)
            values.to("cpu", copy=values is parameters[name])

    def add() -> None:
        for name, selected in chosen.items():
            scatter_add_selected(totals[name], sources[name], selected)

    def copy() -> None:
        for name, values in sources.items():
            targets[name].copy_(values)

    for action in (cut, add, copy):
        action()
    with one_thread():
        alone = Bench(workers=1, repetitions=repetitions, quick=quick, progress=lambda *_: None, processes=WarmProcesses(0))
        rates = interleaved(alone, repetitions, [partial(rate, action) for action in (cut, add, copy)])
    return rates, {"bytes": int(1e9 * moved), "arrays": len(sources)}


def extract_aggregate(bench: Bench) -> list[Row]:
    """Bytes cut and added back a second, at half of MiniLM's encoder; the limit is a copy of as many bytes in as many arrays."""
    asked = (bench.quick, bench.repetitions)
    (cuts, adds, copies), details = _rates(*asked) if bench.quick else in_fresh_process(_rates, *asked)
    return [
        Row("cut", "GB/s", cuts, copies, 0.6, at_least=True, details=details),
        Row("added", "GB/s", adds, copies, 0.6, at_least=True, details=details),
    ]
