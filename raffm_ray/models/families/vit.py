"""ViT and DeiT for image classification (transformers 5).

Exact permutations: query/key dimensions per head; value dimensions per head with the output projection's columns; whole
heads; FFN neurons; the residual stream everywhere, class token, position and patch embeddings and classifier included.
"""

from transformers import PretrainedConfig

from raffm_ray.axes.indexing import Axis
from raffm_ray.axes.layout import Attention, Layout, Parameter
from raffm_ray.models.saved_activations import SavedActivations, ffn_widths, with_dropout

RESIDUAL = ("residual",)


def layout(config: PretrainedConfig, head: str) -> Layout:
    """Axes and dims of `ViTForImageClassification` and `DeiTForImageClassification`."""
    prefix = config.model_type
    heads, head_size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    axes = [Axis("residual", config.hidden_size), Axis("layers", config.num_hidden_layers)]
    embeddings = f"{prefix}.embeddings"
    tokens = ["cls_token", *(["distillation_token"] if prefix == "deit" else []), "position_embeddings"]
    parameters = {f"{embeddings}.{name}": Parameter(((), (), RESIDUAL)) for name in tokens}
    parameters[f"{embeddings}.patch_embeddings.projection.weight"] = Parameter((RESIDUAL, (), (), ()), matmul="patches", raw=True)
    parameters[f"{embeddings}.patch_embeddings.projection.bias"] = Parameter((RESIDUAL,))
    norms, attentions = [], []
    for index in range(config.num_hidden_layers):
        layer, at = f"{prefix}.layers.{index}", ("layers", index)
        axes += [
            Axis(f"{index}/heads", heads),
            Axis(f"{index}/qk", head_size, parent=f"{index}/heads"),
            Axis(f"{index}/vo", head_size, parent=f"{index}/heads"),
            Axis(f"{index}/ffn", config.intermediate_size),
        ]
        qk, vo, ffn = (f"{index}/heads", f"{index}/qk"), (f"{index}/heads", f"{index}/vo"), (f"{index}/ffn",)
        attentions.append(Attention(module=f"{layer}.attention", heads=qk[:1], qk=qk[1:], vo=vo[1:], ffn=ffn, layer=at))
        linears = {
            "attention.q_proj": (qk, RESIDUAL),
            "attention.k_proj": (qk, RESIDUAL),
            "attention.v_proj": (vo, RESIDUAL),
            "attention.o_proj": (RESIDUAL, vo),
            "mlp.fc1": (ffn, RESIDUAL),
            "mlp.fc2": (RESIDUAL, ffn),
        }
        for name, (out, into) in linears.items():
            parameters[f"{layer}.{name}.weight"] = Parameter((out, into), at, matmul="tokens")
            if config.qkv_bias or name[-6:] not in ("q_proj", "k_proj", "v_proj"):
                parameters[f"{layer}.{name}.bias"] = Parameter((out,), at)
        for name in ("layernorm_before", "layernorm_after"):
            norms.append(f"{layer}.{name}")
            parameters |= {f"{layer}.{name}.{part}": Parameter((RESIDUAL,), at) for part in ("weight", "bias")}
    norms.append(f"{prefix}.layernorm")
    parameters |= {f"{prefix}.layernorm.{part}": Parameter((RESIDUAL,)) for part in ("weight", "bias")}
    parameters["classifier.weight"] = Parameter(((), RESIDUAL), matmul="examples")
    parameters["classifier.bias"] = Parameter(((),))
    return Layout(
        axes={axis.name: axis for axis in axes}, parameters=parameters, attentions=tuple(attentions), norms=tuple(norms)
    )


def positions(config: PretrainedConfig, tokens: int | None, targets: int | None) -> dict[str, int]:
    """How many positions an example has of each kind that `Parameter.matmul` names; they follow from the image's size."""
    patches = (config.image_size // config.patch_size) ** 2
    return {"patches": patches, "tokens": patches + (2 if config.model_type == "deit" else 1), "examples": 1}


def saved(config: PretrainedConfig) -> SavedActivations:
    """What autograd keeps of it."""
    return with_dropout(
        SavedActivations(ffn=ffn_widths(config.hidden_act)), config.hidden_dropout_prob, config.attention_probs_dropout_prob
    )
