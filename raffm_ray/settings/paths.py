"""Settings that name files and folders: relative to the file or the command that gives them, absolute from then on."""

import os
from collections.abc import Callable, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.flags import is_url
from raffm_ray.basics.plugins import is_file_name
from raffm_ray.settings.base import DATA, FILE
from raffm_ray.settings.experiment import Experiment

Absolute = Callable[[Mapping[str, Any], Path], dict[str, Any]]
"""Makes the paths in nested settings absolute, from what relative ones are relative to."""


def absolute(values: Mapping[str, Any], base: Path, model: type[BaseModel] = Experiment, above: str = "") -> dict[str, Any]:
    """A copy of nested settings in which every path of a local file or folder is absolute. `base`: what relative ones are relative to.

    Raises UserError for what is not there, but is in the working directory.
    """
    result = dict(values)
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        name, kind = f"{above}.{key}" if above else key, field.json_schema_extra
        if isinstance(kind, dict) and isinstance(value, str):
            result[key] = place(value, base, kind, name)
        elif isinstance(kind, dict) and isinstance(value, list):
            result[key] = [_listed(one, base, name) for one in value]
        elif isinstance(value, Mapping) and (group := group_of(field.annotation)):
            result[key] = absolute(value, base, group, name)
    return result


def group_of(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, or holds where it is not left out."""
    inner = get_args(annotation)
    kinds = inner if NoneType in inner else (annotation,)
    return next((one for one in kinds if isclass(one) and issubclass(one, BaseModel)), None)


def _listed(value: Any, base: Path, name: str) -> Any:
    """A plug-in, which is a text or a mapping with a `name`, that of a file absolute."""
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return {**value, "name": _listed(value["name"], base, name)}
    return place(value, base, FILE, name) if isinstance(value, str) and is_file_name(value) else value


def absolute_at(path: Sequence[str], value: Any, base: Path, within: Absolute = absolute) -> Any:
    """As `absolute`, of the value of one setting or group. `path`: its keys from the top; `within`: what does it for all settings."""
    for key in reversed(path):
        value = {key: value}
    value = within(value, base)
    for key in path:
        value = value[key]
    return value


def place(text: str, base: Path, kind: Mapping[str, Any], name: str) -> str:
    """The absolute path that a setting means, or the same text where it is a name on the hub or of a package, or begins with a variable
    of the environment, which every machine has its own of.

    `kind`: `FILE`, `DATA` or `MODEL`; `name`: of the setting.
    """
    if not text or text.startswith("$") or is_url(text) or text in kind["names"]:
        return text
    given = os.path.expanduser(text)
    whole = os.path.normpath(base.resolve() / given)
    if os.path.exists(whole):
        return whole
    if os.path.exists(given) and not os.path.isabs(given):
        raise UserError(
            f"{name}: {text} is not in {base.resolve()}, where this setting was read, but in the working directory: "
            f"write {os.path.relpath(given, base.resolve())} there, or give it as --{name} {text}"
        )
    return whole if _is_path(text, whole, kind) else text


def _is_path(text: str, whole: str, kind: Mapping[str, Any]) -> bool:
    """Whether a text means a place that is not there, rather than a name on the hub."""
    if kind == FILE or text.startswith((".", "/", "~")) or text.count("/") > 1:
        return True
    if kind == DATA:
        return "/" not in text or (bool(Path(text).suffix) and os.path.isdir(os.path.dirname(whole)))
    return False
