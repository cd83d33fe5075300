"""Configurations of usual proportions, cut models of them, and batches to train them on."""

from typing import Any

import torch

from raffm_ray.axes.layout import take_all
from raffm_ray.models.architecture import Architecture, build

ALL = ("groups", "heads", "qk", "vo", "ffn", "residual")


def cut_module(architecture, model, plan, attention="sdpa"):
    return build(
        architecture,
        {n: p.clone() for n, p in take_all(dict(model.named_parameters()), architecture.layout, plan).items()},
        plan,
        attention,
    )


_TEXT = {"vocab_size": 400, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 256}
_VISION = {
    "model_type": "vit",
    "num_channels": 1,
    "num_labels": 10,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_T5 = {
    "model_type": "t5",
    "vocab_size": 400,
    "d_model": 96,
    "d_kv": 16,
    "num_heads": 6,
    "d_ff": 384,
    "num_layers": 3,
    "dropout_rate": 0.0,
}
REALISTIC: dict[str, dict[str, Any]] = {
    "digits": {
        **_VISION,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "image_size": 8,
        "patch_size": 2,
    },
    "cifar": {
        **_VISION,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 384,
        "image_size": 32,
        "patch_size": 4,
    },
    "bert": {"model_type": "bert", **_TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "roberta": {"model_type": "roberta", **_TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 400,
        "dim": 96,
        "n_layers": 3,
        "n_heads": 6,
        "hidden_dim": 384,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 400,
        "n_embd": 96,
        "n_layer": 3,
        "n_head": 3,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    **{kind: {"model_type": kind, **_TEXT, "num_key_value_heads": 2} for kind in ("llama", "qwen2", "mistral")},
    "qwen3": {"model_type": "qwen3", **_TEXT, "num_key_value_heads": 2, "head_dim": 32},
    "t5": _T5,
    "t5_gated": {**_T5, "feed_forward_proj": "gated-gelu"},
}
DROPPING = {
    "bert": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "cifar": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "roberta": {"attention_probs_dropout_prob": 0.2},
    "distilbert": {"dropout": 0.1, "attention_dropout": 0.1},
    "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "llama": {"attention_dropout": 0.1},
    "t5": {"dropout_rate": 0.1},
    "t5_gated": {"dropout_rate": 0.1},
}
REALISTIC |= {f"{name}_dropping": REALISTIC[name] | chances for name, chances in DROPPING.items()}
LEARNS = {
    "vit": "image_classification",
    "bert": "sequence_classification",
    "roberta": "sequence_classification",
    "distilbert": "sequence_classification",
    "t5": "sequence_to_sequence",
}


def training_batch(architecture: Architecture, batch: int) -> dict[str, torch.Tensor]:
    """Random examples with labels; the last few words of every text are padding."""
    tokens, targets = (architecture.positions.get(kind, 0) for kind in ("tokens", "targets"))
    if architecture.head == "image_classification":
        size = architecture.config.image_size
        return {"pixel_values": torch.randn(batch, 1, size, size), "labels": torch.zeros(batch, dtype=torch.long)}
    words, mask = torch.randint(4, 400, (batch, tokens)), torch.ones(batch, tokens, dtype=torch.long)
    mask[:, -3:] = 0
    heads = {"sequence_classification": torch.zeros(batch, dtype=torch.long), "causal_language_modelling": words}
    labels = heads.get(architecture.head, torch.randint(4, 400, (batch, targets)))
    extra = {"decoder_input_ids": labels} if targets else {}
    return {"input_ids": words, "attention_mask": mask, "labels": labels, **extra}
