"""GPT-2, for causal language modelling, sequence classification and question answering.

Exact permutations: query/key dimensions per head; value dimensions per head with the output projection's rows; whole heads; FFN
neurons; the residual stream everywhere. Its projections are `Conv1D`, the transpose of a linear layer, and query, key and value are
one fused projection. The output layer is usually the word embedding itself.
"""

from typing import Any

from transformers import PretrainedConfig

from raffm_ray.axes.dim_sizes import kept_length
from raffm_ray.axes.indexing import Axis, Dim, Plan
from raffm_ray.axes.layout import Attention, Layout, Parameter
from raffm_ray.basics.errors import UserError
from raffm_ray.models.attention import fit_attention
from raffm_ray.models.families.decoder import head_parameters
from raffm_ray.models.saved_activations import SavedActivations, ffn_widths, with_dropout

RESIDUAL: Dim = ("residual",)


def layout(config: PretrainedConfig, head: str) -> Layout:
    """Axes and dims of GPT-2 with its task head. Raises UserError for cross-attention, and where padding cannot be told."""
    if config.add_cross_attention:
        raise UserError("model.config: GPT-2 with add_cross_attention has no table of axes")
    if head == "sequence_classification" and config.pad_token_id is None:
        raise UserError(
            "model.config: pad_token_id is needed to find the last token of a text; set it to a token that texts lack"
        )
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    axes = [Axis("residual", config.hidden_size), Axis("layers", config.num_hidden_layers)]
    parameters = {f"transformer.{name}.weight": Parameter(((), RESIDUAL)) for name in ("wte", "wpe")}
    norms, attentions = [], []
    for index in range(config.num_hidden_layers):
        layer, at = f"transformer.h.{index}", ("layers", index)
        names = {kind: f"{index}/{kind}" for kind in ("heads", "qk", "vo", "ffn")}
        axes += [
            Axis(names["heads"], heads),
            Axis(names["qk"], size, parent=names["heads"]),
            Axis(names["vo"], size, parent=names["heads"]),
            Axis(names["ffn"], config.n_inner or 4 * config.hidden_size),
        ]
        qk, vo, ffn = (names["heads"], names["qk"]), (names["heads"], names["vo"]), (names["ffn"],)
        attentions.append(
            Attention(module=f"{layer}.attn", heads=(names["heads"],), qk=(names["qk"],), vo=(names["vo"],), ffn=ffn, layer=at)
        )
        projections: dict[str, tuple[Dim, Dim]] = {
            "attn.c_attn": (RESIDUAL, (qk, qk, vo)),
            "attn.c_proj": (vo, RESIDUAL),
            "mlp.c_fc": (RESIDUAL, ffn),
            "mlp.c_proj": (ffn, RESIDUAL),
        }
        for name, (into, out) in projections.items():
            parameters[f"{layer}.{name}.weight"] = Parameter((into, out), at, matmul="tokens", reads=0)
            parameters[f"{layer}.{name}.bias"] = Parameter((out,), at)
        for name in ("ln_1", "ln_2"):
            norms.append(f"{layer}.{name}")
            parameters |= {f"{layer}.{name}.{part}": Parameter((RESIDUAL,), at) for part in ("weight", "bias")}
    norms.append("transformer.ln_f")
    parameters |= {f"transformer.ln_f.{part}": Parameter((RESIDUAL,)) for part in ("weight", "bias")}
    parameters |= head_parameters(config, head, "transformer.wte")
    return Layout(
        axes={axis.name: axis for axis in axes}, parameters=parameters, attentions=tuple(attentions), norms=tuple(norms)
    )


def saved(config: PretrainedConfig) -> SavedActivations:
    """What autograd keeps of it."""
    return with_dropout(SavedActivations(ffn=ffn_widths(config.activation_function)), config.resid_pdrop, config.attn_pdrop)


def fit(module: Any, site: Attention, plan: Plan, layout: Layout) -> None:
    """Fits a stock attention module to a plan: its heads, and where the fused projection is split."""
    fit_attention(module, site, plan, layout)
    qk, vo = (kept_length((*site.heads, *size), layout.axes, plan) for size in (site.qk, site.vo))
    module.split_size = [qk, qk, vo]
