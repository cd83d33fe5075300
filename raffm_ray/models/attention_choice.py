"""Which attention a model runs with: a rule, and the measurements that it rests on.

The rule reads the experiment and whether workers compute on GPUs, nothing of the machine: a run has the same attention, and so the same
bits, on any number of workers. A processor on which bfloat16 is slow is told to the user, and changes nothing.
"""

from dataclasses import replace
from typing import NamedTuple

from raffm_ray.axes.dim_sizes import kept_length
from raffm_ray.axes.indexing import Plan
from raffm_ray.models.architecture import FAMILIES, Architecture
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


MEASURED: tuple[Measured, ...] = (
    Measured(AttentionShape("cpu", "float32", False, 5, 8), 320, 4, 3.04, 3.67),
    Measured(AttentionShape("cpu", "float32", False, 17, 32), 16, 6, 0.86, 1.10),
    Measured(AttentionShape("cpu", "float32", False, 32, 32), 16, 12, 3.03, 3.89),
    Measured(AttentionShape("cpu", "float32", False, 65, 32), 16, 6, 4.74, 5.40),
    Measured(AttentionShape("cpu", "float32", False, 65, 64), 16, 12, 18.76, 18.24),
    Measured(AttentionShape("cpu", "float32", False, 128, 32), 8, 12, 14.66, 16.49),
    Measured(AttentionShape("cpu", "float32", False, 128, 64), 8, 12, 24.10, 26.81),
    Measured(AttentionShape("cpu", "float32", False, 197, 64), 4, 12, 25.72, 30.22),
    Measured(AttentionShape("cpu", "float32", False, 256, 64), 4, 12, 34.25, 41.01),
    Measured(AttentionShape("cpu", "float32", False, 512, 64), 2, 12, 61.28, 75.42),
    Measured(AttentionShape("cpu", "float32", False, 1024, 64), 1, 12, 108.67, 150.04),
    Measured(AttentionShape("cpu", "float32", False, 2048, 64), 1, 12, 446.33, 573.44),
    Measured(AttentionShape("cpu", "bfloat16", False, 5, 8), 320, 4, 5.67, 3.10),
    Measured(AttentionShape("cpu", "bfloat16", False, 17, 32), 16, 6, 9.26, 1.61),
    Measured(AttentionShape("cpu", "bfloat16", False, 32, 32), 16, 12, 19.46, 3.39),
    Measured(AttentionShape("cpu", "bfloat16", False, 65, 32), 16, 6, 19.62, 4.62),
    Measured(AttentionShape("cpu", "bfloat16", False, 65, 64), 16, 12, 65.35, 11.79),
    Measured(AttentionShape("cpu", "bfloat16", False, 128, 32), 8, 12, 41.94, 11.03),
    Measured(AttentionShape("cpu", "bfloat16", False, 128, 64), 8, 12, 50.07, 14.20),
    Measured(AttentionShape("cpu", "bfloat16", False, 197, 64), 4, 12, 34.01, 14.63),
    Measured(AttentionShape("cpu", "bfloat16", False, 256, 64), 4, 12, 36.45, 19.56),
    Measured(AttentionShape("cpu", "bfloat16", False, 512, 64), 2, 12, 54.26, 32.14),
    Measured(AttentionShape("cpu", "bfloat16", False, 1024, 64), 1, 12, 79.73, 60.79),
    Measured(AttentionShape("cpu", "bfloat16", False, 2048, 64), 1, 12, 296.05, 199.95),
    Measured(AttentionShape("cpu", "float32", True, 32, 32), 16, 12, 5.96, 4.88),
    Measured(AttentionShape("cpu", "float32", True, 128, 64), 8, 12, 42.09, 38.68),
    Measured(AttentionShape("cpu", "float32", True, 512, 64), 2, 12, 148.17, 126.22),
    Measured(AttentionShape("cpu", "bfloat16", True, 32, 32), 16, 12, 6.45, 4.29),
    Measured(AttentionShape("cpu", "bfloat16", True, 128, 64), 8, 12, 48.81, 26.30),
    Measured(AttentionShape("cpu", "bfloat16", True, 512, 64), 2, 12, 161.62, 82.89),
)
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


def attention_of(architecture: Architecture, asked: str, precision: str, device: str) -> str:
    """What is asked for, a `local.attention`; the rule's where that is "auto"."""
    return attention_for(shape_of(architecture, precision, device)) if asked == "auto" else asked


def with_attention(architecture: Architecture, asked: str, precision: str, device: str) -> Architecture:
    """The same architecture, whose modules run, and whose memory is estimated, with `attention_of`."""
    attention = attention_of(architecture, asked, precision, device)
    if attention == architecture.attention:
        return architecture
    saved = FAMILIES[architecture.config.model_type].saved(architecture.config)
    saved = keeping_scores(saved) if attention == "eager" else saved
    return replace(architecture, attention=attention, saved=saved)
