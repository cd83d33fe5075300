"""Measuring subnetworks on the held-out part, spread over a pool."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.axes import Plan
from raffm_ray.calibration import Statistics
from raffm_ray.data import Task
from raffm_ray.ledger import Evaluation
from raffm_ray.messages import Package
from raffm_ray.pool import Call, Pool
from raffm_ray.state import ServerState, Setup, class_plans


def measure(
    setup: Setup, parameters: Tensor, norms: Statistics, plans: Sequence[Plan], pool: Pool, task: Task, round_number: int = 0
) -> list[tuple[float, float]]:
    """(metric, mean loss of a target) of every plan's subnetwork of these flat parameters, on the held-out part."""
    experiment = setup.experiment
    size, held_out = experiment.evaluation.batch_size, len(task.held_out)
    slices = [(start, min(start + size, held_out)) for start in range(0, held_out, size)]
    asked = [(number, *part) for number in range(len(plans)) for part in slices]
    calls: list[Call] = [("evaluate", arguments) for arguments in asked]
    costs = [float(setup.costs(plans[number]).forward_flops * (stop - start)) for number, start, stop in asked]
    package = Package(experiment.seed, round_number, tuple(plans), experiment.local, 0.0, norms=norms)
    answers: list[list[NDArray[np.float64]]] = [[] for _ in plans]
    loss, targets = [0.0] * len(plans), [0] * len(plans)
    results = pool.run(package, parameters.numpy(), calls, costs, lambda *_: None)
    for (number, *_), ((given, summed, count), _) in zip(asked, results, strict=True):
        answers[number].append(given)
        loss[number] += summed
        targets[number] += count
    return [
        (task.score(np.concatenate(given)), total / max(count, 1))
        for given, total, count in zip(answers, loss, targets, strict=True)
    ]


def evaluate(setup: Setup, state: ServerState, pool: Pool, task: Task) -> Evaluation:
    """The full model and every class's subnetwork."""
    by_class = class_plans(setup, state)
    plans = list(dict.fromkeys([Plan(), *by_class.values()]))
    measured = measure(setup, state.parameters, state.norms, plans, pool, task, state.round)
    return Evaluation(*measured[0], {name: measured[plans.index(plan)][0] for name, plan in by_class.items()}, by_class)
