"""Reads an experiment: a YAML file, overridden by flags. Every mistake is one line."""

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raffm_ray.basics.errors import UserError, in_short, near_miss, shortened
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.former_values import UNSAID
from raffm_ray.settings.paths import Absolute, absolute, absolute_at, group_of
from raffm_ray.settings.plugins import found_again, with_plugins


def _field_names(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that are allowed at a path of nested settings."""
    annotation: Any = model
    for part in path:
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            annotation = (get_args(annotation) or (None,))[-1]  # the values of a table of settings
        elif str(part) in annotation.model_fields:
            annotation = annotation.model_fields[str(part)].annotation
            annotation = group_of(annotation) or annotation
        else:
            return []
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


EMPTY = {"dict_type": "{}", "model_type": "{}", "list_type": "[]", "tuple_type": "[]"}
"""What stands for no value, where a key is left alone: by the kind of problem that it is."""


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
    if problem["input"] is None and problem["type"] in EMPTY:
        return f"{where}: nothing is written below it: leave out the key, or write {EMPTY[problem['type']]}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if problem["type"] == "tuple_type" and isinstance(problem["input"], str):
        return f"{where}: expected a list, such as [{json.dumps(problem['input'])}], got a text"
    given = "" if isinstance(problem["input"], dict) else f", got {shortened(problem['input'])}"
    return f"{where}: {message}{given}" if where else message


DEEPEST, MOST_VALUES, LARGEST = 50, 100_000, 2**63 - 1
"""Of settings: how far they are nested, how many there are, each counted wherever an alias repeats it, and the size of a whole number."""


def check_plain(values: object, source: str = "") -> None:
    """Raises UserError unless nested settings are of numbers, texts, lists and mappings that can be written down again.

    What they hold is met in their order, one after the other, so that settings that would never end are refused as well.
    """
    waiting, met = [(values, source, 0)], 0
    while waiting:
        value, where, depth = waiting.pop()
        met += 1
        if met > MOST_VALUES or depth > DEEPEST:
            rule = f"more than {MOST_VALUES:,} values" if met > MOST_VALUES else f"nested more than {DEEPEST} deep"
            raise UserError(f"{where[:200]}: {rule}: no settings are so many or so deep")
        below: list[tuple[Any, Any]] = []
        if isinstance(value, Mapping):
            below = [(key, inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            below = list(enumerate(value[:MOST_VALUES]))
        elif isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{where}: a whole number beyond 64 bits")
        elif isinstance(value, float) and not isfinite(value):
            raise UserError(f"{where}: input should be a finite number, got {value}")
        elif isinstance(value, str):
            _check_text(value, where)
        elif value is not None and not isinstance(value, int | float):
            raise UserError(f"{where}: expected a number, a text, a list or a mapping, got {shortened(value)}")
        for key, inner in reversed(below):
            if not isinstance(key, str | int) or (isinstance(key, int) and abs(key) > LARGEST):
                raise UserError(f"{where or 'settings'}: a key must be a text, got {type(key).__name__}")
            if isinstance(key, str):
                _check_text(key, where or "settings")
            waiting.append((inner, f"{where}{': ' if where == source and where else '.' if where else ''}{key}", depth + 1))


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the text {shortened(text)} cannot be written as UTF-8") from None


def parse(values: Mapping[str, Any], plugins: Sequence[str] = ()) -> Experiment:
    """Validates nested settings, in which paths are relative to the working directory. `plugins`: those that join the settings' own. Raises
    UserError with one line that names the key, the rule and the value."""
    check_plain(values)
    return _validated(with_plugins(absolute(values, Path.cwd()), plugins))


def resolved(experiment: Experiment) -> Experiment:
    """An experiment as `parse` would have read it: its paths absolute, its plug-ins imported. Raises UserError as `parse`."""
    return parse(experiment.model_dump(mode="json", exclude_unset=True))


def _validated(values: Mapping[str, Any]) -> Experiment:
    if {"experiment", "space"} <= set(values):
        raise UserError("this is a study: raffm-ray study runs it, raffm_ray.load_study reads it")
    try:
        return Experiment.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(one_line(error)) from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also reads 1e-6 and 1.5e9 as numbers, as YAML 1.2 and everybody does, and refuses a key that is there twice."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Takes in what `<<` names, each key once, so that mappings which take in each other again and again do not grow without end."""
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in keys:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
                keys.add((key.tag, key.value))
        super().flatten_mapping(node)
        once = {(key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key): (key, value) for key, value in node.value}
        node.value = list(once.values())


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _strict_load(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{place}: not valid YAML: {in_short(getattr(error, 'problem', None) or error)}") from None
    # Dates that do not exist, numbers of thousands of digits, endless nesting, tags over what they are not of.
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML: {in_short(error)}") from None


def _flag_value(word: str, flag: str) -> Any:
    try:
        return _strict_load(word, flag)
    except UserError as error:
        quoted = json.dumps(word[:40], ensure_ascii=False)
        raise UserError(f"{error}; a text of such letters needs quotes: '{quoted}', or in a list: '[{quoted}]'") from None


def pairs_of(flags: Sequence[str]) -> list[tuple[str, str]]:
    """(--key.path, value) of `--key.path value` or `--key.path=value`. Raises UserError for anything else."""
    words = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--") and "=" in flag else [flag])]
    for position in range(0, len(words), 2):
        if not words[position].startswith("--") or position + 1 == len(words):
            raise UserError(f"{words[position]!r}: expected pairs like --clients.count 200")
    return list(zip(words[::2], words[1::2], strict=True))


def override(values: Mapping[str, Any], flags: Sequence[str], within: Absolute = absolute) -> dict[str, Any]:
    """Sets `pairs_of` flags, values read as YAML, in a copy of nested settings; paths in flags are relative to the working directory.

    `within`: what makes paths of such settings absolute.
    """
    result: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for flag, word in pairs_of(flags):
        target = result
        *path, last = flag[2:].split(".")
        for part in path:
            child = target.get(part)
            if child is not None and not isinstance(child, dict):
                raise UserError(f"{flag}: {part!r} has no keys below it")
            target[part] = dict(child or {})
            target = target[part]
        target[last] = absolute_at([*path, last], _flag_value(word, flag), Path.cwd(), within)
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
    check_plain(values, str(path))
    return values


def load(path: Path | str, flags: Sequence[str] = (), plugins: Sequence[str] = ()) -> Experiment:
    """Reads a YAML file, in which paths are relative to its folder, and applies flags, of which they are relative to the working directory.

    `plugins`: files and modules that add rows to tables, besides those of the file. Raises UserError for anything wrong with either.
    """
    values = override(absolute(read_mapping(Path(path)), Path(path).parent), flags)
    check_plain(values)
    return _validated(with_plugins(values, plugins))


def load_recorded(path: Path, flags: Sequence[str] = (), plugins: Sequence[str] = ()) -> Experiment:
    """As `load`, of what a run recorded: its paths stay as they are there, and plug-ins are what they were, where they were or as given."""
    values = override(read_mapping(path), flags)
    check_plain(values)
    return _validated(with_plugins(found_again(values, path.parent, plugins), installed_too=False))


def with_unsaid(experiment: Experiment) -> Experiment:
    """A run's experiment with what it did in place of defaults of settings that there were not yet."""
    for (section, name), value in UNSAID.items():
        group = getattr(experiment, section)
        if name not in group.model_fields_set:
            experiment = experiment.model_copy(update={section: group.model_copy(update={name: value})})
    return experiment


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML, enough to repeat the run."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
