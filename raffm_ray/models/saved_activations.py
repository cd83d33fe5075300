"""Activations that autograd keeps until the backward pass: counts that `subnetworks/costs.py` multiplies by sizes.

They follow from how transformers writes norms, activations and attention; tests/test_costs.py holds them to what is measured.
"""

from dataclasses import dataclass, replace

ACTIVATIONS = {"relu": 0, "gelu_new": 4}
"""Tensors that an activation function keeps besides its result; most keep their input. GPT-2's GELU is written out in Python."""


@dataclass(frozen=True)
class SavedActivations:
    """How often autograd keeps what.

    `residual`: residual streams per token and norm, what reads the norm included. `norm`: single numbers per token and norm. `ffn`:
    FFN widths per token. `qk`: queries and (unrepeated) keys, besides those that attention keeps. `scores`: attention matrices per
    head. `gain`: of what a norm keeps, and the norm of a head's queries or keys, what only the gradient of its gain needs. `logits`: copies of what the model says, where it says something at every position. `drops`: whether attention weights
    are dropped.
    """

    residual: int = 2
    norm: int = 2
    ffn: int = 2
    qk: int = 0
    scores: int = 0
    gain: int = 0
    logits: int = 1
    drops: bool = False


def with_dropout(saved: SavedActivations, hidden: float, attention: float, ffn: float = 0.0) -> SavedActivations:
    """With masks, which a CPU keeps as floats, where probabilities are above 0: of the residual stream before every norm, of FFN widths (and what
    they leave); an attention that drops weights is not fused, and keeps the weights, their mask and what it leaves."""
    scores = max(saved.scores, 1) + 2 if attention else saved.scores
    return replace(
        saved, residual=saved.residual + (hidden > 0), ffn=saved.ffn + 2 * (ffn > 0), scores=scores, drops=attention > 0
    )


def keeping_scores(saved: SavedActivations) -> SavedActivations:
    """With the attention weights that an attention of plain products keeps, and a fused one computes again."""
    return replace(saved, scores=max(saved.scores, 1))


def ffn_widths(activation: str, gated: bool = False) -> int:
    """FFN widths that are kept per token: by the activation, its result, and for a gate the gated values and the product."""
    return ACTIVATIONS.get(activation, 1) + 1 + (2 if gated else 0)
