"""From an experiment to everything a run needs, every mistake found before any training starts."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from raffm_ray.architectures import Architecture, architecture_of, new_model
from raffm_ray.axes import Plan
from raffm_ray.calibration import rankable
from raffm_ray.client import Runner
from raffm_ray.costs import Budget, budget_from, costs_of
from raffm_ray.data import Task, check_labels, head_of, load_task, needs_words
from raffm_ray.devices import DEVICES, assign_devices, fleet_shares
from raffm_ray.errors import UserError, in_short, look_up, near_miss
from raffm_ray.examples import Examples
from raffm_ray.extraction import KINDS, kind_of
from raffm_ray.foundation import Foundation, load_foundation
from raffm_ray.partition import partition
from raffm_ray.ranking import begin_calibration, plain_scores
from raffm_ray.rotation import rotatable
from raffm_ray.salience import METRICS
from raffm_ray.seeding import generator
from raffm_ray.settings import Experiment, StrategySettings
from raffm_ray.state import ServerState, Setup, class_plans, setup_strategy
from raffm_ray.strategies import STRATEGIES


@dataclass(frozen=True)
class Prepared:
    """A checked experiment with its data, model description and fleet."""

    setup: Setup
    task: Task
    foundation: Foundation
    shares: tuple[NDArray[np.int64], ...]

    def runner(self) -> Runner:
        """What a worker needs."""
        return Runner(self.setup.architecture, self.task.clients, self.shares, self.task.held_out)


def _architecture(experiment: Experiment, foundation: Foundation, task: Task) -> Architecture:
    config = foundation.config
    if task.labels is not None and "num_labels" not in experiment.model.config:
        config.num_labels = task.labels
        if len(task.class_names) == task.labels:
            config.id2label = dict(enumerate(task.class_names))
            config.label2id = {name: number for number, name in enumerate(task.class_names)}
    check_labels(task, config.num_labels)
    if task.labels == 1 and config.num_labels != 1:
        raise UserError(f"model.config.num_labels: task {task.name!r} is about one number, got {config.num_labels}")
    try:
        architecture = architecture_of(config, task.head, **task.positions(experiment.local.batch_size))
    except UserError:
        raise
    except Exception as error:  # whatever transformers raises for values that it cannot build from
        raise UserError(f"model.config: transformers cannot build this model: {in_short(error)}") from None
    model = new_model(architecture, 0).eval()
    for part in (task.clients, task.public, task.held_out):
        inputs = {name: values for name, values in part.batch(_longest(part)).items() if name != "labels"}
        try:
            with torch.inference_mode():
                model(**inputs)
        except Exception as error:  # whatever the model raises for shapes that it does not take
            longest = part.lengths()
            told = "" if longest is None else f" (texts are up to {longest.max()} tokens long: task.max_length shortens them)"
            raise UserError(f"model.config does not fit the examples of task {task.name!r}: {in_short(error)}{told}") from None
    return architecture


def _longest(examples: Examples) -> NDArray[np.int64]:
    """[1]: the example with the longest text, the first where none is longer."""
    lengths = examples.lengths()
    return np.array([0 if lengths is None else int(np.argmax(lengths))])


def _owners(experiment: Experiment, task: Task) -> NDArray[np.int64]:
    """What the partition goes by. Raises UserError where the data does not have it."""
    kind, examples = experiment.clients.partition, task.clients
    if kind == "natural":
        if examples.groups is None:
            raise UserError("clients.partition: natural needs task.columns.group, the column whose values are the owners")
        return examples.groups
    if kind != "iid" and (
        not isinstance(examples.labels, np.ndarray) or examples.labels.dtype.kind != "i" or examples.labels.ndim != 1
    ):
        raise UserError(f"clients.partition: {kind} goes by classes, and task {task.name!r} has none: use iid or natural")
    return examples.labels if isinstance(examples.labels, np.ndarray) else np.zeros(len(examples), dtype=np.int64)


def _budgets(experiment: Experiment, architecture: Architecture, names: list[str]) -> dict[str, Budget]:
    fleet, local = experiment.fleet, experiment.local
    for name in fleet.budgets:
        look_up(DEVICES, name, "fleet.budgets: device class")
    full = costs_of(architecture, Plan(), local.batch_size, local.optimizer)
    budgets = {}
    for name in names:
        if name in fleet.budgets:
            try:
                budgets[name] = budget_from(fleet.budgets[name], full)
            except UserError as error:
                raise UserError(f"fleet.budgets.{name}: {error}") from None
        else:
            budgets[name] = Budget(memory_bytes=DEVICES[name].memory_bytes * fleet.memory_fraction)
    return budgets


def _check_cutting(experiment: Experiment, architecture: Architecture) -> None:
    kinds = sorted({kind_of(name) for name in rankable(architecture.layout)})
    for key in ("steps", "floors"):
        for kind, value in getattr(experiment.extraction, key).items():
            if kind not in KINDS:
                raise UserError(f"extraction.{key}: {kind!r} is not a kind of axis of this model{near_miss(kind, kinds)}")
            if value < (1 if key == "steps" else 0) or (key == "floors" and value > 1):
                raise UserError(
                    f"extraction.{key}.{kind}: must be {'at least 1' if key == 'steps' else 'between 0 and 1'}, got {value}"
                )
    if not set(kinds) & set(experiment.extraction.steps):
        raise UserError(
            f"extraction.steps: nothing of this model can be cut by {', '.join(experiment.extraction.steps)}; it has {', '.join(kinds)}"
        )


def _check_rotation(experiment: Experiment, architecture: Architecture) -> None:
    reasons = rotatable(architecture.layout)
    if experiment.salience.rotation != "none" and all(reasons.values()):
        told = "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items())
        raise UserError(f"salience.rotation: nothing of this model can be rotated: {told}")


def prepare(experiment: Experiment) -> Prepared:
    """Loads the data, describes the model, builds the fleet, divides the data. Raises UserError for whatever cannot work."""
    strategy = setup_strategy(experiment)
    look_up(METRICS, experiment.salience.metric, "salience.metric")
    settings, clients = experiment.task, experiment.clients
    foundation = load_foundation(experiment.model, head_of(settings.name), needs_words(settings.name), settings.max_length)
    first_target = getattr(foundation.config, "decoder_start_token_id", None)
    task = load_task(settings, generator(settings.split_seed, "split"), foundation.words, foundation.pictures, first_target)
    architecture = _architecture(experiment, foundation, task)
    _check_cutting(experiment, architecture)
    _check_rotation(experiment, architecture)
    shares_of_fleet = fleet_shares(experiment.fleet.mix, experiment.fleet.shares)
    classes = assign_devices(shares_of_fleet, clients.count, generator(experiment.seed, "devices"))
    shares = partition(
        clients.partition, _owners(experiment, task), clients.count, clients.alpha, generator(experiment.seed, "partition")
    )
    budgets = _budgets(experiment, architecture, list(shares_of_fleet))
    setup = Setup(experiment, architecture, strategy, budgets, classes, [len(share) for share in shares])
    check_start(setup)
    return Prepared(setup, task, foundation, tuple(shares))


def check_start(setup: Setup) -> None:
    """Raises UserError unless every class's budget holds a subnetwork and somebody can calibrate the first ranking.

    A plain ranking stands in for the real one: the smallest subnetwork costs the same whatever comes first.
    """
    state = ServerState(0, torch.zeros(0), plain_scores(setup.architecture))
    class_plans(setup, state)
    begin_calibration(setup, state)


def check_baselines(experiment: Experiment) -> None:
    """Raises UserError unless every baseline is a strategy, another one than the experiment's own, and named once."""
    for position, name in enumerate(experiment.baselines):
        if name not in STRATEGIES or name == experiment.strategy.name or name in experiment.baselines[:position]:
            other = f"another strategy than {experiment.strategy.name!r}, named once"
            raise UserError(f"baselines: {name!r} must be {other} (known: {', '.join(STRATEGIES)})")


def alone(experiment: Experiment, name: str) -> Experiment:
    """The experiment under one strategy without baselines: its own as it is set, another with that strategy's own defaults."""
    settings = experiment.strategy if name == experiment.strategy.name else StrategySettings(name=name)
    return experiment.model_copy(update={"strategy": settings, "baselines": ()})


def with_strategy(prepared: Prepared, name: str) -> Prepared:
    """The same data, fleet and seed under `alone`'s experiment. Raises UserError as `prepare`."""
    changed = alone(prepared.setup.experiment, name)
    setup = replace(prepared.setup, experiment=changed, strategy=setup_strategy(changed))
    check_start(setup)
    return replace(prepared, setup=setup)
