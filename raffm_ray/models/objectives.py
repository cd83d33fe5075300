"""Objectives: the loss of each task head, and the answers that metrics read.

Labels by head: classification [batch] classes, or [batch] floats for regression; question answering [batch, 4], first and last token
of the answer and of the context that it stands in; language modelling and sequence to sequence [batch, positions] tokens, -100 where there is no target.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.basics.registry import Table
from raffm_ray.data.examples import IGNORED
from raffm_ray.models.architecture import Architecture

LONGEST_ANSWER = 30
"""Tokens of an answer at most (Devlin et al. 2019, SQuAD script)."""


@dataclass(frozen=True)
class Objective:
    """A row of `OBJECTIVES`.

    `loss(output, labels, reduction)`: a scalar; "sum" adds up log-likelihoods over everything, "mean" divides by the number of targets.
    `answers(output, labels)`: [batch, k], what the head says of each example; `targets(labels)`: how many targets there are.
    `outputs(output, labels)`: [batch, numbers], all that the head puts out where there is a target, each distribution's mean taken off:
    a shift of all its logits changes no probability. `distillation(student, teacher, labels, temperature)`: a scalar, the mean over
    targets of temperature^2 KL(teacher's softened distribution || student's) (Hinton et al. 2015, section 2), or of the squared
    difference of numbers; both are outputs of the head, and no gradient goes to the teacher's. `each(output, labels)`: [batch, 2], an
    example's part of the summed loss, and of what "mean" divides it by.
    """

    loss: Callable[[Any, Tensor, str], Tensor]
    answers: Callable[[Any, Tensor], Tensor]
    targets: Callable[[Tensor], int]
    outputs: Callable[[Any, Tensor], Tensor]
    distillation: Callable[[Any, Any, Tensor, float], Tensor]
    each: Callable[[Any, Tensor], Tensor]


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Logits [targets, outcomes]."""
    mine, theirs = (nn.functional.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher.detach()))
    return temperature**2 * nn.functional.kl_div(mine, theirs, reduction="batchmean", log_target=True)


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _class_outputs(output: Any, labels: Tensor) -> Tensor:
    logits: Tensor = output.logits
    return logits if labels.is_floating_point() else _centred(logits)


def _class_loss(output: Any, labels: Tensor, reduction: str) -> Tensor:
    if labels.is_floating_point():
        return nn.functional.mse_loss(output.logits.squeeze(-1), labels, reduction=reduction)
    return nn.functional.cross_entropy(output.logits, labels, reduction=reduction)


def _with_ones(losses: Tensor) -> Tensor:
    return torch.stack([losses, torch.ones_like(losses)], dim=1)


def _class_answers(output: Any, labels: Tensor) -> Tensor:
    """[batch, 1]: the likeliest class, or the number itself."""
    logits: Tensor = output.logits
    return logits[:, :1] if labels.is_floating_point() else logits.argmax(-1, keepdim=True)


def _class_distillation(student: Any, teacher: Any, labels: Tensor, temperature: float) -> Tensor:
    if labels.is_floating_point():
        return nn.functional.mse_loss(student.logits, teacher.logits.detach())
    return _divergence(student.logits, teacher.logits, temperature)


def _in_context(logits: Tensor, labels: Tensor, and_first: bool, fill: float = -torch.inf) -> Tensor:
    """Logits with `fill` outside the context, so that question and padding do not count; `and_first` leaves "no answer"."""
    at = torch.arange(logits.shape[1], device=logits.device)
    allowed = (at >= labels[:, 2:3]) & (at <= labels[:, 3:4])
    return logits.masked_fill(~(allowed | (at == 0)) if and_first else ~allowed, fill)


def _span_loss(output: Any, labels: Tensor, reduction: str) -> Tensor:
    both = [
        nn.functional.cross_entropy(_in_context(logits, labels, True), labels[:, side], reduction=reduction)
        for side, logits in enumerate((output.start_logits, output.end_logits))
    ]
    return torch.stack(both).mean(0)


def _span_each(output: Any, labels: Tensor) -> Tensor:
    return _with_ones(_span_loss(output, labels, "none"))


def _span_answers(output: Any, labels: Tensor) -> Tensor:
    """[batch, 4]: first and last token of the best span in the context, at most `LONGEST_ANSWER` long, its score, and that of no answer, which
    stands at the first token (Devlin et al. 2019, section 4.3)."""
    start, end = (_in_context(logits, labels, False) for logits in (output.start_logits, output.end_logits))
    scores = start[:, :, None] + end[:, None, :]
    allowed = torch.ones_like(scores[0], dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    best = scores.masked_fill(~allowed, -torch.inf).flatten(1).max(1)
    width = scores.shape[-1]
    none = output.start_logits[:, 0] + output.end_logits[:, 0]
    return torch.stack([best.indices // width, best.indices % width, best.values, none], dim=1)


def _span_outputs(output: Any, labels: Tensor) -> Tensor:
    at = torch.arange(output.start_logits.shape[1], device=labels.device)
    real = ((at >= labels[:, 2:3]) & (at <= labels[:, 3:4])) | (at == 0)
    parts = []
    for logits in (output.start_logits, output.end_logits):
        mean = (logits * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        parts.append((logits - mean) * real)
    return torch.cat(parts, dim=1)


def _span_distillation(student: Any, teacher: Any, labels: Tensor, temperature: float) -> Tensor:
    # Not -inf: outside the context both have no probability, and infinity less infinity is no number.
    mine, theirs = (
        [_in_context(side, labels, True, -1e9) for side in (one.start_logits, one.end_logits)] for one in (student, teacher)
    )
    return torch.stack([_divergence(*sides, temperature) for sides in zip(mine, theirs, strict=True)]).mean()


def _token_distillation(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    wanted = labels != IGNORED
    return _divergence(student[wanted], teacher[wanted], temperature)


def _token_outputs(logits: Tensor, labels: Tensor) -> Tensor:
    return (_centred(logits) * (labels != IGNORED)[..., None]).flatten(1)


def _token_losses(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction=reduction)


def _token_each(logits: Tensor, labels: Tensor) -> Tensor:
    each = _token_losses(logits, labels, "none").view(labels.shape)
    return torch.stack([each.sum(1), (labels != IGNORED).sum(1).to(each.dtype)], dim=1)


def _token_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """[batch, 2]: summed negative log-likelihood of an example's targets, and how many they are."""
    each = _token_losses(logits, labels, "none").view(labels.shape)
    return torch.stack([each.double().sum(1), (labels != IGNORED).sum(1).double()], dim=1)


def _next(output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of a causal model, one position apart."""
    return output.logits[:, :-1], labels[:, 1:]


_OBJECTIVES = {
    **dict.fromkeys(
        ("sequence_classification", "image_classification"),
        Objective(
            _class_loss,
            _class_answers,
            len,
            _class_outputs,
            _class_distillation,
            lambda output, labels: _with_ones(_class_loss(output, labels, "none")),
        ),
    ),
    "question_answering": Objective(_span_loss, _span_answers, len, _span_outputs, _span_distillation, _span_each),
    "causal_language_modelling": Objective(
        lambda output, labels, reduction: _token_losses(*_next(output, labels), reduction),
        lambda output, labels: _token_answers(*_next(output, labels)),
        lambda labels: int((labels[:, 1:] != IGNORED).sum()),
        lambda output, labels: _token_outputs(*_next(output, labels)),
        lambda student, teacher, labels, temperature: _token_distillation(
            student.logits[:, :-1], *_next(teacher, labels), temperature
        ),
        lambda output, labels: _token_each(*_next(output, labels)),
    ),
    "sequence_to_sequence": Objective(
        lambda output, labels, reduction: _token_losses(output.logits, labels, reduction),
        lambda output, labels: _token_answers(output.logits, labels),
        lambda labels: int((labels != IGNORED).sum()),
        lambda output, labels: _token_outputs(output.logits, labels),
        lambda student, teacher, labels, temperature: _token_distillation(student.logits, teacher.logits, labels, temperature),
        lambda output, labels: _token_each(output.logits, labels),
    ),
}


def _of_examples(each: Callable[[Any, Tensor], Tensor], scale: Callable[[Tensor], Tensor] | None = None) -> dict[str, Any]:
    """The fields `loss` and `each` of a loss that is said by example."""

    def scaled(output: Any, labels: Tensor) -> Tensor:
        found = each(output, labels)
        found = found if found.dim() == 2 else _with_ones(found)
        return found if scale is None else found * scale(labels)[:, None]

    def loss(output: Any, labels: Tensor, reduction: str) -> Tensor:
        summed, counted = scaled(output, labels).sum(0).unbind()
        return summed if reduction == "sum" else summed / counted

    return {"loss": loss, "each": scaled}


def _row(each: Callable[[Any, Tensor], Tensor], like: Objective | None, **others: Any) -> Objective:
    """What is decorated gives [batch] losses, or [batch, 2] as `each`; the mean and the sum follow from it."""
    given = {**others, **_of_examples(each)}
    return Objective(**given) if like is None else replace(like, **given)


OBJECTIVES: Table[Objective] = Table("objective", _OBJECTIVES, function="each", make=_row, in_workers=True)
"""By the head's name in raffm_ray.models.architecture.HEADS."""


def objective_of(architecture: Architecture) -> Objective:
    """What a model is measured by: what its settings name, else its head's."""
    return OBJECTIVES.chosen(architecture.objective or architecture.head, architecture.own)


def training_objective(architecture: Architecture) -> Objective:
    """What a model is trained for."""
    return weighted(objective_of(architecture), architecture.class_weights)


def weighted(objective: Objective, class_weights: Sequence[float]) -> Objective:
    """What a head is trained for. `class_weights`: what an example of each class counts, empty where all count the same; "mean" divides by the
    sum of the examples' weights, as `torch.nn.CrossEntropyLoss` does."""
    if not class_weights:
        return objective

    @cache
    def weights(device: torch.device) -> Tensor:  # once a device: no step waits for a copy
        return torch.tensor(class_weights, device=device)

    return replace(objective, **_of_examples(objective.each, lambda labels: weights(labels.device)[labels]))


MISSING = -1e4
"""Added to the logit of a class that a client has no example of: its probability is 0 in float32, and nothing is divided by it."""


def logit_offsets(own_shares: NDArray[np.float64], class_shares: Sequence[float]) -> NDArray[np.float32]:
    """[classes]: what is added to a client's logits while it trains, so that the model between learns what holds for all clients.

    `own_shares`: of the classes in its batches, 0 for those that it leaves out; `class_shares`: in all clients' examples. Where clients differ in how often a class occurs
    and in nothing else, the chance of a class y at a client is proportional to p(y | x) q(y) / p(y), with q its own shares and p all
    clients' (Saerens et al. 2002, equation 4): log(q / p) is added, as in logit adjustment (Menon et al. 2021, equation 10),
    which FedLC (Zhang et al. 2022) does at every client. A class that it lacks is left out, as FedRS does (Li and Zhan 2021); 0 for one that nobody has.
    """
    all_clients, there = np.asarray(class_shares), own_shares > 0
    offsets = np.where(all_clients > 0, MISSING, 0.0)
    offsets[there] = np.log(own_shares[there] / all_clients[there])
    return offsets.astype(np.float32)


def adjusted(objective: Objective, offsets: Tensor) -> Objective:
    """The objective with these `logit_offsets` in its loss, [classes] or [examples, classes]; answers and distillation stay as they are."""

    def each(output: Any, labels: Tensor) -> Tensor:
        shifted = copy(output)
        shifted.logits = output.logits + offsets
        return objective.each(shifted, labels)

    return replace(objective, **_of_examples(each))
