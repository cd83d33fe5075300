"""Local training of one module, with smaller prefixes of its own plan. No plans, no messages, no Ray."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.axes.indexing import Selection, scatter_add_selected, take_selected
from raffm_ray.data.examples import Examples, batches, batches_of_like_length, sent, steps_of
from raffm_ray.data.label_skew.class_batches import balanced_batches, draw_by_class, kept_classes
from raffm_ray.models.objectives import Objective, adjusted, logit_offsets
from raffm_ray.settings.experiment import LocalSettings
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS, ParameterGroups


def decayed_groups(parameters: Sequence[Tensor], weight_decay: float, stacked: bool = False) -> ParameterGroups:
    """The groups of an optimizer: matrices with this weight decay, biases and gains of norms, which have one dimension, without.

    `stacked`: whether a first dimension counts clients. It is what fine-tuning usually does (Loshchilov and Hutter 2019 decay everything).
    """
    if not weight_decay:
        return [{"params": list(parameters), "weight_decay": 0.0}]
    small = 1 + stacked
    parts = {
        weight_decay: [values for values in parameters if values.dim() > small],
        0.0: [values for values in parameters if values.dim() <= small],
    }
    return [{"params": values, "weight_decay": decay} for decay, values in parts.items() if values]


def computing(precision: str, device: str) -> AbstractContextManager[Any]:
    """Where a forward pass and its loss are computed with products in this precision, a `local.precision`.

    bfloat16 is PyTorch's autocast: what it deems safe runs in bfloat16, the rest, losses too, in float32; parameters stay as they are.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, precision))


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs with one torch thread: how a sum is split over threads changes its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class Prefix:
    """A smaller plan that is trained inside a client's own: where its module's parameters lie in the client's.

    `parameters`: of its module, by name, without values but between `read` and `return_gradients`, so that only the prefix at work
    takes memory. `shared`: (the client's parameter, the prefix's, what the prefix takes of it). `norms`: (the prefix's gain, its bias,
    scale, shift) of norms that are corrected because the prefix narrows the residual stream further (see norm_correction.py); the bias
    is None where a norm has none.
    """

    parameters: dict[str, Tensor]
    shared: Sequence[tuple[Tensor, Tensor, Selection]]
    norms: Sequence[tuple[Tensor, Tensor | None, float, float]] = ()

    def read(self) -> None:
        """Takes the current values of the client's parameters: whole ones as they are, which nobody may write to, of others a copy."""
        for mine, theirs, selected in self.shared:
            theirs.data = take_selected(mine.detach(), selected)
        for gain, bias, scale, shift in self.norms:
            if bias is not None:
                bias.data = bias.data.add(gain.data, alpha=shift)
            gain.data = gain.data.mul(scale)

    def free(self) -> None:
        """Lets go of values and gradients."""
        for values in self.parameters.values():
            values.data, values.grad = values.data.new_empty(0), None

    def return_gradients(self) -> None:
        """Adds the prefix's gradients to the client's, and frees it: what was read by `take` returns by `scatter_add`."""
        for gain, bias, scale, shift in self.norms:
            if gain.grad is not None:
                gain.grad.mul_(scale)
                if bias is not None and bias.grad is not None:
                    gain.grad.add_(bias.grad, alpha=shift)
        for mine, theirs, selected in self.shared:
            if mine.requires_grad and theirs.grad is not None:
                if mine.grad is None:
                    mine.grad = torch.zeros_like(mine)
                scatter_add_selected(mine.grad, theirs.grad, selected)
            theirs.grad = None
        self.free()


class Distillation(NamedTuple):
    """What a module learns from besides the labels: another module's output for the same batch, its part of the loss, the temperature."""

    teacher: Any
    weight: float
    temperature: float = 1.0


def backward(
    module: nn.Module,
    batch: Mapping[str, Tensor],
    objective: Objective,
    precision: str = "float32",
    distillation: Distillation | None = None,
) -> tuple[Tensor, Any]:
    """Adds the gradient of the mean loss of a batch to a module's parameters; returns the loss, a number that is not waited for, and
    the module's output.

    With `distillation` the loss is (1 - weight) x the labels' + weight x the teacher's: in-place distillation (Yu and Huang 2019), at a
    temperature (Hinton et al. 2015, section 2).
    """
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    with computing(precision, str(batch["labels"].device)):
        output = module(**inputs)
        loss = objective.loss(output, batch["labels"], "mean")
        if distillation is not None:
            teacher, weight, temperature = distillation
            loss = (1 - weight) * loss + weight * objective.distillation(output, teacher, batch["labels"], temperature)
    loss.backward()
    return loss.detach(), output


def pull_back(parameters: Sequence[nn.Parameter], given: Iterable[Tensor], proximal: float) -> None:
    """Adds the gradient of proximal/2 ||w - given||^2 to the parameters', FedProx's term (Li et al. 2020, equation 2).

    It takes three operations a parameter and step, against thousands of a step's examples: no device is charged for it.
    """
    for parameter, before in zip(parameters, given, strict=True):
        away = parameter.detach() - before
        parameter.grad = away.mul_(proximal) if parameter.grad is None else parameter.grad.add_(away, alpha=proximal)


def fill_gradients(parameters: Iterable[Tensor], used: list[Tensor]) -> None:
    """Gives a zero gradient to whatever had one in the first step and has none now: it is in no prefix of this step.

    An optimizer would stop the momentum of a parameter without gradient, but not that of the entries of another beside a prefix's.
    """
    if not used:
        used += [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def choose(prefix: str, prefixes: int, step: int, rng: np.random.Generator) -> tuple[bool, int | None]:
    """Whether a step trains the own plan, and which of `prefixes` smaller plans (smallest first) besides.

    "smallest": the own plan and the smallest prefix (sandwich rule: Yu and Huang 2019); "random": the own plan and one at random;
    "one": either, at random, no extra compute (ordered dropout: Horvath et al. 2021), but the first step trains the own plan, since
    its entries are averaged as trained.
    """
    if not prefixes or prefix == "none" or (prefix == "one" and step == 0):
        return True, None
    if prefix == "smallest":
        return True, 0
    drawn = int(rng.integers(prefixes + (prefix == "one")))
    return (True, None) if drawn == prefixes else (prefix == "random", drawn)


@dataclass(frozen=True)
class Training:
    """What is the same for all clients of one plan: the loss, the settings, and how smaller prefixes of the plan are trained beside it.

    `prefix` and `prefixes` are `choose`'s arguments; `distill`: how much of a prefix's loss is the soft outputs of the own plan; `own`:
    settings of plug-ins; `personal`: names of parameters that stay with the client; `class_shares`: of all clients' examples, where something is done about a
    client that has others, as `local.label_skew` says.
    """

    objective: Objective
    local: LocalSettings
    learning_rate: float
    prefix: str = "none"
    prefixes: int = 0
    distill: float = 0.0
    temperature: float = 1.0
    own: Mapping[str, Any] = field(default_factory=dict)
    personal: frozenset[str] = frozenset()
    class_shares: tuple[float, ...] = ()

    def against_skew(self, class_shares: tuple[float, ...]) -> "Training":
        """With the shares of the classes in all clients' examples, where `local.label_skew` makes use of them."""
        return self if self.local.label_skew in (None, "ignore") else replace(self, class_shares=class_shares)

    def adjusted(self, offsets: Tensor | None) -> "Training":
        """With these `logit_offsets` in the loss, [classes] or [examples, classes]; None for none."""
        return self if offsets is None else replace(self, objective=adjusted(self.objective, offsets))

    def steps(self, examples: int) -> int:
        """Of a client with so many examples."""
        return steps_of(examples, self.local.batch_size, self.local.epochs, self.local.steps)

    def optimizer(self, parameters: Sequence[Tensor], stacked: bool = False) -> torch.optim.Optimizer:
        """A new optimizer of these parameters, whose first dimension counts clients if they are `stacked`."""
        chosen = OPTIMIZERS.chosen(self.local.optimizer, self.own)
        return chosen(decayed_groups(parameters, self.local.weight_decay, stacked), self.learning_rate)


@dataclass(frozen=True)
class ClientData:
    """One client: indices of its examples, and the generators of its batches, of its prefixes, and of the changes of its images, None where
    these are never changed."""

    share: NDArray[np.int64]
    rng: np.random.Generator
    prefix_rng: np.random.Generator
    augmentation_rng: np.random.Generator | None = None

    def logit_offsets(self, examples: Examples, training: Training, device: str) -> Tensor | None:
        """[classes]: what its own shares of the classes add to its logits in training, None where nothing does."""
        if not training.class_shares:
            return None
        classes, shares = self._classes(examples), training.class_shares
        own = np.bincount(classes, minlength=len(shares)) / len(classes)
        if training.local.label_skew == "balanced_batches":
            own = np.where(kept_classes(classes, shares), shares, 0.0)
        return sent(torch.from_numpy(logit_offsets(own, shares)), device)

    def _classes(self, examples: Examples) -> NDArray[np.int64]:
        assert isinstance(examples.labels, np.ndarray)  # where there are shares of classes
        return examples.labels[self.share]

    def batches(self, examples: Examples, training: Training, steps: int) -> Iterator[NDArray[np.int64]]:
        """The indices of the examples of so many steps, as `local.batches` and `local.label_skew` say."""
        local, share = training.local, self.share
        lengths = examples.lengths() if local.batches == "by_length" else None
        if training.class_shares and local.label_skew == "balanced_batches":
            drawn = draw_by_class(share, self._classes(examples), training.class_shares, local.batch_size, steps, self.rng)
            return balanced_batches(drawn, lengths, len(share), local.batch_size, steps, self.rng)
        if lengths is None:
            return batches(share, local.batch_size, steps, self.rng)
        return batches_of_like_length(share, lengths[share], local.batch_size, steps, self.rng)
