"""Attention whose query/key size and value size differ from each other and from the model's configuration.

The stock modules split their projections by one head size. A subnetwork's modules split by 1 instead, and the attention
functions registered here put the heads together again before they call the stock kernels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATIONS = {"sdpa": "raffm_sdpa", "eager": "raffm_eager"}


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """[batch, heads * size, positions, 1] -> [batch, heads, positions, size]."""
    batch, _, positions, _ = states.shape
    return states.reshape(batch, heads, -1, positions).transpose(2, 3)


def _split(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads = getattr(module, "subnetwork_heads", None)
    if heads is None:
        return query, key, value
    return _split_heads(query, heads), _split_heads(key, heads), _split_heads(value, heads)


def _sdpa(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    query, key, value = _split(module, query, key, value)
    qk_size, vo_size = query.shape[-1], value.shape[-1]
    if qk_size == vo_size:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)
    # Fused kernels want one size; zeros add nothing to a score, and the zero columns of the context are cut off again.
    query, key, value = (
        nn.functional.pad(states, (0, max(qk_size, vo_size) - states.shape[-1])) for states in (query, key, value)
    )
    context, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)
    return context[..., :vo_size], weights


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    scaling: float, dropout: float = 0.0, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    query, key, value = _split(module, query, key, value)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if mask is not None:
        scores = scores + mask
    weights = nn.functional.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("raffm_sdpa", _sdpa)
AttentionInterface.register("raffm_eager", _eager)
AttentionMaskInterface.register("raffm_sdpa", sdpa_mask)
AttentionMaskInterface.register("raffm_eager", eager_mask)


def fit_attention(module: Any, heads: int, size: str = "head_dim") -> None:
    """Makes a stock attention module serve `heads` heads of whatever sizes its projections have; the scale stays the parent's.

    `size`: the attribute by which the module splits its projections into heads.
    """
    setattr(module, size, 1)
    module.subnetwork_heads = heads
