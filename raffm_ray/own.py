"""Parameters of which sizes have copies of their own, such as switchable norms (Yu et al. 2019, section 3).

The flat parameters are the model's, which stay one plain checkpoint, and behind them one copy of the owned parameters for every device
class but the strongest, whose size uses the model's own. A subnetwork uses the copy of the largest class that is not larger than it, so
sizes that nobody trained have one too. Smaller prefixes that a client trains share the client's own copy.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from raffm_ray.architectures import Architecture
from raffm_ray.errors import UserError, look_up
from raffm_ray.messages import views


def norms(architecture: Architecture) -> tuple[str, ...]:
    """Gains and biases of the norms over the residual stream."""
    named = [f"{norm}.{part}" for norm in architecture.layout.norms for part in ("weight", "bias")]
    return tuple(name for name in architecture.shapes if name in named)


def classifier(architecture: Architecture) -> tuple[str, ...]:
    """What the task's head has and the pretrained model has not."""
    return architecture.classifier


OWNED: dict[str, Callable[[Architecture], tuple[str, ...]]] = {"classifier": classifier, "norms": norms}
"""A kind of `strategy.own` -> the parameters that it names."""


def owned_names(architecture: Architecture, kinds: Sequence[str]) -> tuple[str, ...]:
    """The owned parameters, in the model's order. Raises UserError for an unknown kind, or one that the model has nothing of."""
    found: set[str] = set()
    for kind in kinds:
        names = look_up(OWNED, kind, "strategy.own")(architecture)
        if not names:
            raise UserError(
                f"strategy.own: a {architecture.config.model_type} model has no {kind} that could be told from the rest"
            )
        found |= set(names)
    return tuple(name for name in architecture.shapes if name in found)


def copies_of(class_params: Mapping[str, int], plan_params: Sequence[int]) -> tuple[int, ...]:
    """Which copy subnetworks of these sizes use; 0 is the model's own. `class_params`: by class, weakest first."""
    sizes = list(class_params.values())
    result = []
    for params in plan_params:
        fitting = [position for position, size in enumerate(sizes) if size <= params] or [0]
        strongest = fitting[-1] == len(sizes) - 1
        result.append(0 if strongest else fitting[-1] + 1)
    return tuple(result)


def with_copies(flat: Tensor, architecture: Architecture, owned: Sequence[str], classes: int) -> Tensor:
    """The flat parameters with `classes` - 1 equal copies of the owned ones behind them."""
    named = views(flat, architecture.shapes)
    copy = [named[name].reshape(-1) for name in owned]
    return torch.cat([flat, *copy * (classes - 1)]) if copy and classes > 1 else flat


def saved_copies(flat: Tensor, architecture: Architecture, owned: Sequence[str], classes: Sequence[str]) -> dict[str, Tensor]:
    """The copies by "class/parameter", weakest class first; nothing where there are none."""
    size = sum(prod(architecture.shapes[name]) for name in owned)
    behind = len(flat) - sum(map(prod, architecture.shapes.values()))
    return {
        f"{classes[copy - 1]}/{name}": views(flat, architecture.shapes, owned, copy)[name].clone()
        for copy in range(1, 1 + (behind // size if size else 0))
        for name in owned
    }
