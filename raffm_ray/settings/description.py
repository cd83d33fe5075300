"""What every setting is, from the pydantic models: its type, limits, default and meaning, as text."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import isclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raffm_ray.basics.registry import PLUGIN_SETTINGS

WORDS = {int: "integer", float: "number", bool: "true or false", str: "text", Any: "anything"}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "at least", "max_length": "at most"}
TABLE = re.compile(r"raffm_ray(?:\.\w+)+\.[A-Z][A-Z_]+\b")
"""A table of names that a description refers to."""


@dataclass(frozen=True)
class Setting:
    """One setting. `path`: its dotted name; `type` and `default`: with code in backticks; `meaning`: as the field says it."""

    path: str
    type: str
    default: str
    meaning: str


def type_text(annotation: Any) -> str:
    """A field's type in words: `one of ...`, `list of text`, `number or none`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(inner[0])
    if origin is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in inner) if len(inner) > 1 else f"`{inner[0]}`"
    if origin in (Union, UnionType):
        return " or ".join(type_text(one) for one in [*(one for one in inner if one is not NoneType), *{NoneType} & set(inner)])
    if annotation is NoneType:
        return "none"
    if origin in (tuple, list):
        return f"list of {_several(inner[0])}"
    if origin in (dict, Mapping):
        if inner[1] is Any:
            return "mapping"
        below = type_text(inner[1])
        return f"mapping from {type_text(inner[0])} to {f'({below})' if ' to ' in below else below}"
    if isclass(annotation) and issubclass(annotation, BaseModel):
        return "a group of settings"
    return WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _several(annotation: Any) -> str:
    words = type_text(annotation)
    return {"text": "texts", "integer": "integers", "number": "numbers", "a group of settings": "groups of settings"}.get(
        words, words
    )


def limits_text(field: FieldInfo) -> str:
    """What a value has to satisfy besides its type."""
    found = []
    for rule in field.metadata:
        for name, sign in LIMITS.items():
            if (limit := getattr(rule, name, None)) is not None:
                unit = {"min_length": " of them", "max_length": " characters"}.get(name, "")
                found.append(f"{sign} {limit:g}{unit}")
        if (pattern := getattr(rule, "pattern", None)) is not None:
            found.append(f"matches `{pattern}`")
    return ", ".join(found)


def default_text(field: FieldInfo) -> str:
    """A field's default as YAML would have it, in backticks."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, str) and re.fullmatch(r"[\w.-]+", value):
        return f"`{value}`"
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`"


def table_at(name: str) -> Mapping[str, Any] | None:
    """The table that a dotted name leads to, None where it is none. Raises AttributeError where there is nothing of that name."""
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    return found if isinstance(found, Mapping) else None


def groups(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel], list[Setting]]]:
    """(dotted name, model, its own settings) of a model and of every group of settings inside it, in their order."""
    own, below = list[Setting](), list[tuple[str, type[BaseModel]]]()
    for name, field in model.model_fields.items():
        full = f"{path}.{name}" if path else name
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if isclass(one) and issubclass(one, BaseModel)]
        if inner and inner[0] is field.annotation:
            below.append((full, inner[0]))
            continue
        if inner:
            optional = NoneType in get_args(field.annotation)
            below.append((full if optional else f"{full}.<name>", inner[0]))
        kind = ", ".join(part for part in (type_text(field.annotation), limits_text(field)) if part)
        if full == "plugin_settings":
            below += [(f"{full}.{key}", one) for key, one in PLUGIN_SETTINGS.items()]
        own.append(Setting(full, kind, default_text(field), field.description or ""))
    yield path, model, own
    for full, group in below:
        yield from groups(group, full)
