"""Reading an experiment: a YAML file gives the base, flags override it; every mistake is one line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raffm_ray.errors import UserError, near_miss
from raffm_ray.settings import Experiment


def _field_names(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that are allowed at a path of nested settings."""
    annotation: Any = model
    for part in path:
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            annotation = (get_args(annotation) or (None,))[-1]  # the values of a table of settings
        elif str(part) in annotation.model_fields:
            annotation = annotation.model_fields[str(part)].annotation
        else:
            return []
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def one_line(error: ValidationError, model: type[BaseModel] = Experiment) -> str:
    """The problem of a validation that says most, as `key: rule, got value`, with a near miss for unknown keys."""
    # A misspelt key also leaves its true name missing: the spelling is the mistake.
    problem = min(error.errors(), key=lambda one: {"extra_forbidden": 0, "missing": 2}.get(one["type"], 1))
    *path, last = problem["loc"] or ("",)
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key{near_miss(str(last), _field_names(model, path))}"
    if problem["type"] == "missing":
        return f"{where}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
    return f"{where}: {message}{given}" if where else message


def parse(values: Mapping[str, Any]) -> Experiment:
    """Validates nested settings. Raises UserError with one line that names the key, the rule and the value."""
    try:
        return Experiment.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(one_line(error)) from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also reads 1e-6 and 1.5e9 as numbers, as YAML 1.2 and everybody does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _strict_load(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, RecursionError) as error:  # dates that do not exist, numbers of thousands of digits, endless nesting
        raise UserError(f"{source}: not valid YAML: {error}") from None


def override(values: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Sets `--key.path value` (or `--key.path=value`) pairs, values read as YAML, in a copy of nested settings."""
    result: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    words = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--") and "=" in flag else [flag])]
    for position in range(0, len(words), 2):
        flag = words[position]
        if not flag.startswith("--") or position + 1 == len(words):
            raise UserError(f"{flag!r}: expected pairs like --clients.count 200")
        target = result
        *path, last = flag[2:].split(".")
        for part in path:
            child = target.get(part)
            if child is not None and not isinstance(child, dict):
                raise UserError(f"{flag}: {part!r} has no keys below it")
            target[part] = dict(child or {})
            target = target[part]
        target[last] = _strict_load(words[position + 1], flag)
    return result


def read_mapping(path: Path) -> dict[str, Any]:
    """What a YAML file says. Raises UserError for one that is not there, cannot be read, or holds no mapping."""
    if not path.is_file():
        beside = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{near_miss(str(path), beside) if beside else ''}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    values = _strict_load(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def load(path: Path, flags: Sequence[str] = ()) -> Experiment:
    """Reads a YAML file and applies flags. Raises UserError for anything wrong with either."""
    return parse(override(read_mapping(path), flags))


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML, enough to repeat the run."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
