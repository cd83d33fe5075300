"""Decoders with rotary positions and grouped heads: LLaMA, Qwen2, Qwen3 and Mistral.

For causal language modelling, sequence classification and question answering. Exact permutations: whole rotary pairs, one order a
layer, with their frequencies; value dimensions per key/value head with the output projection's columns; whole groups (a key/value
head with its query heads); the query heads of a group, equally many in every group; gate, up and down together; the residual stream.
Dimension j of a head is rotated with j + size / 2 (Su et al. 2021), so a head is two halves of pairs.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from raffm_ray.axes.dim_sizes import kept_length
from raffm_ray.axes.indexing import Axis, Dim, Plan, axis_named
from raffm_ray.axes.layout import Attention, Layout, Parameter
from raffm_ray.basics.errors import UserError
from raffm_ray.models.attention import keep_indices
from raffm_ray.models.families.decoder import head_parameters
from raffm_ray.models.saved_activations import SavedActivations, ffn_widths, with_dropout

RESIDUAL: Dim = ("residual",)
QA_BASE = {"mistral": "model"}
"""The name of the base model under a question answering head, where it is not "transformer"."""


def _check(config: PretrainedConfig, head: str, size: int) -> None:
    if size % 2:
        raise UserError(f"model.config: head_dim {size} must be even, since dimensions are rotated in pairs")
    if config.num_attention_heads % config.num_key_value_heads:
        raise UserError(
            f"model.config: num_attention_heads {config.num_attention_heads} must be a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    if (config.rope_parameters or {}).get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("model.config: only heads that are rotated as a whole have a table of axes (partial_rotary_factor 1)")
    if head == "sequence_classification" and config.pad_token_id is None:
        raise UserError(
            "model.config: pad_token_id is needed to find the last token of a text; set it to a token that texts lack"
        )


def _biased(config: PretrainedConfig) -> set[str]:
    """The projections that have a bias, by the end of their name."""
    attention = {"q_proj", "k_proj", "v_proj"} | ({"o_proj"} if config.model_type != "qwen2" else set())
    ffn = {"gate_proj", "up_proj", "down_proj"}
    has_attention_bias = getattr(config, "attention_bias", config.model_type == "qwen2")
    return (attention if has_attention_bias else set()) | (ffn if getattr(config, "mlp_bias", False) else set())


def layout(config: PretrainedConfig, head: str) -> Layout:
    """Axes and dims of a decoder with its task head. Raises UserError for sizes that cannot be rotated or grouped."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    _check(config, head, size)
    groups, biased = config.num_key_value_heads, _biased(config)
    base = QA_BASE.get(config.model_type, "transformer") if head == "question_answering" else "model"
    # Models look up the kind of a layer's attention by its position, which changes when a layer before it is dropped.
    droppable = len(set(getattr(config, "layer_types", None) or [])) <= 1
    axes = [Axis("residual", config.hidden_size), *([Axis("layers", config.num_hidden_layers)] if droppable else [])]
    parameters = {f"{base}.embed_tokens.weight": Parameter(((), RESIDUAL))}
    norms, attentions = [], []
    for index in range(config.num_hidden_layers):
        layer, at = f"{base}.layers.{index}", (("layers", index) if droppable else None)
        names = {kind: f"{index}/{kind}" for kind in ("groups", "heads", "halves", "qk", "vo", "ffn")}
        axes += [
            Axis(names["groups"], groups),
            Axis(names["heads"], config.num_attention_heads // groups, parent=names["groups"]),
            Axis(names["halves"], 2, fixed=True),
            Axis(names["qk"], size // 2),
            Axis(names["vo"], size, parent=names["groups"]),
            Axis(names["ffn"], config.intermediate_size),
        ]
        heads, pairs, ffn = (names["groups"], names["heads"]), (names["halves"], names["qk"]), (names["ffn"],)
        attentions.append(
            Attention(
                module=f"{layer}.self_attn",
                heads=heads,
                qk=pairs,
                vo=(names["vo"],),
                ffn=ffn,
                layer=at,
                groups=(names["groups"],),
                positional=(names["qk"],),
            )
        )
        projections: dict[str, tuple[Dim, Dim]] = {
            "self_attn.q_proj": ((*heads, *pairs), RESIDUAL),
            "self_attn.k_proj": ((names["groups"], *pairs), RESIDUAL),
            "self_attn.v_proj": ((names["groups"], names["vo"]), RESIDUAL),
            "self_attn.o_proj": (RESIDUAL, (*heads, names["vo"])),
            "mlp.gate_proj": (ffn, RESIDUAL),
            "mlp.up_proj": (ffn, RESIDUAL),
            "mlp.down_proj": (RESIDUAL, ffn),
        }
        for name, (out, into) in projections.items():
            parameters[f"{layer}.{name}.weight"] = Parameter((out, into), at, matmul="tokens")
            if name.split(".")[1] in biased:
                parameters[f"{layer}.{name}.bias"] = Parameter((out,), at)
        if config.model_type == "qwen3":
            parameters |= {f"{layer}.self_attn.{one}_norm.weight": Parameter((pairs,), at) for one in ("q", "k")}
        for name in ("input_layernorm", "post_attention_layernorm"):
            norms.append(f"{layer}.{name}")
            parameters[f"{layer}.{name}.weight"] = Parameter((RESIDUAL,), at)
    norms.append(f"{base}.norm")
    parameters[f"{base}.norm.weight"] = Parameter((RESIDUAL,))
    parameters |= head_parameters(config, head, f"{base}.embed_tokens")
    return Layout(
        axes={axis.name: axis for axis in axes}, parameters=parameters, attentions=tuple(attentions), norms=tuple(norms)
    )


def saved(config: PretrainedConfig) -> SavedActivations:
    """What autograd keeps of it."""
    widths = ffn_widths(config.hidden_act, gated=True)
    return with_dropout(
        SavedActivations(residual=3, norm=1, gain=1, ffn=widths, qk=2 if config.model_type == "qwen3" else 0),
        0.0,
        config.attention_dropout,
    )


def fit(module: Any, site: Attention, plan: Plan, layout: Layout) -> None:
    """Fits a stock attention module to a plan: heads of a group, the rotary pairs that stay, values of another size.

    Queries and keys stay real heads, of two dimensions a pair. The stock module splits the values by that size too: a hook fills
    them up to a multiple of it, and the attention function splits them again (models/attention.py).
    """
    pairs = site.qk[-1]
    assert isinstance(pairs, str)
    assert site.groups is not None
    module.num_key_value_groups = kept_length(site.heads, layout.axes, plan) // kept_length(site.groups, layout.axes, plan)
    if pairs in plan:
        _choose_pairs(module, torch.from_numpy(plan[pairs].copy()), axis_named(pairs, layout.axes).size)
    size: int = module.head_dim
    if (values := kept_length(site.vo, layout.axes, plan)) != size:
        module.subnetwork_values = (kept_length(site.groups, layout.axes, plan), values)
        module.v_proj.register_forward_hook(partial(_fill_up, size))


# Hooks are functions of the module, no closures: a model can be pickled.
def _choose(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    chosen = tuple(states.index_select(-1, module.subnetwork_pairs) for states in named["position_embeddings"])
    return arguments, {**named, "position_embeddings": chosen}


def _fill_up(size: int, _: Any, __: Any, output: Tensor) -> Tensor:
    return nn.functional.pad(output, (0, -output.shape[-1] % size))


def _scale(factor: float, _: Any, __: Any, output: Tensor) -> Tensor:
    return output * factor


def _choose_pairs(module: Any, kept: Tensor, pairs: int) -> None:
    """Makes a module rotate the kept ones, shape [k], of a head's pairs by their own frequencies."""
    module.head_dim = 2 * len(kept)
    keep_indices(module, "subnetwork_pairs", torch.cat((kept, kept + pairs)))
    module.register_forward_pre_hook(_choose, with_kwargs=True)
    # Qwen3 divides queries and keys by their root mean square over a head. Dropped dimensions count there as zeros of the full
    # size d, as in the masked full model: x / sqrt(sum x^2 / d + eps) = sqrt(d / k) x / sqrt(mean x^2 + eps d / k).
    ratio = pairs / len(kept)
    for norm in (getattr(module, name, None) for name in ("q_norm", "k_norm")):
        if norm is not None and ratio != 1:
            norm.variance_epsilon *= ratio
            norm.register_forward_hook(partial(_scale, ratio**0.5))
