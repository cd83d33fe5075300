"""The weights of a pretrained checkpoint: only plain floats are read, nothing in it is dropped silently, and its head answers the data's
classes in their order."""

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import cached_file, logging

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.models.adapters.lora import drawn
from raffm_ray.models.adapters.peft_files import read_adapters
from raffm_ray.models.architecture import HEADS, Architecture, new_model, skeleton

FLOATS = ("F64", "F32", "F16", "BF16")
"""Kinds of numbers that weights may be stored in, as safetensors names them."""
BUFFERS = ("position_ids", "attn.bias", "attn.masked_bias", "inv_freq", "position_embeddings.position_ids")
"""Ends of names of what older versions of transformers stored beside the parameters."""
NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Source:
    """A pretrained model: `place`, its folder or its name on the hub. `new_head`: whether its head is drawn anew although it has one; `adapters`: the
    folder of adapters to begin with, None for new ones."""

    place: str
    new_head: bool = False
    adapters: str | None = None


def _files(place: str) -> list[str]:
    """The checkpoint's safetensors files; none where it has none, which loading it says."""
    options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    index = cached_file(place, "model.safetensors.index.json", **options)
    if index is None:
        whole = cached_file(place, "model.safetensors", **options)
        return [] if whole is None else [str(whole)]
    parts = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return [str(path) for part in parts if (path := cached_file(place, part, **options)) is not None]


def check_plain(place: str) -> None:
    """Raises UserError for a quantized checkpoint: its numbers mean nothing without scales that a plain model has no place for."""
    method = PretrainedConfig.get_config_dict(place)[0].get("quantization_config")
    if method:
        kind = method.get("quant_method", "some method") if isinstance(method, dict) else method
        raise UserError(
            f"model.pretrained: {place} is quantized (quantization_config: {kind}): only plain float weights can be trained"
        )
    for name, kind in _kinds(place).items():
        if kind not in FLOATS and not name.endswith(BUFFERS):
            raise UserError(
                f"model.pretrained: {name} of {place} is stored as {kind}: only plain float weights ({', '.join(FLOATS)}) can be trained"
            )


def _kinds(place: str) -> dict[str, str]:
    """Name of every tensor -> the kind of its numbers; empty where a file cannot be read: loading it says why."""
    found: dict[str, str] = {}
    try:
        for file in _files(place):
            with safe_open(file, "pt") as opened:
                found |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  # no mapping
    except Exception:  # whatever the libraries raise for any kind of damage
        return {}
    return found


def pretrained_weights(source: Source, architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """The pretrained model's parameters, float32, with a freshly drawn task head where it brings none or `new_head` asks for one.

    Raises UserError when weights cannot be read, when any but the head's are missing or have other sizes than the configuration, when the
    checkpoint has parameters besides a head's that the model has no place for, and when its head answers other classes than the data has.
    """
    place = source.place
    logging.disable_progress_bar()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            model, loading = HEADS[architecture.head].from_pretrained(
                place,
                config=AutoConfig.for_model(**architecture.config.to_dict()),
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:  # whatever the library raises for files that it cannot read
            raise UserError(
                f"model.pretrained: the weights of {place} cannot be used (only safetensors are read): {in_short(error)}"
            ) from None
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own = f"{model.base_model_prefix}."
    head = _head_of(model)
    for name, there, wanted in sorted(loading["mismatched_keys"]):
        if name in head and source.new_head:
            continue
        told = "; model.new_head: true draws a new head" if name in head else ""
        raise UserError(
            f"model.pretrained: {name} of {place} has shape {tuple(there)}, and the configuration asks for {tuple(wanted)}{told}"
        )
    missing = sorted(name for name in loading["missing_keys"] if name in architecture.layout.parameters)
    lost = [name for name in missing if name not in head and "pooler" not in name]
    if lost:
        raise UserError(f"model.pretrained: {place} lacks {len(lost)} parameters that are not the task head's, such as {lost[0]}")
    _check_unexpected(place, loading["unexpected_keys"], named.keys() - head, own)
    if source.new_head:
        named |= {name: values.detach() for name, values in new_model(architecture, seed).named_parameters() if name in head}
    elif not head & set(missing):
        _align(named, head, place, architecture.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        named |= drawn(architecture.shapes, architecture.adapters)
    if source.adapters is not None:
        named |= _adapters(source.adapters, architecture)
    return {name: named[name].contiguous() for name in architecture.shapes}


def _adapters(place: str, architecture: Architecture) -> Mapping[str, Tensor]:
    """The adapters of a folder, and their head. Raises UserError for what the model has no place for."""
    tensors = read_adapters(place).tensors
    for name, values in tensors.items():
        if (wanted := architecture.shapes.get(name)) != tuple(values.shape):
            told = "has no place for it" if wanted is None else f"has {list(wanted)} there"
            raise UserError(f"model.adapters.pretrained: {place}: {name} is {list(values.shape)}, and the model {told}")
    return tensors


def new_parameters(source: Source | None, architecture: Architecture) -> frozenset[str]:
    """Names of the task head's parameters that `pretrained_weights` draws anew; none without a source. Only headers of files are read."""
    if source is None:
        return frozenset()
    head = _head_of(skeleton(architecture, Plan()))
    brought = set() if source.adapters is None else {*read_adapters(source.adapters).tensors}
    return frozenset((head if source.new_head else head - _kinds(source.place).keys()) - brought)


def _head_of(model: Any) -> set[str]:
    """Names of a model's parameters that are not its base model's; of models that are their own base, of the output layer."""
    base = model.base_model
    if base is model:
        outputs = model.get_output_embeddings()
        inside = {id(one) for name, one in model.named_parameters() if outputs is None or one is not outputs.weight}
        shared = model.get_input_embeddings().weight
        inside |= {id(shared)}
    else:
        inside = {id(one) for one in base.parameters()}
    return {name for name, one in model.named_parameters() if id(one) not in inside}


def _check_unexpected(place: str, names: Iterable[str], known: Set[str], own: str) -> None:
    """Raises UserError for parameters of a checkpoint that the model has no place for, but for those of other heads, of poolers, and of
    layers beyond those that the configuration asks for."""
    parts = {name.removeprefix(own).split(".")[0] for name in known}
    alike = {NUMBER.sub(".0.", name.removeprefix(own)) for name in known}
    left = [
        name
        for name in sorted(names)
        if name.removeprefix(own).split(".")[0] in parts
        and NUMBER.sub(".0.", name.removeprefix(own)) not in alike
        and "pooler" not in name
        and not name.endswith(BUFFERS)
    ]
    if left:
        told = ", ".join(left[:3]) + (f" and {len(left) - 3} others" if len(left) > 3 else "")
        raise UserError(
            f"model.pretrained: this kind of model has no place for {told} of {place}: without them it is another model"
        )


def _named_classes(names: Mapping[Any, Any] | None) -> list[str]:
    """A configuration's classes in order; none where they have no names of their own."""
    listed = [str(name) for _, name in sorted((names or {}).items(), key=lambda one: int(one[0]))]
    return [] if all(name == f"LABEL_{number}" for number, name in enumerate(listed)) else listed


def _align(named: dict[str, Tensor], head: set[str], place: str, config: PretrainedConfig) -> None:
    """Brings the numbers that a head answers with into the order of the data's classes, by name. Raises UserError where names differ."""
    there, wanted = _named_classes(PretrainedConfig.get_config_dict(place)[0].get("id2label")), _named_classes(config.id2label)
    if not there or not wanted or there == wanted:
        return
    order = _order(there, wanted)
    if order is None:
        raise UserError(
            f"model.pretrained: the head of {place} answers {', '.join(there[:4])}, and the data's classes are {', '.join(wanted[:4])}: name them "
            "alike, or set model.new_head: true to draw a new head"
        )
    for name in head:
        if named[name].shape[:1] == (len(wanted),):
            named[name] = named[name][order]


def _order(there: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Where each wanted class stands among those there, whatever their case; None where they are not the same."""
    known = {name.casefold(): number for number, name in enumerate(there)}
    found = [known.get(name.casefold()) for name in wanted]
    return None if None in found or len(set(found)) != len(there) else [one for one in found if one is not None]
