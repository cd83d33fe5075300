"""The transformer families: a model's configuration -> its axes, the dims of its parameters, and modules of any plan.

Adding a family is one file (its layout and its kinds of positions) and one row of `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from raffm_ray.axes.indexing import Plan, dim_size, kept_size
from raffm_ray.axes.layout import Attention, Layout, is_kept
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.registry import Table
from raffm_ray.models.adapters.lora import Adapters, Wanted, add_adapters, with_adapters, without_adapters
from raffm_ray.models.attention import IMPLEMENTATIONS, fit_attention
from raffm_ray.models.families import decoder, encoder, gpt2, rope, t5, vit
from raffm_ray.models.families.vocabulary import with_vocabulary
from raffm_ray.models.modules import install, remove_layers, without_weights
from raffm_ray.models.saved_activations import SavedActivations

Fit = Callable[[nn.Module, Attention, Plan, Layout], None]
"""Adapts a built attention module, described by a site of the layout, to a plan; it may not keep weights."""


@dataclass(frozen=True)
class Family:
    """What one file of `families` gives.

    `layout(config, head)`: axes and dims of the model with that task head. `positions(config, tokens, targets)`: how many
    positions an example has of each kind that `Parameter.matmul` names; `tokens` is the length of a text, `targets` of the one that
    is written. `saved(config)`: what autograd keeps of it. `heads`: the task heads that are described. `stock`: a kind of axis, the same in
    every layer, or an axis of layers -> the field of the configuration that says how long it is, where that is all it says. `fit`: adapts a
    built attention module to a plan.
    """

    layout: Callable[[PretrainedConfig, str], Layout]
    positions: Callable[[PretrainedConfig, int | None, int | None], Mapping[str, int]]
    saved: Callable[[PretrainedConfig], SavedActivations]
    heads: tuple[str, ...]
    stock: Mapping[str, str]
    fit: Fit = fit_attention


_USUAL = {"ffn": "intermediate_size", "layers": "num_hidden_layers"}
_VISION = Family(layout=vit.layout, positions=vit.positions, saved=vit.saved, heads=("image_classification",), stock=_USUAL)
_TEXT = Family(
    layout=encoder.layout,
    positions=encoder.positions,
    saved=encoder.saved,
    heads=("sequence_classification", "question_answering"),
    stock=_USUAL,
    fit=partial(fit_attention, size="attention_head_size"),
)
_ROPE = Family(layout=rope.layout, positions=decoder.positions, saved=rope.saved, heads=decoder.HEADS, stock=_USUAL, fit=rope.fit)
_T5 = {"ffn": "d_ff", "encoder/layers": "num_layers", "decoder/layers": "num_decoder_layers"}
_FAMILIES = {
    "vit": _VISION,
    "deit": _VISION,
    "bert": _TEXT,
    "roberta": _TEXT,
    "distilbert": replace(_TEXT, stock={"ffn": "hidden_dim", "layers": "n_layers"}),
    "gpt2": Family(
        layout=gpt2.layout,
        positions=decoder.positions,
        saved=gpt2.saved,
        heads=decoder.HEADS,
        stock={"ffn": "n_inner", "layers": "n_layer"},
        fit=gpt2.fit,
    ),
    "llama": _ROPE,
    "qwen2": _ROPE,
    "qwen3": _ROPE,
    "mistral": _ROPE,
    "t5": Family(
        layout=t5.layout, positions=t5.positions, saved=t5.saved, heads=("sequence_to_sequence",), stock=_T5, fit=t5.fit
    ),
}
FAMILIES: Table[Family] = Table(
    "family", _FAMILIES, without_settings="a family's own settings are fields of its configuration, in model.config"
)

HEADS: dict[str, Any] = {
    "image_classification": AutoModelForImageClassification,
    "sequence_classification": AutoModelForSequenceClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "causal_language_modelling": AutoModelForCausalLM,
    "sequence_to_sequence": AutoModelForSeq2SeqLM,
}
"""A task's kind -> the transformers Auto class that builds the model with its head."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """One concrete model, described: everything needed to build and train any subnetwork of it, but no weights. `class_weights`: what an
    example of each class counts in the loss that it is trained for, empty where all count the same; `class_shares`: of all clients' examples together, that a
    client's own are compared with, empty where they are not; `objective`: a row of OBJECTIVES that
    it is trained and measured by, empty for its head's, and `own` settings of plug-ins that this may have; `frozen_dtype`: in which parameters that nobody trains are kept and sent.

    `attention`: how its modules compute attention, "sdpa" or "eager" (see attention_choice.py); `saved` is what autograd keeps with it. `recomputes`:
    whether training computes the blocks of its stacks again in the backward pass, and keeps only what they read.
    """

    config: PretrainedConfig
    head: str
    layout: Layout
    shapes: Mapping[str, tuple[int, ...]]
    positions: Mapping[str, int]
    saved: SavedActivations
    fit: Fit
    class_weights: tuple[float, ...] = ()
    class_shares: tuple[float, ...] = ()
    attention: str = "sdpa"
    objective: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    frozen_dtype: torch.dtype = torch.float32
    adapters: Adapters | None = None
    recomputes: bool = False

    @cached_property
    def trained_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the parameters that are trained, in the model's order: those of a flat array that is sent, summed and averaged."""
        specs = self.layout.parameters
        return (
            self.shapes if not self.frozen_shapes else {name: one for name, one in self.shapes.items() if not specs[name].frozen}
        )

    @cached_property
    def frozen_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the parameters that nobody trains, in the model's order."""
        return {name: one for name, one in self.shapes.items() if self.layout.parameters[name].frozen}


def check_head(model_type: str, head: str) -> None:
    """Raises UserError where the family has no such head."""
    heads = FAMILIES[model_type].heads
    if head not in heads:
        raise UserError(f"model type {model_type!r} has no {head!r} head here (it has: {', '.join(heads)})")


def architecture_of(config: PretrainedConfig, head: str, tokens: int | None = None, targets: int | None = None) -> Architecture:
    """Describes the model that transformers would build from `config` with that task head.

    `tokens` is the length of a text, `targets` that of the text which is written from it, where the head has both.

    Raises UserError where the family has no such head.
    """
    check_head(config.model_type, head)
    family = FAMILIES[config.model_type]
    with torch.device("meta"), no_init_weights():
        model = _stock(config, head, "sdpa")
    config = AutoConfig.for_model(**config.to_dict())
    config.architectures = [type(model).__name__]
    layout, shapes = family.layout(config, head), {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check_layout(layout, shapes, config.model_type)
    layout = with_vocabulary(layout, shapes, config, head)
    layout = replace(layout, parameters={name: layout.parameters[name] for name in shapes})
    return Architecture(
        config=config,
        head=head,
        layout=layout,
        shapes=shapes,
        positions=family.positions(config, tokens, targets),
        saved=family.saved(config),
        fit=family.fit,
    )


def adapted(architecture: Architecture, settings: Wanted) -> Architecture:
    """The architecture with adapters, and all else frozen but for a task head. Raises UserError as `with_adapters`."""
    words = getattr(architecture.config, "vocab_size", None)
    layout, shapes, adapters = with_adapters(architecture.layout, architecture.shapes, settings, words)
    return replace(architecture, layout=layout, shapes=shapes, adapters=adapters)


def with_sketches(architecture: Architecture, sketched: bool) -> Architecture:
    """The architecture whose adapters are `sketched`, as of `Adapters`, or not; the same where that changes nothing."""
    adapters = architecture.adapters
    if adapters is None or adapters.sketched == sketched:
        return architecture
    return replace(architecture, adapters=replace(adapters, sketched=sketched))


def unadapted(architecture: Architecture, plan: Plan) -> tuple[Architecture, Plan]:
    """The architecture without adapters, of which nothing is frozen, and a plan without their ranks: what `merged` parameters are of."""
    if architecture.adapters is None:
        return architecture, plan
    layout = without_adapters(architecture.layout)
    shapes = {name: architecture.shapes[name] for name in layout.parameters}
    kept = Plan({name: indices for name, indices in plan.items() if name in layout.axes})
    return replace(architecture, layout=layout, shapes=shapes, adapters=None), kept


def _stock(config: PretrainedConfig, head: str, attention: str) -> nn.Module:
    """The full transformers model; the configuration is copied, since building one changes it."""
    own = AutoConfig.for_model(**config.to_dict())
    own.architectures = own.architectures or []  # None fails where a type has several models for a head
    model: nn.Module = HEADS[head].from_config(own, attn_implementation=attention)
    model.tie_weights()  # type: ignore[operator]  # a PreTrainedModel's, untyped; `no_init_weights` leaves it out
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
        return add_adapters(_stock(architecture.config, architecture.head, "sdpa"), architecture.adapters)


def skeleton(architecture: Architecture, plan: Plan, attention: str | None = None) -> nn.Module:
    """The module of a plan's subnetwork with parameters on the meta device; `install` gives it weights. `attention`: "sdpa", "eager", or None
    for the architecture's own.

    It is the stock transformers model with dropped layers removed (the others keep their numbers, so a parameter has one name
    in every subnetwork) and its attention modules fitted to the plan.
    """
    # Not on the meta device as a whole: what a model computes when it is built (positions, frequencies) must be there.
    # Some of it is drawn at random, and a worker that builds a module must not draw otherwise than one that remembers it.
    with no_init_weights(), torch.random.fork_rng(devices=[]):
        stock = _stock(architecture.config, architecture.head, IMPLEMENTATIONS[attention or architecture.attention])
        model = without_weights(add_adapters(stock, architecture.adapters))
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            # Training needs no cache, and what has been through one is laid out so that fused attention refuses it on a CPU.
            # `generate` asks for a cache itself.
            module.config.use_cache = False
    fit_modules(architecture, plan, model)
    return model


def fit_modules(architecture: Architecture, plan: Plan, model: nn.Module) -> None:
    """Takes the layers that a plan drops out of a full model and fits its attention modules to the plan, whatever its weights are."""
    layout = architecture.layout
    for site in layout.attentions:
        if is_kept(site.layer, plan):
            architecture.fit(model.get_submodule(site.module), site, plan, layout)
    remove_layers(model, layout, plan)


def skeleton_key(architecture: Architecture, plan: Plan) -> object:
    """What a plan's skeleton depends on: plans with equal keys differ only in weights, so one may serve the other.

    That is the width of every axis, the layers that are kept, and the kept indices of the axes that attention modules must know.
    """
    layout = architecture.layout
    known = sorted(layout.layer_axes | {name for site in layout.attentions for name in site.positional})
    widths = tuple(kept_size(name, layout.axes, plan) for name in layout.axes)
    return widths, tuple((name, plan[name].shape, plan[name].tobytes()) for name in known if name in plan)


def build(architecture: Architecture, tensors: Mapping[str, Tensor], plan: Plan, attention: str | None = None) -> nn.Module:
    """The subnetwork's module with its weights (`take_all`'s result)."""
    return install(skeleton(architecture, plan, attention), tensors)
