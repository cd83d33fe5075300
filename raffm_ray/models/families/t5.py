"""T5 for sequence-to-sequence tasks: version 1.0 (ReLU), and 1.1 and FLAN (gated).

Exact permutations: query/key and value dimensions per head; whole heads, in every attention its own; FFN neurons (gate and up
together); the residual stream of both stacks at once, since they share the embedding. Attention has no scale. The first block of a
stack owns the table of position biases, one column a head, that all blocks of the stack add to their scores: it is never cut, each
block takes the columns of its own heads, and the first block cannot be dropped (a plan's `encoder/layers` and `decoder/layers` count
it, but it stays). The output layer is usually the embedding, scaled by the full model's size ** -0.5 in version 1.0.
"""

from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from raffm_ray.axes.indexing import Axis, Dim, Plan
from raffm_ray.axes.layout import Attention, Layer, Layout, Parameter
from raffm_ray.models.attention import fit_attention, keep_indices
from raffm_ray.models.saved_activations import SavedActivations, ffn_widths, with_dropout

RESIDUAL: Dim = ("residual",)
LONGEST = 512
"""Positions that T5 was trained on; its relative positions set no limit (Raffel et al. 2020, section 3.1.1)."""


class _Parts(NamedTuple):
    """What a layout is made of, as it is gathered block by block."""

    axes: list[Axis]
    parameters: dict[str, Parameter]
    attentions: list[Attention]
    norms: list[str]


def layout(config: PretrainedConfig, head: str) -> Layout:
    """Axes and dims of `T5ForConditionalGeneration`."""
    parts = _Parts([Axis("residual", config.d_model)], {"shared.weight": Parameter(((), RESIDUAL))}, [], [])
    axes, parameters, attentions, norms = parts
    for stack, blocks in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        if blocks > 1:  # else none can be dropped
            axes.append(Axis(f"{stack}/layers", blocks))
        for index in range(blocks):
            _add_block(config, stack, index, parts)
        norms.append(f"{stack}.final_layer_norm")
        parameters[f"{stack}.final_layer_norm.weight"] = Parameter((RESIDUAL,))
    owner = "shared" if config.tie_word_embeddings else "lm_head"
    parameters[f"{owner}.weight"] = Parameter(((), RESIDUAL), matmul="targets", module="lm_head")
    written = {name: "targets" for name in norms if name.startswith("decoder.")}
    return Layout(
        axes={axis.name: axis for axis in axes},
        parameters=parameters,
        attentions=tuple(attentions),
        norms=tuple(norms),
        norm_positions=written,
    )


def _add_block(
    config: PretrainedConfig,
    stack: str,
    index: int,
    parts: _Parts,
) -> None:
    """Adds one block of a stack."""
    axes, parameters, attentions, norms = parts
    block, own = f"{stack}.block.{index}.layer", "tokens" if stack == "encoder" else "targets"
    at: Layer | None = (f"{stack}/layers", index) if index else None
    ffn = f"{stack}/{index}/ffn"
    axes.append(Axis(ffn, config.d_ff))
    kinds = [("SelfAttention", f"{stack}/{index}", own)]
    if stack == "decoder":
        kinds.append(("EncDecAttention", f"{stack}/{index}/cross", "tokens"))
    for number, (kind, name, keys) in enumerate(kinds):
        heads, qk, vo = f"{name}/heads", f"{name}/qk", f"{name}/vo"
        axes += [
            Axis(heads, config.num_heads),
            Axis(qk, config.d_kv, parent=heads),
            Axis(vo, config.d_kv, parent=heads),
        ]
        module, last = f"{block}.{number}.{kind}", number == len(kinds) - 1
        attentions.append(
            Attention(
                module=module,
                heads=(heads,),
                qk=(qk,),
                vo=(vo,),
                ffn=(ffn,) if last else None,
                layer=at,
                queries=own,
                keys=keys,
                positional=(heads,) if kind == "SelfAttention" else (),
            )
        )
        parameters |= {
            f"{module}.q.weight": Parameter(((heads, qk), RESIDUAL), at, matmul=own),
            f"{module}.k.weight": Parameter(((heads, qk), RESIDUAL), at, matmul=keys),
            f"{module}.v.weight": Parameter(((heads, vo), RESIDUAL), at, matmul=keys),
            f"{module}.o.weight": Parameter((RESIDUAL, (heads, vo)), at, matmul=own),
        }
        if kind == "SelfAttention" and index == 0:
            parameters[f"{module}.relative_attention_bias.weight"] = Parameter(((), ()))
    dense = f"{block}.{len(kinds)}.DenseReluDense"
    for one in ("wi_0", "wi_1") if config.is_gated_act else ("wi",):
        parameters[f"{dense}.{one}.weight"] = Parameter(((ffn,), RESIDUAL), at, matmul=own)
    parameters[f"{dense}.wo.weight"] = Parameter((RESIDUAL, (ffn,)), at, matmul=own)
    for number in range(len(kinds) + 1):
        norms.append(f"{block}.{number}.layer_norm")
        parameters[f"{norms[-1]}.weight"] = Parameter((RESIDUAL,), at)


def positions(config: PretrainedConfig, tokens: int | None, targets: int | None) -> dict[str, int]:
    """How many positions an example has: `tokens` read by the encoder, `targets` written by the decoder."""
    return {"tokens": tokens or LONGEST, "targets": targets or tokens or LONGEST, "examples": 1}


def saved(config: PretrainedConfig) -> SavedActivations:
    """What autograd keeps of it."""
    saved, rate = (
        SavedActivations(residual=3, norm=1, gain=1, ffn=ffn_widths(config.dense_act_fn, config.is_gated_act), scores=1),
        config.dropout_rate,
    )
    return with_dropout(saved, rate, rate, rate)


def fit(module: Any, site: Attention, plan: Plan, layout: Layout) -> None:
    """Fits a stock attention module to a plan: its heads, and which rows of the position bias are theirs."""
    fit_attention(module, site, plan, layout, size="key_value_proj_dim")
    (heads,) = site.heads
    if isinstance(heads, str) and heads in plan:
        keep_indices(module, "subnetwork_bias_rows", torch.from_numpy(plan[heads].copy()))
