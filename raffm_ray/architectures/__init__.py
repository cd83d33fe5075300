"""The transformer families: a model's configuration -> its axes, the dims of its parameters, and modules of any plan.

Adding a family is one file (its layout and its kinds of positions) and one row of `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.initialization import no_init_weights

from raffm_ray.architectures import encoder, vit
from raffm_ray.architectures.attention import IMPLEMENTATIONS, fit_attention
from raffm_ray.axes import Layout, Parameter, Plan, dim_size, is_kept
from raffm_ray.errors import UserError, in_short, near_miss


@dataclass(frozen=True)
class Family:
    """What one file of this folder gives.

    `layout(config, head)`: axes and dims of the model with that task head. `positions(config, tokens)`: how many positions an
    example has of each kind that `Parameter.matmul` names; `tokens` is the length of a text. `heads`: the task heads that are
    described. `saved`: how many residual streams and FFN widths autograd keeps per token and layer. `fit`: adapts a built
    attention module to its number of heads.
    """

    layout: Callable[[PretrainedConfig, str], Layout]
    positions: Callable[[PretrainedConfig, int | None], Mapping[str, int]]
    heads: tuple[str, ...]
    saved: Mapping[str, int]
    fit: Callable[[nn.Module, int], None] = fit_attention


_VISION = Family(vit.layout, vit.positions, ("image_classification",), saved={"residual": 4, "ffn": 2})
_TEXT = Family(
    encoder.layout, encoder.positions, ("sequence_classification", "question_answering"), saved={"residual": 4, "ffn": 2},
    fit=partial(fit_attention, size="attention_head_size"),
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "vit": _VISION,
    "deit": _VISION,
    "bert": _TEXT,
    "roberta": _TEXT,
    "distilbert": _TEXT,
}

HEADS: dict[str, Any] = {
    "image_classification": AutoModelForImageClassification,
    "sequence_classification": AutoModelForSequenceClassification,
    "question_answering": AutoModelForQuestionAnswering,
}
"""A task's kind -> the transformers Auto class that builds the model with its head."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """One concrete model, described: everything needed to build any subnetwork of it, but no weights."""

    config: PretrainedConfig
    head: str
    layout: Layout
    shapes: Mapping[str, tuple[int, ...]]
    positions: Mapping[str, int]
    saved: Mapping[str, int]
    fit: Callable[[nn.Module, int], None]


REFUSED_FIELDS = {
    "dtype": "parameters are float32 here",
    "torch_dtype": "parameters are float32 here",
    "problem_type": "it follows from the task",
    "return_dict": "models must answer by name",
    "architectures": "it follows from the task",
}
COUNTS = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size", "num_channels",
    "num_labels", "vocab_size", "max_position_embeddings", "dim", "n_layers", "n_heads", "hidden_dim",
}  # fmt: skip
"""Fields that count something, by any family's name for it."""


def check_model_type(model_type: object) -> None:
    """Raises UserError for a model type without a table; says which have one, and where to add it."""
    if model_type not in FAMILIES:
        raise UserError(
            f"model type {model_type!r} has no table of axes{near_miss(str(model_type), FAMILIES)}; there are tables for "
            f"{', '.join(FAMILIES)}, and a new one is a file in raffm_ray/architectures and a row of FAMILIES there"
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
        if name in COUNTS and (not isinstance(value, int) or value < 1):
            raise UserError(f"model.config.{name}: must be a whole number of at least 1, got {value!r}")
        if name not in ("num_labels", "id2label", "label2id") and not hasattr(known, name):
            raise UserError(f"model.config: {name!r} is not a field of {model_type}{near_miss(name, known.to_dict())}")
    try:
        config: PretrainedConfig = AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # whatever transformers raises for values that it cannot build from
        raise UserError(f"model.config: transformers cannot build this model: {in_short(error)}") from None
    size, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 1)
    if size % heads:
        raise UserError(f"model.config: hidden_size {size} must be a multiple of num_attention_heads {heads}")
    return config


def check_head(config: PretrainedConfig, head: str) -> None:
    """Raises UserError where the family has no such head."""
    family = FAMILIES[config.model_type]
    if head not in family.heads:
        raise UserError(f"model type {config.model_type!r} has no {head!r} head here (it has: {', '.join(family.heads)})")


def architecture_of(config: PretrainedConfig, head: str, tokens: int | None = None, targets: int | None = None) -> Architecture:
    """Describes the model that transformers would build from `config` with that task head; `tokens` is the length of a text.

    Raises UserError where the family has no such head.
    """
    check_head(config, head)
    family = FAMILIES[config.model_type]
    with torch.device("meta"), no_init_weights():
        model = _stock(config, head, "sdpa")
    config = AutoConfig.for_model(**config.to_dict())
    config.architectures = [type(model).__name__]
    layout, shapes = family.layout(config, head), {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check_layout(layout, shapes, config.model_type)
    layout = replace(layout, parameters={name: layout.parameters[name] for name in shapes})
    return Architecture(config, head, layout, shapes, family.positions(config, tokens), family.saved, family.fit)


def _stock(config: PretrainedConfig, head: str, attention: str) -> nn.Module:
    """The full transformers model; the configuration is copied, since building one changes it."""
    own = AutoConfig.for_model(**config.to_dict())
    own.architectures = own.architectures or []  # None fails where a type has several models for a head
    model: nn.Module = HEADS[head].from_config(own, attn_implementation=attention)
    return model


def _check_layout(layout: Layout, shapes: Mapping[str, tuple[int, ...]], model_type: str) -> None:
    """A table that does not describe the model that this version of transformers builds must not be used."""
    differing = sorted(set(shapes) ^ set(layout.parameters))
    if differing:
        raise UserError(
            f"the table of {model_type!r} and this transformers' model differ in {len(differing)} names: {differing[:4]}"
        )
    for name, shape in shapes.items():
        dims = layout.parameters[name].dims
        described = tuple(dim_size(dim, layout.axes) if dim else size for dim, size in zip(dims, shape, strict=False))
        if len(dims) != len(shape) or described != shape:
            raise UserError(
                f"the table of {model_type!r} describes {name} as {dims}, which is {described}, but its shape is {shape}"
            )


def new_model(architecture: Architecture, seed: int) -> nn.Module:
    """The full stock transformers model with freshly drawn weights; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _stock(architecture.config, architecture.head, "sdpa")


def skeleton(architecture: Architecture, plan: Plan, attention: str = "sdpa") -> nn.Module:
    """The module of a plan's subnetwork with parameters on the meta device; `install` gives it weights. `attention`: "sdpa" or "eager".

    It is the stock transformers model with dropped layers removed (the others keep their numbers, so a parameter has one name
    in every subnetwork) and its attention modules told their number of heads.
    """
    # Not on the meta device as a whole: what a model computes when it is built (positions, frequencies) must be there.
    # Some of it is drawn at random, and a worker that builds a module must not draw otherwise than one that remembers it.
    with no_init_weights(), torch.random.fork_rng(devices=[]):
        model = _stock(architecture.config, architecture.head, IMPLEMENTATIONS[attention])
    for owner in model.modules():
        for name, parameter in owner._parameters.items():
            owner._parameters[name] = None if parameter is None else nn.Parameter(parameter.detach().to("meta"))
    layout = architecture.layout
    for site in layout.attentions:
        if is_kept(site.layer, plan):
            heads = len(plan[site.heads]) if site.heads in plan else layout.axes[site.heads].size
            architecture.fit(model.get_submodule(site.module), heads)
    for name, spec in layout.parameters.items():
        if not is_kept(spec.layer, plan):
            _remove(model, name, spec)
    return model


def _remove(model: nn.Module, name: str, spec: Parameter) -> None:
    """Takes the layer that a dropped parameter belongs to out of its ModuleList, without renumbering the others."""
    path = name.split(".")
    for depth in range(1, len(path)):
        owner = model.get_submodule(".".join(path[: depth - 1]))
        if isinstance(owner, nn.ModuleList):
            owner._modules.pop(path[depth - 1], None)
            return
        if path[depth - 1] not in owner._modules:
            return


def install(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Gives a skeleton its parameters, whatever their shapes; returns it. The tensors are used as they are, not copied.

    Raises UserError when names are missing or left over.
    """
    names = {name for name, _ in model.named_parameters()}
    if names != set(tensors):
        raise UserError(
            f"parameters do not match the module: missing {sorted(names - set(tensors))[:3]}, unexpected {sorted(set(tensors) - names)[:3]}"
        )
    for name, tensor in tensors.items():
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        owner._parameters[attribute] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
        if attribute == "weight":
            _set_sizes(owner, tensor)
    device = next(iter(tensors.values())).device
    for owner in model.modules() if device.type != "meta" else ():
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = None if buffer is None else buffer.to(device)
    return model


def _set_sizes(owner: nn.Module, weight: Tensor) -> None:
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = weight.shape
    elif isinstance(owner, nn.LayerNorm):
        owner.normalized_shape = tuple(weight.shape)
    elif isinstance(owner, nn.Conv2d):
        owner.out_channels = weight.shape[0]
    elif isinstance(owner, nn.Embedding):
        owner.num_embeddings, owner.embedding_dim = weight.shape


def build(architecture: Architecture, tensors: Mapping[str, Tensor], plan: Plan, attention: str = "sdpa") -> nn.Module:
    """The subnetwork's module with its weights (`take_all`'s result)."""
    return install(skeleton(architecture, plan, attention), tensors)
