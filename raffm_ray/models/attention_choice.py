"""Which attention a model runs with: a rule, and the measurements that it rests on.

The rule reads the experiment and whether workers compute on GPUs, nothing of the machine: a run has the same attention, and so the same
bits, on any number of workers. A processor on which bfloat16 is slow is told to the user, and changes nothing.
"""

from dataclasses import replace
from typing import NamedTuple

from raffm_ray.axes.dim_sizes import kept_length
from raffm_ray.axes.indexing import Plan
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.saved_activations import keeping_scores

LONGEST_EAGER = 2048
"""Keys up to which bfloat16 on a CPU was measured, and is computed by two matrix products and a softmax."""


class AttentionShape(NamedTuple):
    """What the rule goes by. `drops`: whether training drops attention weights; `positions`: keys that a query looks at, at most; `head_size`:
    of the full model, the larger of its two."""

    device: str
    precision: str
    drops: bool
    positions: int
    head_size: int


class Measured(NamedTuple):
    """Median CPU milliseconds, forward and backward, without a mask, of so many examples and heads on one thread."""

    shape: AttentionShape
    examples: int
    heads: int
    sdpa: float
    eager: float


MEASURED: tuple[Measured, ...] = ()
"""`raffm-ray bench attention` on an Intel Xeon with AMX, torch 2.13."""


def attention_for(shape: AttentionShape) -> str:
    """ "sdpa" or "eager".

    On a CPU in float32 the fused kernel wins at every shape, and keeps no matrix of scores. It knows no dropout: with it PyTorch computes
    plain products as well, in more steps than "eager" does. In bfloat16 the fused kernel takes a tenth of a millisecond for every head of
    every example before it computes anything, and plain products use the processor's matrix units; beyond what was measured it is
    taken for the memory of all scores. On a GPU PyTorch's fused kernels, which know dropout, are left to choose among themselves.
    """
    if shape.device != "cpu":
        return "sdpa"
    return "eager" if shape.drops or (shape.precision == "bfloat16" and shape.positions <= LONGEST_EAGER) else "sdpa"


def shape_of(architecture: Architecture, precision: str, device: str) -> AttentionShape:
    """The largest attention of a model."""
    sites, axes = architecture.layout.attentions, architecture.layout.axes
    return AttentionShape(
        device=device,
        precision=precision,
        drops=architecture.saved.drops,
        positions=max(architecture.positions[site.keys] for site in sites),
        head_size=max(kept_length(dim, axes, Plan()) for site in sites for dim in (site.qk, site.vo)),
    )


def with_attention(architecture: Architecture, asked: str, precision: str, device: str) -> Architecture:
    """The same architecture, whose modules run, and whose memory is estimated, with the attention that is asked for: a
    `local.attention`."""
    attention = attention_for(shape_of(architecture, precision, device)) if asked == "auto" else asked
    saved = keeping_scores(architecture.saved) if attention == "eager" else architecture.saved
    return replace(architecture, attention=attention, saved=saved)
