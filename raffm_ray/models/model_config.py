"""A model's configuration as an experiment gives it: every mistake in it is one line."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from raffm_ray.basics.errors import UserError, in_short, near_miss, shortened
from raffm_ray.models.architecture import FAMILIES

REFUSED_FIELDS = {
    "dtype": "parameters are float32 here",
    "torch_dtype": "parameters are float32 here",
    "problem_type": "it follows from the task",
    "return_dict": "models must answer by name",
    "architectures": "it follows from the task",
}


COUNTS = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "num_channels",
    "num_labels",
    "vocab_size",
    "max_position_embeddings",
    "dim",
    "n_layers",
    "n_heads",
    "hidden_dim",
    "n_embd",
    "n_layer",
    "n_head",
    "n_positions",
    "num_key_value_heads",
    "head_dim",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
}
"""Fields that count something, by any family's name for it."""


MOST = {
    "num_labels": 1_000_000,
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_decoder_layers"), 1000),
}
"""Of things that are made one by one when a model is described; more would take hours."""


UNDECLARED_FIELDS = {"num_labels", "id2label", "label2id", "decoder_start_token_id"}
"""Fields that every configuration takes although it does not list them."""


def check_model_type(model_type: object) -> None:
    """Raises UserError for a model type without a table; says which have one, and where to add it."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"model type {shortened(model_type)} has no table of axes{near_miss(str(model_type), FAMILIES)}; there are tables for "
            f"{', '.join(FAMILIES)}, and a new one is a file in raffm_ray/models/families and a row of FAMILIES in raffm_ray/models/architecture.py"
        )


def parse_config(settings: Mapping[str, Any]) -> PretrainedConfig:
    """A transformers configuration from a mapping with `model_type`. Raises UserError for an unknown type or field."""
    fields = dict(settings)
    model_type = fields.pop("model_type", None)
    check_model_type(model_type)
    known = AutoConfig.for_model(model_type)
    for name, value in fields.items():
        if name in REFUSED_FIELDS:
            raise UserError(f"model.config: {name!r} cannot be set: {REFUSED_FIELDS[name]}")
        if name in COUNTS and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"model.config.{name}: must be a whole number of at least 1, got {shortened(value)}")
        if name in COUNTS and value > MOST.get(name, 2**31 - 1):
            raise UserError(f"model.config.{name}: must be at most {MOST.get(name, 2**31 - 1):,}, got {value:,}")
        if name not in UNDECLARED_FIELDS and not hasattr(known, name):
            raise UserError(f"model.config: {name!r} is not a field of {model_type}{near_miss(name, known.to_dict())}")
    try:
        config: PretrainedConfig = AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # whatever transformers raises for values that it cannot build from
        raise UserError(f"model.config: transformers cannot build this model: {in_short(error)}") from None
    size, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 1)
    if size % heads and getattr(config, "head_dim", None) is None:
        raise UserError(f"model.config: hidden_size {size} must be a multiple of num_attention_heads {heads}")
    return config
