"""The model that an experiment asks for, with the head that its data needs, tried on its longest examples."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.basics.errors import UserError, in_short, near_miss
from raffm_ray.data.examples import Examples
from raffm_ray.data.label_skew.label_distribution import label_distribution_of
from raffm_ray.data.tasks import Task, check_labels
from raffm_ray.models.adapters.peft_files import adapter_settings
from raffm_ray.models.architecture import Architecture, adapted, architecture_of, new_model, with_sketches
from raffm_ray.models.attention_choice import with_attention
from raffm_ray.models.foundation import Foundation
from raffm_ray.models.freezing import freeze
from raffm_ray.models.objectives import Objective, objective_of
from raffm_ray.pool.worker_pool import device_of
from raffm_ray.settings.experiment import Experiment


def as_trained(architecture: Architecture, experiment: Experiment, sketched: bool) -> Architecture:
    """The architecture as an experiment's clients train it, and as its costs are counted: by `local`, and whether its adapters are `sketched`."""
    local = experiment.local
    architecture = with_attention(architecture, local.attention, local.precision, device_of(experiment.pool))
    if architecture.recomputes != local.gradient_checkpointing:
        architecture = replace(architecture, recomputes=local.gradient_checkpointing)
    return with_sketches(architecture, sketched)


def architecture_for(experiment: Experiment, foundation: Foundation, task: Task) -> Architecture:
    """Raises UserError for a model that cannot be built, that this machine has no memory for, or that does not take the data."""
    config = foundation.config
    if task.labels is not None and "num_labels" not in experiment.model.config:
        config.num_labels = task.labels
        if len(task.class_names) == task.labels:
            config.id2label = dict(enumerate(task.class_names))
            config.label2id = {name: number for number, name in enumerate(task.class_names)}
    check_labels(task, config.num_labels)
    if task.labels == 1 and config.num_labels != 1:
        raise UserError(f"model.config.num_labels: task {task.name!r} is about one number, got {config.num_labels}")
    by_length, count = experiment.local.batches == "by_length", experiment.clients.count
    if by_length and task.clients.lengths() is None:
        raise UserError(f"local.batches: by_length: the examples of task {task.name!r} are no texts, which differ in length")
    try:
        share = max(1, len(task.clients) // count) if by_length else None
        architecture = architecture_of(config, task.head, **task.positions(experiment.local.batch_size, share))
    except UserError:
        raise
    except Exception as error:  # whatever transformers raises for values that it cannot build from
        raise UserError(f"model.config: transformers cannot build this model: {in_short(error)}") from None
    if experiment.model.adapters is not None:
        architecture = adapted(architecture, adapter_settings(experiment.model.adapters))
    architecture = replace(
        architecture,
        layout=freeze(architecture.layout, experiment.model.freeze),
        class_weights=class_weights(experiment.task.class_weights, task, config.num_labels),
        objective=experiment.task.objective or "",
        own=experiment.plugin_settings,
        frozen_dtype=getattr(torch, experiment.model.frozen_precision),
    )
    needed = 4 * sum(prod(shape) for shape in architecture.shapes.values())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(f"model.config: the parameters of this model take {needed:,} bytes, and this machine has {there:,}")
    try:
        model = new_model(architecture, 0).eval()
    except Exception as error:  # whatever torch raises for values that it cannot draw from, or without memory
        raise UserError(f"model.config: this model cannot be built: {in_short(error)}") from None
    for part in task.parts.values():
        inputs = {name: values for name, values in part.batch(_longest(part)).items() if name != "labels"}
        try:
            with torch.inference_mode():
                output = model(**inputs)
        except Exception as error:  # whatever the model raises for shapes that it does not take
            longest = part.lengths()
            told = "" if longest is None else f" (texts are up to {longest.max()} tokens long: task.max_length shortens them)"
            raise UserError(f"model.config does not fit the examples of task {task.name!r}: {in_short(error)}{told}") from None
        if architecture.objective:
            _try_objective(objective_of(architecture), architecture.objective, output, part.batch(_longest(part))["labels"])
    return architecture


def _try_objective(objective: Objective, name: str, output: Any, labels: Tensor) -> None:
    """Raises UserError for an objective that is not for what this model answers."""
    try:
        shapes = objective.each(output, labels).shape, objective.answers(output, labels).shape[:1]
        loss, targets = objective.loss(output, labels, "mean").dim(), objective.targets(labels)
    except Exception as error:  # whatever it raises for what it was not written for
        raise UserError(f"task.objective: {name!r} does not take what this model answers: {in_short(error)}") from None
    if shapes != ((1, 2), (1,)) or loss or not isinstance(targets, int):
        raise UserError(
            f"task.objective: {name!r}: expected [examples] losses or [examples, 2], [examples, k] answers, a loss of one number and a "
            f"whole number of targets, got {list(shapes[0])}, {list(shapes[1])}, {loss} dimensions and {targets}"
        )


def with_class_shares(
    architecture: Architecture, experiment: Experiment, task: Task, trained: Sequence[NDArray[np.int64]]
) -> Architecture:
    """The architecture with the shares of the classes in what all clients train on together, where their own are compared with them. `trained`: by client,
    indices of its examples."""
    labels = task.clients.labels
    if experiment.local.label_skew in (None, "ignore") or not isinstance(labels, np.ndarray):
        return architecture
    mix = label_distribution_of(trained, labels, task.class_names).mix()
    shares = [*mix.tolist(), *[0.0] * (architecture.config.num_labels - len(mix))]
    return replace(architecture, class_shares=tuple(shares))


def class_weights(
    asked: str | Mapping[str, float], task: Task, count: int, may_train: NDArray[np.bool_] | None = None
) -> tuple[float, ...]:
    """[count]: what an example of each class counts in the loss; empty where all count the same.

    `balanced`: n / (k x n_c) with n_c examples of a class, n of all, and k classes that occur, in the clients' part (King and Zeng 2001,
    section 4.2; scikit-learn's `balanced`); 1 for a class that does not occur. `may_train`: [examples], which of the part count, all where
    it is None. Raises UserError for data without classes, and for an unknown class.
    """
    labels = task.clients.labels
    if asked == "none":
        return ()
    if not isinstance(labels, np.ndarray) or labels.dtype.kind != "i" or labels.ndim != 1:
        raise UserError(f"task.class_weights: {asked!r} is for classes, and task {task.name!r} has none")
    if isinstance(asked, str):
        labels = labels if may_train is None else labels[may_train]
        counts = np.bincount(labels, minlength=count)
        return tuple(np.where(counts > 0, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 1.0).tolist())
    names = list(task.class_names) or [str(number) for number in range(count)]
    for name in asked:
        if name not in names:
            raise UserError(f"task.class_weights: the data has no class {name!r}{near_miss(name, names, listed=True)}")
    return tuple(float(asked.get(name, 1.0)) for name in names) + (1.0,) * (count - len(names))


def _longest(examples: Examples) -> NDArray[np.int64]:
    """[1]: the example with the longest text, the first where none is longer."""
    lengths = examples.lengths()
    return np.array([0 if lengths is None else int(np.argmax(lengths))])
