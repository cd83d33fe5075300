"""Subnetworks as transformers models of their own: `AutoModelFor...from_pretrained(FOLDER)` loads one after `import raffm_ray`.

A deployed subnetwork's class is the stock class of its family, made smaller when it is built. Its configuration is the full model's, which
keeps scales, positions and everything else as they were, and says what is kept: the width of every axis that is cut, and the indices
where a module must know them (layers, rotary pairs, heads with a position bias). So all that stock models do works: `generate`, `save_pretrained`, pipelines.
"""

import json
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from raffm_ray.axes.indexing import AxisError, Plan, check_plan, dim_axes, selected_shape
from raffm_ray.axes.layout import is_kept, selections
from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.models.adapters.lora import merged
from raffm_ray.models.architecture import FAMILIES, HEADS, Architecture, architecture_of, fit_modules, unadapted
from raffm_ray.models.attention import IMPLEMENTATIONS, restore_indices
from raffm_ray.models.model_config import check_model_type
from raffm_ray.models.modules import install
from raffm_ray.subnetworks.native_config import stock_form
from raffm_ray.subnetworks.standalone_config import MODEL_TYPE, OWN_FIELDS, Kept

OF_A_LOADER = ("model_type", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures")
"""Fields that change while a model is loaded, and describe no part of it."""


def kept_of(architecture: Architecture, plan: Plan) -> Kept:
    """What a subnetwork's module must know of a plan: modules of two plans that agree in it are the same, whatever else they keep."""
    layout = architecture.layout
    present = {
        name for spec in layout.parameters.values() if is_kept(spec.layer, plan) for dim in spec.dims for name in dim_axes(dim)
    }
    known = layout.layer_axes | {name for site in layout.attentions for name in site.positional}
    return {
        name: plan[name].tolist() if name in known else int(plan[name].shape[-1])
        for name in layout.axes
        if name in plan and name in present | layout.layer_axes
    }


def plan_from(architecture: Architecture, kept: Kept) -> Plan:
    """A plan that keeps as much: the first indices where it does not matter which. Raises UserError for what is not of this model."""
    try:
        plan = Plan({name: np.arange(one) if isinstance(one, int) else one for name, one in kept.items()})
        check_plan(plan, architecture.layout.axes)
    except (AxisError, TypeError, ValueError) as error:
        raise UserError(f"the subnetwork's configuration: {in_short(error)}") from None
    return plan


def standalone_config(architecture: Architecture, plan: Plan) -> PretrainedConfig:
    """The configuration of a plan's subnetwork."""
    fields = {**architecture.config.to_dict(), "base_model_type": architecture.config.model_type}
    del fields["model_type"]
    fields |= {"head": architecture.head, "subnetwork": dict(kept_of(architecture, plan))}
    return config_class_of(fields)(**fields)


def config_class_of(fields: Mapping[str, Any]) -> type[PretrainedConfig]:
    """The configuration class of a deployed subnetwork's family. Raises UserError where the fields are not those of one."""
    missing = [name for name in OWN_FIELDS if name not in fields]
    if missing:
        raise UserError(f"config.json of a deployed subnetwork must have {', '.join(missing)}")
    check_model_type(fields["base_model_type"])
    return _config_class(str(fields["base_model_type"]))


def full_architecture(config: PretrainedConfig, head: str | None = None) -> Architecture:
    """The full model that a deployed subnetwork is of. Raises UserError where its family has no such head."""
    fields = {name: value for name, value in config.to_dict().items() if name not in (*OWN_FIELDS, *OF_A_LOADER)}
    return _full_architecture(json.dumps(fields, sort_keys=True, default=str), config.base_model_type, head or config.head)


@lru_cache(maxsize=8)
def _full_architecture(fields: str, base: str, head: str) -> Architecture:
    return architecture_of(AutoConfig.for_model(base, **json.loads(fields)), head)


@cache
def _config_class(base: str) -> type[PretrainedConfig]:
    """The stock configuration of a model type under the subnetworks' type; its models are made known for every task head."""
    stock = type(AutoConfig.for_model(base))
    annotations = {"base_model_type": str, "head": str, "subnetwork": dict}
    made: type[PretrainedConfig] = type(
        f"Subnetwork{stock.__name__}",
        (stock,),
        {
            "model_type": MODEL_TYPE,
            "__module__": __name__,
            "base_model_type": base,
            "head": "",
            "subnetwork": None,
            "__annotations__": annotations,
        },
    )
    if stock in AutoModel._model_mapping:
        # What some task heads build inside themselves, to be cut with them. A family of one's own need not have any.
        inner = AutoModel._model_mapping[stock]
        AutoModel._model_mapping.register(made, tuple(map(_inner, inner)) if isinstance(inner, list | tuple) else _inner(inner))
    for head, auto in HEADS.items():
        if stock in auto._model_mapping:
            models = auto._model_mapping[stock]
            listed = models if isinstance(models, list | tuple) else (models,)
            auto.register(made, tuple(_model_class(model, made, head) for model in listed))
    return made


def _model_class(stock: Any, config_class: type[PretrainedConfig], head: str) -> Any:
    """The stock model, built as large as its configuration says and then cut."""

    def build(self: Any, config: PretrainedConfig, *arguments: Any, **named: Any) -> None:
        config._attn_implementation = IMPLEMENTATIONS.get(config._attn_implementation, IMPLEMENTATIONS["sdpa"])
        stock.__init__(self, config, *arguments, **named)
        architecture = full_architecture(config, head)
        plan = plan_from(architecture, config.subnetwork)
        fit_modules(architecture, plan, self)
        for tied, name in self.all_tied_weights_keys.items():
            _tie(self, tied, self.get_parameter(name))
        present = dict(self.named_parameters())
        install(
            self,
            {
                name: torch.empty(
                    selected_shape(architecture.shapes[name], selected), device=present[name].device, dtype=present[name].dtype
                )
                for name, selected in selections(architecture.shapes, architecture.layout, plan).items()
            },
        )

    def load(cls: Any, /, *arguments: Any, config: Any = None, **named: Any) -> Any:
        config = config or config_class.from_pretrained(arguments[0])
        full_architecture(config, head)  # remembered: where weights are loaded, transformers ties none that are built on the way
        loaded = super(made, cls).from_pretrained(*arguments, config=config, **named)
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            restore_indices(module)
        return loaded

    own = {"config_class": config_class, "__module__": __name__, "__init__": build, "from_pretrained": classmethod(load)}
    made: Any = type(stock.__name__, (stock,), own)
    return made


def _inner(stock: Any) -> Any:
    """The stock model without a task head, which is no deployed model: it is only built, never loaded."""

    def refuse(cls: Any, /, place: Any, *_: Any, config: Any = None, **__: Any) -> Any:
        head = (config or AutoConfig.from_pretrained(place)).head
        raise UserError(f"{place}: a subnetwork with its task head: load it with {HEADS[head].__name__}")

    return type(stock.__name__, (stock,), {"__module__": __name__, "from_pretrained": classmethod(refuse)})


def __getattr__(name: str) -> Any:
    """The class of that name, which is made when it is first asked for: what pickle looks up."""
    stock: Any = getattr(transformers, name.removeprefix("Subnetwork"), None) if name[:1].isupper() else None
    base = getattr(getattr(stock, "config_class", None) or stock, "model_type", None)
    if base in FAMILIES:
        made = _config_class(base)
        listed = [auto._model_mapping.get(made, ()) for auto in (AutoModel, *HEADS.values())]
        models = [model for one in listed for model in (one if isinstance(one, list | tuple) else (one,))]
        for found in (made, *models):
            if found.__name__ == name:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _tie(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Makes a name of a model's parameter another one's too."""
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._parameters[attribute] = parameter


def save_standalone(folder: Path, architecture: Architecture, plan: Plan, tensors: Mapping[str, Tensor]) -> bool:
    """Writes `config.json` and `model.safetensors` of a plan's subnetwork; returns whether they are a plain checkpoint, as where nothing is cut.
    `tensors`: its parameters, by name; adapters are merged into what they adapt."""
    if architecture.adapters is not None:
        tensors = merged(tensors, architecture.layout, architecture.adapters)
    architecture, plan = unadapted(architecture, plan)
    stock = stock_form(architecture, plan)
    config = standalone_config(architecture, plan) if stock is None else stock.architecture.config
    config.save_pretrained(folder)
    named = {name if stock is None else stock.names[name]: values.detach().contiguous() for name, values in tensors.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(
        (folder / "config.json").stat().st_mode
    )  # the library lets nobody else read what it writes
    return stock is not None


def load_standalone(folder: Path, head: str) -> nn.Module:
    """The model in a folder, ready to answer. Raises UserError for a folder that holds none, or a damaged one."""
    try:
        model: nn.Module = HEADS[head].from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # whatever the library raises for files that it cannot read
        raise UserError(f"{folder}: no model that can be read: {in_short(error)}") from None
    # Where a file's bytes are mapped, tensors begin anywhere, and how an operand is aligned may change how a product rounds.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()
