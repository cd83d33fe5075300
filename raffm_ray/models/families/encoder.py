"""Post-norm text encoders: BERT, RoBERTa and DistilBERT, for sequence classification and question answering.

They are one architecture under three sets of names, so a family is one row of names. Exact permutations: query/key dimensions per
head; value dimensions per head with the output projection's columns; whole heads; FFN neurons; the residual stream everywhere, word,
position and type embeddings, pooler and task head included.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig

from raffm_ray.axes.indexing import Axis
from raffm_ray.axes.layout import Attention, Layout, Parameter
from raffm_ray.models.saved_activations import SavedActivations, ffn_widths, with_dropout

RESIDUAL = ("residual",)


@dataclass(frozen=True)
class Names:
    """Where one model type keeps its parts: below the base model, and below each of its layers.

    `heads`: for every task head, the linear layers outside the base model (or its pooler), by the kind of positions that they see;
    the first reads the residual stream, the others what it made of it.
    """

    embeddings: tuple[str, ...]
    layer: str
    attention: str
    query: str
    key: str
    value: str
    output: str
    attention_norm: str
    up: str
    down: str
    ffn_norm: str
    heads: Mapping[str, Mapping[str, str]]


_BERT_LAYER = {
    "layer": "encoder.layer.{}",
    "attention": "attention.self",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
NAMES: dict[str, Names] = {
    "bert": Names(
        embeddings=("word_embeddings", "position_embeddings", "token_type_embeddings"),
        heads={
            "sequence_classification": {"bert.pooler.dense": "examples", "classifier": "examples"},
            "question_answering": {"qa_outputs": "tokens"},
        },
        **_BERT_LAYER,
    ),
    "roberta": Names(
        embeddings=("word_embeddings", "position_embeddings", "token_type_embeddings"),
        heads={
            "sequence_classification": {"classifier.dense": "examples", "classifier.out_proj": "examples"},
            "question_answering": {"qa_outputs": "tokens"},
        },
        **_BERT_LAYER,
    ),
    "distilbert": Names(
        embeddings=("word_embeddings", "position_embeddings"),
        heads={
            "sequence_classification": {"pre_classifier": "examples", "classifier": "examples"},
            "question_answering": {"qa_outputs": "tokens"},
        },
        layer="transformer.layer.{}",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        ffn_norm="output_layer_norm",
    ),
}


def layout(config: PretrainedConfig, head: str) -> Layout:
    """Axes and dims of a BERT-like model with its task head."""
    base, names = config.model_type, NAMES[config.model_type]
    # DistilBERT's own field names are mapped to these by transformers, all but the FFN's.
    heads, hidden = config.num_attention_heads, config.hidden_size
    ffn_size = config.hidden_dim if base == "distilbert" else config.intermediate_size
    axes = [Axis("residual", hidden), Axis("layers", config.num_hidden_layers)]
    parameters = {f"{base}.embeddings.{name}.weight": Parameter(((), RESIDUAL)) for name in names.embeddings}
    norms, attentions = [f"{base}.embeddings.LayerNorm"], []
    parameters |= {f"{norms[0]}.{part}": Parameter((RESIDUAL,)) for part in ("weight", "bias")}
    for index in range(config.num_hidden_layers):
        layer, at = f"{base}.{names.layer.format(index)}", ("layers", index)
        qk, vo, ffn = (f"{index}/heads", f"{index}/qk"), (f"{index}/heads", f"{index}/vo"), (f"{index}/ffn",)
        axes += [
            Axis(f"{index}/heads", heads),
            Axis(f"{index}/qk", hidden // heads, parent=f"{index}/heads"),
            Axis(f"{index}/vo", hidden // heads, parent=f"{index}/heads"),
            Axis(f"{index}/ffn", ffn_size),
        ]
        attentions.append(Attention(module=f"{layer}.{names.attention}", heads=qk[:1], qk=qk[1:], vo=vo[1:], ffn=ffn, layer=at))
        for name, out, into in (
            (names.query, qk, RESIDUAL),
            (names.key, qk, RESIDUAL),
            (names.value, vo, RESIDUAL),
            (names.output, RESIDUAL, vo),
            (names.up, ffn, RESIDUAL),
            (names.down, RESIDUAL, ffn),
        ):
            parameters[f"{layer}.{name}.weight"] = Parameter((out, into), at, matmul="tokens")
            parameters[f"{layer}.{name}.bias"] = Parameter((out,), at)
        for name in (names.attention_norm, names.ffn_norm):
            norms.append(f"{layer}.{name}")
            parameters |= {f"{layer}.{name}.{part}": Parameter((RESIDUAL,), at) for part in ("weight", "bias")}
    for position, (name, kind) in enumerate(names.heads[head].items()):
        parameters[f"{name}.weight"] = Parameter(((), () if position else RESIDUAL), matmul=kind)
        parameters[f"{name}.bias"] = Parameter(((),))
    return Layout(
        axes={axis.name: axis for axis in axes}, parameters=parameters, attentions=tuple(attentions), norms=tuple(norms)
    )


def positions(config: PretrainedConfig, tokens: int | None, targets: int | None) -> dict[str, int]:
    """How many positions an example has: `tokens` of text, the longest that the model takes where it is not given."""
    return {"tokens": tokens or config.max_position_embeddings, "examples": 1}


def saved(config: PretrainedConfig) -> SavedActivations:
    """What autograd keeps of it."""
    if config.model_type == "distilbert":
        return with_dropout(SavedActivations(ffn=ffn_widths(config.activation)), config.dropout, config.attention_dropout)
    return with_dropout(
        SavedActivations(ffn=ffn_widths(config.hidden_act)), config.hidden_dropout_prob, config.attention_probs_dropout_prob
    )
