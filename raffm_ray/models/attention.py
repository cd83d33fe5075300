"""Attention whose query/key size and value size differ from each other and from the model's configuration.

The stock modules split their projections by one head size. A subnetwork's modules split by 1 instead, and the attention
functions registered here put the heads together again before they call the stock kernels. What a module needs for that is told
by attributes whose names start with `subnetwork_`; a stock module has none of them and is left alone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from raffm_ray.axes.dim_sizes import kept_length
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import Attention, Layout

IMPLEMENTATIONS = {"sdpa": "raffm_sdpa", "eager": "raffm_eager"}


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """[batch, heads * size, positions, 1] -> [batch, heads, positions, size]."""
    batch, _, positions, _ = states.shape
    if torch.compiler.is_exporting():  # two transpositions that cancel each other: the file has neither
        return states.transpose(1, 2).reshape(batch, positions, heads, -1).transpose(1, 2)
    return states.reshape(batch, heads, -1, positions).transpose(2, 3)


def _split_values(states: Tensor, heads: int, size: int) -> Tensor:
    """[batch, pieces, positions, piece], of which the first heads * size numbers are values -> [batch, heads, positions, size]."""
    batch, _, positions, _ = states.shape
    flat = states.transpose(1, 2).flatten(2)[..., : heads * size]
    return flat.reshape(batch, positions, heads, size).transpose(1, 2)


def _split(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads: int | None = getattr(module, "subnetwork_heads", None)
    if heads is not None:
        return _split_heads(query, heads), _split_heads(key, heads), _split_heads(value, heads)
    values: tuple[int, int] | None = getattr(module, "subnetwork_values", None)
    return query, key, value if values is None else _split_values(value, *values)


def _asked(module: nn.Module, query: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The queries that are computed, and their mask: all, or of the first position alone (see first_position.py)."""
    if not getattr(module, "subnetwork_first", False):
        return query, mask
    return query[:, :, :1], mask if mask is None or mask.shape[-2] == 1 else mask[..., :1, :]


def _bias_of_kept_heads(module: nn.Module, bias: Tensor | None) -> Tensor | None:
    """A position bias, [1, heads of the full model, queries, keys], for the heads that this module has."""
    rows: Tensor | None = getattr(module, "subnetwork_bias_rows", None)
    return bias if bias is None or rows is None else bias.index_select(1, rows)


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    query, key, value = _split(module, query, key, value)
    positions = query.shape[2]
    query, mask = _asked(module, query, mask)
    if position_bias is not None:
        kwargs["position_bias"] = _bias_of_kept_heads(module, position_bias)
    qk_size, vo_size = query.shape[-1], value.shape[-1]
    if qk_size == vo_size:
        context, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)
        return _at_all(context, positions), weights
    # Fused kernels want one size; zeros add nothing to a score, and the zero columns of the context are cut off again.
    query, key, value = (
        nn.functional.pad(states, (0, max(qk_size, vo_size) - states.shape[-1])) for states in (query, key, value)
    )
    context, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)
    return _at_all(context[..., :vo_size], positions), weights


def _at_all(context: Tensor, positions: int) -> Tensor:
    """What stock modules take: as many positions as they gave. A single one stands for all, of which they read the first."""
    return context if context.shape[1] == positions else context.expand(-1, positions, -1, -1)


def _rounded_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """In the scores' precision, which it would raise; the least float32 number would be rounded to minus infinity."""
    return mask if mask.dtype == dtype else mask.clamp(min=torch.finfo(dtype).min).to(dtype)


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    query, key, value = _split(module, query, key, value)
    positions = query.shape[2]
    query, mask = _asked(module, query, mask)
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = torch.matmul(query * scaling, key.transpose(2, 3))  # queries are fewer numbers to scale than scores
    bias = _bias_of_kept_heads(module, position_bias)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores + _rounded_mask(mask, scores.dtype)
    # In bfloat16 a softmax is summed up in float32, without a copy of all scores in float32.
    weights = nn.functional.dropout(scores.softmax(-1).to(value.dtype), dropout, module.training)
    return _at_all(torch.matmul(weights, value).transpose(1, 2).contiguous(), positions), weights


AttentionInterface.register("raffm_sdpa", _sdpa)
AttentionInterface.register("raffm_eager", _eager)
AttentionMaskInterface.register("raffm_sdpa", sdpa_mask)
AttentionMaskInterface.register("raffm_eager", eager_mask)


def fit_attention(module: Any, site: Attention, plan: Plan, layout: Layout, size: str = "head_dim") -> None:
    """Makes a stock attention module serve the heads that a plan keeps, of whatever sizes its projections have.

    The scale stays the parent's. `size`: the attribute by which the module splits its projections into heads.
    """
    setattr(module, size, 1)
    module.subnetwork_heads = kept_length(site.heads, layout.axes, plan)


def keep_indices(module: Any, name: str, indices: Tensor) -> None:
    """Gives a module kept indices as a buffer that no checkpoint holds, and what to fill it with again where a loader leaves it empty."""
    module.register_buffer(name, indices, persistent=False)
    module.subnetwork_indices = {name: tuple(indices.tolist())}


def restore_indices(module: nn.Module) -> None:
    """Fills the buffers of `keep_indices` again."""
    for name, values in getattr(module, "subnetwork_indices", {}).items():
        getattr(module, name).copy_(torch.tensor(values))
