"""Measuring subnetworks on the held-out part, spread over a pool."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raffm_ray.axes import Plan
from raffm_ray.data import Task
from raffm_ray.ledger import Evaluation
from raffm_ray.messages import Call, Package
from raffm_ray.pool import Pool
from raffm_ray.state import ServerState, Setup, class_plans, copies
from raffm_ray.stopping import watched


def measure(
    setup: Setup, state: ServerState, plans: Sequence[Plan], pool: Pool, task: Task, validating: bool = False
) -> list[tuple[float, float]]:
    """(metric, mean loss of a target) of every plan's subnetwork of the state's parameters, on the held-out or validation part."""
    experiment = setup.experiment
    examples, score = (task.validation, task.validation_score) if validating else (task.held_out, task.score)
    assert examples is not None
    assert score is not None
    size, count_examples = experiment.evaluation.batch_size, len(examples)
    slices = [(start, min(start + size, count_examples)) for start in range(0, count_examples, size)]
    package = Package(
        experiment.seed, state.round, tuple(plans), experiment.local, 0.0, norms=state.norms, owned=setup.owned,
        copies=copies(setup, state, plans),
    )  # fmt: skip
    asked = [(number, *part) for number in range(len(plans)) for part in slices]
    calls: list[Call] = [("evaluate", package, (*arguments, validating)) for arguments in asked]
    costs = [float(setup.costs(plans[number]).forward_flops * (stop - start)) for number, start, stop in asked]
    answers: list[list[NDArray[np.float64]]] = [[] for _ in plans]
    loss, targets = [0.0] * len(plans), [0] * len(plans)
    results = pool.run(state.parameters.numpy(), calls, costs, lambda *_: None)
    for (number, *_), ((given, summed, count), _) in zip(asked, results, strict=True):
        answers[number].append(given)
        loss[number] += summed
        targets[number] += count
    with pool.profile.during("evaluate"):
        return [
            (score(np.concatenate(given)), total / max(count, 1))
            for given, total, count in zip(answers, loss, targets, strict=True)
        ]


def evaluate(setup: Setup, state: ServerState, pool: Pool, task: Task) -> Evaluation:
    """The full model and every class's subnetwork."""
    with pool.profile.during("plan"):
        by_class = class_plans(setup, state)
    plans = list(dict.fromkeys([Plan(), *by_class.values()]))

    def metrics(validating: bool) -> tuple[tuple[float, float], dict[str, float]]:
        measured = measure(setup, state, plans, pool, task, validating)
        return measured[0], {name: measured[plans.index(plan)][0] for name, plan in by_class.items()}

    full, classes = metrics(False)
    validation = None
    if task.validation is not None:
        (value, _), values = metrics(True)
        validation = watched(setup.experiment.evaluation.watch, task.metric, value, list(values.values()))
    return Evaluation(*full, classes, by_class, validation)
