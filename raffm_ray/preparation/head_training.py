"""Trains a new head of a pretrained model alone. What the rest of the model makes of the examples is computed once, and all passes read it."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import ceil, cos, inf, pi, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import Layout, is_kept, module_of
from raffm_ray.clients.local_training import backward, decayed_groups
from raffm_ray.data.examples import Examples, Ragged, batches, steps_of
from raffm_ray.models.architecture import Architecture, build
from raffm_ray.models.objectives import objective_of, training_objective
from raffm_ray.settings.task_and_model import PretrainSettings
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS

FOLDS, MOST_PASSES, PATIENCE = 5, 100, 5
"""Of the search for the number of passes: parts that the examples are divided into, the most passes, and after how many that brought no
lower loss it ends."""
COMPUTED_AT_ONCE = 32
FEATURE_BYTES = 1 << 30
"""What the head's inputs may take: where all examples have more, the first ones are used."""
Inputs = dict[str, Tensor]
"""By the name of a module, what it reads: [examples, ...]."""
Order = NDArray[np.int64]


def readers(layout: Layout) -> list[str]:
    """The matrices after the last layer that read the residual stream, of which the task head is made, by name."""
    return [name for name in _after_layers(layout) if layout.parameters[name].dims[layout.parameters[name].reads]]


def _positions_read(layout: Layout) -> bool:
    """Whether a head reads more than one state of an example."""
    return any(layout.parameters[name].matmul != "examples" for name in readers(layout))


def _after_layers(layout: Layout) -> list[str]:
    """Matrices whose output no axis cuts, in the model's order, but for a table of words that is the output layer too."""
    return [
        name
        for name, spec in layout.parameters.items()
        if spec.matmul and len(spec.dims) == 2 and not spec.dims[1 - spec.reads] and not (spec.module or spec.adapts)
    ]


def head_parameters(layout: Layout, new: Set[str]) -> frozenset[str]:
    """What is trained with a new head before the rest: its own parameters, and those of the matrices between the last layer and it, such as a
    pooler, which a checkpoint has but that were trained for something else or for nothing. Frozen ones are left out.

    `new`: names of the parameters that are freshly drawn; none are trained where there are none.
    """
    trained = {name for name, spec in layout.parameters.items() if not spec.frozen}
    if not new & trained:
        return frozenset()
    modules = {module_of(name) for name in _after_layers(layout)}
    return frozenset(trained & (new | {name for name in layout.parameters if module_of(name) in modules}))


def feature_bytes(architecture: Architecture) -> int:
    """Of what a head reads of one example, of as many positions as the architecture has."""
    specs = architecture.layout.parameters
    kinds = [
        (architecture.positions[specs[name].matmul or ""], architecture.shapes[name]) for name in readers(architecture.layout)
    ]
    return sum(4 * positions * prod(shape) // shape[0] for positions, shape in kinds)


def head_examples(architecture: Architecture, examples: int) -> int:
    """How many of the public examples a head is trained on alone: all whose inputs FEATURE_BYTES hold, at least 1."""
    return max(1, min(examples, FEATURE_BYTES // max(1, feature_bytes(architecture))))


@dataclass(frozen=True)
class HeadWork:
    """`names`: what is trained; `examples`: on what; `settings`: with an `auto` or a number of `head_epochs`."""

    architecture: Architecture
    names: frozenset[str]
    examples: Examples
    settings: PretrainSettings

    def steps(self) -> int:
        """Steps that progress is told of: batches whose inputs are computed, and as many for all passes, which take less."""
        return 2 * ceil(len(self.examples) / COMPUTED_AT_ONCE)


def train_head(model: nn.Module, work: HeadWork, rng: np.random.Generator, progress: Callable[[int, float], None]) -> int:
    """Trains the named parameters of a full model in place, without dropout; returns in how many passes over the examples. Same generator, same bits.

    With `head_epochs: auto` the learning rate stays as it is, and there are as many passes as give the lowest loss in FOLDS-fold
    cross-validation: the mean over all examples of the loss of a head that was trained on the other folds, after every pass (Stone
    1974, Cross-validatory choice and assessment of statistical predictions). With a number it falls to 0 as a cosine.
    """
    settings, examples = work.settings, work.examples
    own, computed, count = dict(model.named_parameters()), work.steps() // 2, len(examples)
    inputs = _inputs(model, work, rng, lambda done: progress(done, inf))

    def passed(part: float, loss: float) -> None:
        progress(computed + int(part * computed), loss)

    passes, auto = settings.head_epochs, settings.head_epochs == "auto"
    if passes == "auto":
        passes = _searched(own, work, inputs, rng, passed)
    assert isinstance(passes, int)
    head = _Head(own, work, inputs)
    everything, each = np.arange(count), steps_of(count, settings.batch_size, 1, None)
    falling = (1.0 if auto else 0.5 * (1 + cos(pi * step / (passes * each))) for step in range(passes * each))
    for number in range(1, passes + 1):
        loss = head.trained(everything, [settings.head_learning_rate * part for part in islice(falling, each)], rng)
        if number == passes or not auto:
            passed(number / passes, loss)
    return passes


def _searched(
    own: Mapping[str, Tensor], work: HeadWork, inputs: Inputs, rng: np.random.Generator, progress: Callable[[float, float], None]
) -> int:
    count, settings = len(work.examples), work.settings
    folds = min(FOLDS, count)
    if folds < 2:
        return 1
    fold = rng.permutation(count) % folds
    heads = [_Head({**own, **{name: own[name].detach().clone() for name in work.names}}, work, inputs) for _ in range(folds)]
    lowest, best = inf, 1
    for number in range(1, MOST_PASSES + 1):
        total = 0.0
        for this, head in enumerate(heads):
            others = np.flatnonzero(fold != this)
            steps = steps_of(len(others), settings.batch_size, 1, None)
            head.trained(others, [settings.head_learning_rate] * steps, rng)
            apart = np.flatnonzero(fold == this)
            total += head.loss(apart) * len(apart)
        progress(number / (MOST_PASSES + 1), total / count)
        if total < lowest:
            lowest, best = total, number
        elif number - best >= PATIENCE:
            break
    return best


def _inputs(model: nn.Module, work: HeadWork, rng: np.random.Generator, told: Callable[[int], None]) -> Inputs:
    """What the modules of `readers` read of every example, without dropout. Texts are padded alike where their positions are read."""
    layout, examples = work.architecture.layout, work.examples
    found: dict[str, list[Tensor]] = {name: [] for name in readers(layout)}
    positions = _positions_read(layout)
    lengths = examples.labels.lengths if isinstance(examples.labels, Ragged) else examples.lengths()
    order = np.arange(len(examples)) if lengths is None else np.argsort(lengths, kind="stable")
    batched = [np.arange(start, min(start + COMPUTED_AT_ONCE, len(order))) for start in range(0, len(order), COMPUTED_AT_ONCE)]
    parts = [
        batched[number] for number in rng.permutation(len(batched))
    ]  # by length, but not in its order: the first ones tell how long it takes
    handles = [
        model.get_submodule(module_of(name)).register_forward_pre_hook(lambda _, read, kept=kept: kept.append(read[0]))
        for name, kept in found.items()
    ]
    model.eval()
    try:
        with torch.no_grad():
            for number, part in enumerate(parts):
                rows = order[part]
                batch = examples.batch(np.append(rows, order[-1]) if positions else rows)  # the longest comes last
                model(**{name: values for name, values in batch.items() if name != "labels"})
                for kept in found.values():
                    kept[-1] = kept[-1][: len(rows)].clone()
                told(number + 1)
    finally:
        for handle in handles:
            handle.remove()
    back = torch.from_numpy(np.argsort(order[np.concatenate(parts)], kind="stable"))
    return {name: torch.cat(kept)[back] for name, kept in found.items()}


class _Head:
    """A model with one layer, whose head reads what was computed before. It shares the given parameters."""

    def __init__(self, own: Mapping[str, Tensor], work: HeadWork, inputs: Inputs) -> None:
        architecture, specs, self.examples = work.architecture, work.architecture.layout.parameters, work.examples
        least = Plan({axis: np.arange(1) for axis in architecture.layout.layer_axes})
        kept = {name: values for name, values in own.items() if is_kept(specs[name].layer, least)}
        self.module, self.inputs, self.rows = build(architecture, kept, least, "sdpa").eval(), inputs, torch.arange(0)
        for name, values in self.module.named_parameters():
            values.requires_grad_(name in work.names)
        self.parameters = [values for values in self.module.parameters() if values.requires_grad]
        groups = decayed_groups(self.parameters, work.settings.weight_decay)
        self.optimizer = OPTIMIZERS["adamw"](groups, work.settings.head_learning_rate)
        self.size, self.objective, self.measured = (
            work.settings.batch_size,
            training_objective(architecture),
            objective_of(architecture),
        )
        for name in inputs:
            self.module.get_submodule(module_of(name)).register_forward_pre_hook(partial(self._instead, name))
        lengths = work.examples.lengths()
        shortest = np.array([0 if lengths is None else int(np.argmin(lengths))])
        self.stand_in = None if _positions_read(architecture.layout) else work.examples.batch(shortest)
        self.labels = Examples({}, work.examples.labels)

    def _instead(self, name: str, _: nn.Module, read: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = self.inputs[name][self.rows]
        return (values if self.stand_in else values[tuple(slice(size) for size in read[0].shape)],)

    def _batch(self, rows: Order) -> dict[str, Tensor]:
        """Where a head reads one state of an example, what the model is given does not matter: the rest of it computes one example's."""
        self.rows = torch.from_numpy(rows)
        return {**self.stand_in, **self.labels.batch(rows)} if self.stand_in else self.examples.batch(rows)

    def trained(self, examples: Order, rates: Sequence[float], rng: np.random.Generator) -> float:
        """Trains a step for each rate; returns the last one's loss."""
        loss = torch.tensor(inf)
        for rate, rows in zip(rates, batches(examples, self.size, len(rates), rng), strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            loss, _ = backward(self.module, self._batch(rows), self.objective)
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
        return float(loss)

    def loss(self, examples: Order) -> float:
        """Mean over examples."""
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(examples), COMPUTED_AT_ONCE):
                rows = examples[start : start + COMPUTED_AT_ONCE]
                batch = self._batch(rows)
                output = self.module(**{name: values for name, values in batch.items() if name != "labels"})
                total += float(self.measured.loss(output, batch["labels"], "mean")) * len(rows)
        return total / len(examples)
