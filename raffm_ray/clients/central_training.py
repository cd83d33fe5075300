"""Training of one module on examples that the server has: before the first round, and of a deployed size. No prefixes, no clients."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.clients.local_training import Distillation, backward
from raffm_ray.data.examples import Examples
from raffm_ray.models.objectives import Objective

Teacher = Callable[[dict[str, Tensor]], Any]
"""Inputs of a batch -> what the module is to answer."""


@dataclass(frozen=True)
class CentralTraining:
    """How a module is trained: `optimizer` makes one for its parameters that take a gradient, `rate` is the learning rate of a step, `clip`
    the largest L2 norm of the gradient, None for any. With a `teacher` it learns that one's answers instead of the labels."""

    objective: Objective
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    rate: Callable[[int], float]
    clip: float | None
    precision: str = "float32"
    teacher: Teacher | None = None
    temperature: float = 1.0


def train_centrally(
    module: nn.Module,
    training: CentralTraining,
    examples: Examples,
    order: Iterable[NDArray[Any]],
    progress: Callable[[int, float], None] = lambda *_: None,
) -> None:
    """Trains a module in place, a step for each batch of indices in `order`; frozen parameters, which take no gradient, stay as they are.
    `progress` is told of every step: how many are done, and its loss."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer, teacher = training.optimizer(parameters), training.teacher
    for step, indices in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step)
        optimizer.zero_grad(set_to_none=True)
        batch = examples.batch(indices)
        answer = teacher({name: values for name, values in batch.items() if name != "labels"}) if teacher else None
        loss, _ = backward(
            module=module,
            batch=batch,
            objective=training.objective,
            precision=training.precision,
            distillation=Distillation(answer, 1.0, training.temperature) if teacher else None,
        )
        if training.clip is not None:
            nn.utils.clip_grad_norm_(parameters, training.clip)
        optimizer.step()
        progress(step + 1, float(loss))
