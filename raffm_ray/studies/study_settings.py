"""A study as its YAML file says it: typed, frozen, validated."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from raffm_ray.basics.errors import UserError
from raffm_ray.settings.base import FILE, Settings
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.former_values import with_present_values
from raffm_ray.settings.loading import one_line, override, parse, read_mapping
from raffm_ray.settings.paths import absolute, absolute_at, place
from raffm_ray.settings.plugins import found_again

PRESENT_MEASURES = {"full": "full_model", "worst_class": "worst_device_type"}
"""What earlier versions called a measure -> what it is called now."""


def present_measure(name: str) -> str:
    """The name that a measure, as an earlier version may have called it, has now."""
    return PRESENT_MEASURES.get(name, name)


def present_constraint(text: str) -> str:
    """A constraint with the name that its measure has now."""
    return re.sub(r"\w+", lambda found: present_measure(found[0]), text, count=1)


DATABASES: Mapping[str, str] = {"sqlite": "", "postgresql": "postgresql", "mysql": "mysql"}
"""Databases that a study can be kept in -> the extra of this package that installs what they need."""


class Study(Settings):
    """What is searched, for what, and how."""

    name: str = Field(default="study", pattern=r"^[\w.-]+$", description="name of the study; default: the name of the file")
    experiment: str | dict[str, Any] = Field(
        description="the configuration of every trial: a YAML file, relative to the folder of this one, or its content"
    )
    settings: dict[str, Any] = Field(default={}, description="settings in which all trials differ from `experiment`")
    space: dict[str, Any] = Field(
        min_length=1,
        description="mapping from the dotted name of a setting to a list of choices, or to a range with `low`, `high`, and optionally `step` and `log`",
    )
    objectives: tuple[str, ...] = Field(
        min_length=1,
        description="one or several of `full_model`, `worst_device_type`, `curve_area`, `bytes`, `simulated_seconds`, `energy_joules`",
    )
    constraints: tuple[str, ...] = Field(
        default=(), description="conditions that a trial has to meet, such as `worst_device_type >= 0.85` and `bytes <= 2e8`"
    )
    trials: int = Field(
        default=30, ge=1, description="number of trials; a trial that was interrupted is started again and counts once"
    )
    parallel: int = Field(
        default=1,
        ge=1,
        description="trials that run at the same time, each on one core; 1: one after the other, each with the pool of the experiment",
    )
    seeds: tuple[int, ...] = Field(
        default=(0,), min_length=1, description="seeds with which every trial is run; its values are means over them"
    )
    seed: int = Field(default=0, ge=0, description="seed of the sampler")
    metric_share: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="with several objectives, `best.yaml` is the trial of the front that is best in the others among those with at least this share of the best value of the first metric in `objectives` (at most 1 / share of it where less is better)",
    )
    storage: str | None = Field(
        default=None,
        description="where Optuna keeps the study, so that several machines work on it: `journal:FILE`, or a database such as `sqlite:///FILE` or `postgresql://...`; $NAME is replaced by the environment variable; default: a journal in the study's folder",
    )
    sampler: dict[str, Any] = Field(default={"name": "TPESampler"}, description="name of a sampler of Optuna, and its arguments")
    pruner: dict[str, Any] | None = Field(
        default=None,
        description="name of a pruner of Optuna, and its arguments; only with one objective; default: no trial is pruned",
    )
    enqueue: tuple[dict[str, Any], ...] = Field(
        default=(),
        description="trials that are run first, as mappings from the dotted name of a setting to its value; settings that are left out have the experiment's value",
    )

    @field_validator("objectives")
    @classmethod
    def _present_objectives(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(present_measure, given))

    @field_validator("constraints")
    @classmethod
    def _present_constraints(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(present_constraint, given))

    @field_validator("storage")
    @classmethod
    def _known(cls, given: str | None) -> str | None:
        if given is None or given.startswith(("journal:", "$")):
            return given
        dialect, found, _ = given.partition("://")
        if not found or dialect.split("+")[0] not in DATABASES:
            known = ", ".join(["journal:FILE", *(f"{name}://..." for name in DATABASES)])
            raise ValueError(f"is none of {known}")
        return given

    @field_validator("seeds", "objectives")
    @classmethod
    def _once(cls, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(given)) < len(given) or any(isinstance(one, int) and one < 0 for one in given):
            raise ValueError("every one once, and no seed below 0")
        return given


def described() -> str:
    """The keys of a study's file, a line each."""
    return "\n".join(f"  {name}: {field.description}" for name, field in Study.model_fields.items())


def with_present_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """A study that an earlier version may have written, whatever is wrong with it, with measures and values as they are called now."""
    result = dict(values)
    for key, present in (("objectives", present_measure), ("constraints", present_constraint)):
        if isinstance(given := result.get(key), list):
            result[key] = [present(one) if isinstance(one, str) else one for one in given]
    if isinstance(given := result.get("experiment"), dict):
        result["experiment"] = with_present_values(given)
    return result


FREE = ("trials", "parallel", "metric_share")
"""Settings of a study that may be others when it goes on."""


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with those of `changes` in their place."""
    result = dict(values)
    for key, value in changes.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _absolute_storage(given: str, base: Path) -> str:
    """The same place with the path of a local file relative to `base` made absolute."""
    for beginning in ("journal:", "sqlite:///"):
        path = given.removeprefix(beginning)
        if path != given and path and not path.startswith("$"):
            return f"{beginning}{os.path.normpath(base.resolve() / os.path.expanduser(path))}"
    return given


def _absolute(values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """As `paths.absolute`, of a study's settings: also in those that it searches. What has another form is left to the validation."""
    result = dict(values)
    given, space, first = (values.get(name) for name in ("experiment", "space", "enqueue"))
    if isinstance(given, str):
        result["experiment"] = place(given, base, FILE, "experiment")
    if isinstance(storage := values.get("storage"), str):
        result["storage"] = _absolute_storage(storage, base)
    for name in ("experiment", "settings"):
        if isinstance(inside := values.get(name), Mapping):
            result[name] = absolute(inside, base)

    def one(key: Any, value: Any) -> Any:
        return absolute_at(key.split("."), value, base) if isinstance(key, str) else value

    if isinstance(space, Mapping):
        result["space"] = {
            key: [one(key, value) for value in values] if isinstance(values, list) else values for key, values in space.items()
        }
    if isinstance(first, list):
        result["enqueue"] = [
            {key: one(key, value) for key, value in trial.items()} if isinstance(trial, Mapping) else trial for trial in first
        ]
    return result


def load_study(
    path: Path | str, flags: Sequence[str] = (), plugins: Sequence[str] = (), recorded: bool = False
) -> tuple[Study, Experiment]:
    """A study and the configuration that its trials change. Paths in a file are relative to its folder, paths in flags to the working
    directory. `plugins`: besides the experiment's; of a study that was `recorded` in its folder, where they are now. Raises UserError for anything wrong with either."""
    path = Path(path)
    values = {"name": path.stem, **override(_absolute(read_mapping(path), path.parent), flags, _absolute)}
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise UserError(one_line(error, Study)) from None
    given = study.experiment
    base = absolute(read_mapping(Path(given)), Path(given).parent) if isinstance(given, str) else given
    base = merged(base, study.settings)
    return study, parse(found_again(base, path.parent, plugins)) if recorded else parse(base, plugins)


def dump_study(study: Study, base: Experiment) -> str:
    """The study with its whole configuration as YAML, enough to repeat it."""
    whole = study.model_copy(update={"experiment": base.model_dump(mode="json"), "settings": {}})
    return yaml.safe_dump(whole.model_dump(mode="json"), sort_keys=False)
