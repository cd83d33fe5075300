"""Checks and loads everything that a run needs. Every mistake is found before training starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError, look_up, near_miss
from raffm_ray.basics.seeding import generator
from raffm_ray.clients.augmentation import check_augmentation
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.reach.own_words import own_words
from raffm_ray.data.label_skew.label_distribution import LabelDistribution, label_distribution_of
from raffm_ray.data.partition import PARTITIONS, partition
from raffm_ray.data.tasks import Task, head_of, load_task, needs_words
from raffm_ray.devices.availability import AVAILABILITY
from raffm_ray.devices.profiles import Device, assign_devices, fleet_shares, known_profiles
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.foundation import Foundation, load_foundation
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.models.pretrained_weights import new_parameters
from raffm_ray.pool.gpu_sharing import worker_bytes
from raffm_ray.preparation.client_parts import ClientParts, client_parts
from raffm_ray.preparation.defaults import with_defaults
from raffm_ray.preparation.model_for_task import architecture_for, as_trained, class_weights, with_class_shares
from raffm_ray.preparation.pinning import pinned
from raffm_ray.server.adapter_rules.chosen import check_projections
from raffm_ray.server.blocks import not_stacked, stack_sizes
from raffm_ray.server.clock import LATE_POLICIES
from raffm_ray.server.device_type_plans import device_type_plans, training_view
from raffm_ray.server.kept.held_words import has_own_words
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS
from raffm_ray.server.ranking import begin_calibration, plain_state
from raffm_ray.server.residual_pace import with_ruled_pace
from raffm_ray.server.round_schedule import check_clock
from raffm_ray.server.state import ServerState, Setup, setup_strategy
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.plugins import pinned_settings, plugins_of
from raffm_ray.subnetworks.budgets import Budget, budget_from
from raffm_ray.subnetworks.calibration import rankable
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import AXIS_KINDS, kind_of
from raffm_ray.subnetworks.rotation import rotatable
from raffm_ray.subnetworks.salience import METRICS
from raffm_ray.subnetworks.size_specific import size_specific_names


@dataclass(frozen=True)
class Prepared:
    """A checked experiment with its data, model description and fleet. `shares`: by client, indices of the examples that it trains on;
    `label_distribution`: of all that clients own."""

    setup: Setup
    task: Task
    foundation: Foundation
    shares: tuple[NDArray[np.int64], ...]
    label_distribution: LabelDistribution
    parts: ClientParts

    def runner(self) -> ClientRunner:
        """What a worker needs."""
        setup, needed = self.setup, 0
        if setup.experiment.pool.gpus_per_worker == "auto":
            state = with_ruled_pace(setup, plain_state(setup.architecture))
            plans = [Plan(), *device_type_plans(setup, state).values()]
            stacks = list(zip(plans, stack_sizes(setup, plans) or [1] * len(plans), strict=True))
            strategy = setup.strategy
            needed = worker_bytes(setup.architecture, stacks, setup.experiment.local, strategy.prefix, bool(strategy.distill))
        return ClientRunner(
            architecture=setup.architecture,
            examples=self.task.clients,
            shares=self.shares,
            held_out=self.task.held_out,
            validation=self.task.validation,
            gpu_bytes=needed,
            deterministic=setup.experiment.pool.deterministic,
            writing=self.task.writing,
            plugins=tuple(plugins_of(setup.experiment.plugins)),
        )


def _classes(task: Task) -> NDArray[np.int64] | None:
    """[examples]: the clients' classes, None where the task has none."""
    labels = task.clients.labels
    return labels if isinstance(labels, np.ndarray) and labels.dtype.kind == "i" and labels.ndim == 1 else None


def _goes_by(experiment: Experiment, task: Task) -> NDArray[np.int64]:
    """What the partition goes by. Raises UserError where the data does not have it."""
    name, classes = str(experiment.clients.partition), _classes(task)
    by = PARTITIONS[name].by
    if by == "groups":
        if task.clients.groups is None:
            raise UserError("clients.partition: natural needs task.columns.group, the column whose values are the owners")
        return task.clients.groups
    if by == "classes" and classes is None:
        others = [other for other, row in PARTITIONS.items() if row.by != "classes"]
        told = f"use {', '.join(others[:-1])} or {others[-1]}"
        raise UserError(f"clients.partition: {name} goes by classes, and task {task.name!r} has none: {told}")
    return np.zeros(len(task.clients), dtype=np.int64) if classes is None else classes


def _devices(
    experiment: Experiment, task: Task, label_distribution: LabelDistribution, shares_of_fleet: dict[str, float]
) -> list[str]:
    """The device type of every client. Raises UserError where it is to hang together with classes that the task lacks."""
    fleet, values = experiment.fleet, label_distribution.sizes
    if fleet.correlation and fleet.correlated_with == "classes":
        if not label_distribution.class_names:
            raise UserError(f"fleet.correlated_with: task {task.name!r} has no classes: use examples")
        dominant = label_distribution.dominant()
        values = -np.where(
            dominant < 0, len(label_distribution.class_names), dominant
        )  # who has no examples comes last, as by their number
    rng = generator(experiment.seed, "devices")
    return assign_devices(shares_of_fleet, experiment.clients.count, rng, values, fleet.correlation)


def _budgets(
    experiment: Experiment, architecture: Architecture, names: list[str], devices: Mapping[str, Device]
) -> dict[str, Budget]:
    fleet, local = experiment.fleet, experiment.local
    for name in fleet.budgets:
        look_up(devices, name, "fleet.budgets: device type")
    for name in experiment.pool.placement:
        look_up(devices, name, "pool.placement: device type")
    full = costs_of(architecture, Plan(), local.batch_size, local.optimizer)
    budgets = {}
    for name in names:
        if name in fleet.budgets:
            try:
                budgets[name] = budget_from(fleet.budgets[name], full)
            except UserError as error:
                raise UserError(f"fleet.budgets.{name}: {error}") from None
        else:
            budgets[name] = Budget(memory_bytes=devices[name].memory_bytes * fleet.memory_fraction)
    return budgets


def _check_cutting(experiment: Experiment, architecture: Architecture) -> None:
    kinds = sorted({kind_of(name) for name in rankable(architecture.layout)})
    for key in ("steps", "floors", "reserves"):
        for kind, value in getattr(experiment.extraction, key).items():
            if kind not in AXIS_KINDS:
                raise UserError(f"extraction.{key}: {kind!r} is not a kind of axis of this model{near_miss(kind, kinds)}")
            if value < (1 if key == "steps" else 0) or (key != "steps" and value > 1):
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


def _check_validation(experiment: Experiment) -> None:
    for key in ("patience", "keep_best"):
        value = getattr(experiment.evaluation, key)
        if value and not experiment.task.validation:
            raise UserError(f"evaluation.{key}: {value} needs examples to validate on: set task.validation to how many")


def _check_names(experiment: Experiment) -> None:
    setup_strategy(experiment)
    look_up(METRICS, experiment.salience.metric, "salience.metric")
    look_up(LATE_POLICIES, experiment.clock.late, "clock.late")
    look_up(AVAILABILITY, experiment.clock.availability, "clock.availability")
    look_up(OBJECTIVES, experiment.task.objective or head_of(experiment.task.name), "task.objective")
    look_up(OPTIMIZERS, experiment.local.optimizer, "local.optimizer")
    look_up(SERVER_OPTIMIZERS, experiment.server.optimizer, "server.optimizer")
    _check_validation(experiment)
    if experiment.clients.partition:
        look_up(PARTITIONS, experiment.clients.partition, "clients.partition")


def check_values(experiment: Experiment, architecture: Architecture) -> None:
    """Raises UserError for names and numbers of settings that are wrong whatever the data and the rest of the experiment are.

    `architecture`: of the experiment's family, whose axes can be cut.
    """
    _check_names(experiment)
    head_of(experiment.task.name)
    _check_cutting(experiment, architecture)
    profiles = known_profiles(experiment.fleet.profiles)
    shares = fleet_shares(experiment.fleet.mix, experiment.fleet.shares, profiles)
    _budgets(experiment, architecture, list(shares), profiles.devices)


def prepare(experiment: Experiment) -> Prepared:
    """Loads the data, describes the model, builds the fleet, divides the data. Raises UserError for whatever cannot work."""
    experiment = experiment.model_copy(update={"plugins": pinned_settings(experiment.plugins)})
    _check_names(experiment)
    experiment = pinned(experiment)
    settings = experiment.task
    foundation = load_foundation(experiment.model, head_of(settings.name), needs_words(settings.name), settings.max_length)
    first_target = getattr(foundation.config, "decoder_start_token_id", None)
    task = load_task(
        settings=settings,
        rng=generator(settings.split_seed, "split"),
        words=foundation.words,
        pictures=foundation.pictures,
        first_target=first_target,
        own=experiment.plugin_settings,
    )
    return prepared_of(experiment, foundation, task)


def prepared_of(experiment: Experiment, foundation: Foundation, task: Task) -> Prepared:
    """`prepare` on data and a model's description that are there already. Raises UserError for whatever does not fit them."""
    strategy = setup_strategy(experiment)
    check_augmentation(experiment.local, task)
    architecture = as_trained(architecture_for(experiment, foundation, task), experiment, strategy.sketched)
    new = new_parameters(foundation.source, architecture)
    experiment = with_defaults(experiment, architecture, new, _classes(task) is not None)
    _check_cutting(experiment, architecture)
    _check_rotation(experiment, architecture)
    size_specific_names(architecture.layout, experiment.strategy.own)
    profiles = known_profiles(experiment.fleet.profiles)
    shares_of_fleet = fleet_shares(experiment.fleet.mix, experiment.fleet.shares, profiles)
    own = experiment.plugin_settings
    shares = partition(_goes_by(experiment, task), experiment.clients, generator(experiment.seed, "partition"), own)
    label_distribution = label_distribution_of(shares, _classes(task), task.class_names)
    device_types = _devices(experiment, task, label_distribution, shares_of_fleet)
    parts = client_parts(experiment, task, shares, device_types)
    if len(parts.all_held_out) and architecture.class_weights:
        may_train, count = parts.may_train(len(task.clients)), len(architecture.class_weights)
        weights = class_weights(experiment.task.class_weights, task, count, may_train)
        architecture = replace(architecture, class_weights=weights)
    architecture = with_class_shares(architecture, experiment, task, parts.trained)
    budgets = _budgets(experiment, architecture, list(shares_of_fleet), profiles.devices)
    awake = AVAILABILITY.chosen(experiment.clock.availability, own)
    availability = awake(experiment.clock, experiment.seed, experiment.clients.count)
    setup = Setup(
        experiment=experiment,
        architecture=architecture,
        strategy=strategy,
        budgets=budgets,
        device_types=device_types,
        examples=[len(share) for share in parts.trained],
        devices=profiles.devices,
        availability=availability,
        not_stacked=not_stacked(experiment, architecture),
        unseen=frozenset(np.flatnonzero(parts.unseen).tolist()),
        words=own_words(architecture, task.clients, parts.trained) if has_own_words(experiment, strategy) else None,
    )
    check_start(setup)
    return Prepared(
        setup=setup,
        task=task,
        foundation=foundation,
        shares=parts.trained,
        label_distribution=label_distribution,
        parts=parts,
    )


def check_start(setup: Setup) -> None:
    """Raises UserError unless every device type's budget holds a subnetwork in which something is trained, somebody trains, somebody can calibrate the first ranking, and
    somebody can be done before a round's deadline.

    A plain ranking stands in for the real one, and zeros for the parameters: the smallest subnetwork costs the same whatever comes first.
    """
    check_projections(setup.architecture, setup.strategy, setup.experiment, setup.personal)
    state = with_ruled_pace(setup, plain_state(setup.architecture))
    plans = device_type_plans(setup, state)
    for name, plan in plans.items():
        if not setup.costs(plan).bytes_up:
            raise UserError(f"model.freeze: nothing is left to train in the subnetwork of device type {name}")
    _check_training(setup, state)
    begin_calibration(setup, state)
    check_clock(setup, state)


def _check_training(setup: Setup, state: ServerState) -> None:
    """Raises UserError where no client with data would ever train. Whether a strategy that looks at clients lets some rest is not asked."""
    view, _ = training_view(setup, state, 1)
    owners = setup.owners_by_device_type
    if setup.strategy.per_client or any(setup.strategy.train(view, setup.budgets[name], -1) is not None for name in owners):
        return
    full = setup.costs(Plan())
    exceeded = "; ".join(f"{name}: {', '.join(setup.budgets[name].exceeded(full))}" for name in setup.budgets if name in owners)
    raise UserError(
        f"strategy.name {setup.experiment.strategy.name!r}: no client with data has a device that can train the full model ({exceeded})"
    )
