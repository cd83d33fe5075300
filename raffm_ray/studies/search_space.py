"""The search space of a study: settings and their values, checked against the experiment's fields."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from raffm_ray.basics.errors import UserError, shortened
from raffm_ray.models.architecture import Architecture
from raffm_ray.preparation.prepare import check_values
from raffm_ray.settings.base import Settings
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import one_line, parse

NOT_SEARCHED = ("name", "seed", "plugins", "baselines", "pool", "checkpoint")
"""Settings that are the study's own affair, or change no result."""


class Range(Settings):
    """Numbers between two, both included."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Dimension:
    """One setting's values. `choices`: what Optuna is shown of a choice -> the choice itself; empty for a range."""

    distribution: BaseDistribution
    choices: Mapping[Any, Any] = field(default_factory=dict)

    def value(self, shown: Any) -> Any:
        """What a setting gets of what Optuna suggests."""
        return self.choices[shown] if self.choices else shown

    def shown(self, value: Any) -> Any:
        """What Optuna is given for a setting's value. Raises KeyError for one that is not in the space."""
        label = _label(value)
        known = label in self.choices if self.choices else _is_number(value) and self.distribution._contains(value)
        if not known:
            raise KeyError(value)
        return label


Space = Mapping[str, Dimension]
"""key.path -> its values."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _label(value: Any) -> Any:
    """A choice as Optuna stores it: numbers and words as they are, lists and mappings as JSON."""
    return value if value is None or isinstance(value, (str, int, float, bool)) else json.dumps(value)


def changed(base: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with these settings by key.path. Raises UserError for what its fields do not take."""
    result = base.model_dump(mode="json")
    for key, value in values.items():
        target = result
        *path, last = key.split(".")
        for position, part in enumerate(path):
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise UserError(f"{key}: {'.'.join(path[: position + 1])!r} has no keys below it")
        target[last] = value
    return parse(result)


def value_at(experiment: Experiment, key: str) -> Any:
    """An experiment's own value of a setting, None where a mapping does not have it."""
    value: Any = experiment.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _checked(base: Experiment, key: str, value: Any, architecture: Architecture) -> Any:
    """The value as the experiment's field has it, for example 1.0 of 1."""
    try:
        experiment = changed(base, {key: value})
        check_values(experiment, architecture)
    except UserError as error:
        raise UserError(f"space.{key}: {str(error).removeprefix(f'{key}: ')}") from None
    return value_at(experiment, key)


def _range(base: Experiment, key: str, given: Any, architecture: Architecture) -> Dimension:
    try:
        span = Range.model_validate(given)
    except ValidationError as error:
        raise UserError(f"space.{key}.{one_line(error, Range)}") from None
    low, high = (_checked(base, key, given[end], architecture) for end in ("low", "high"))
    if not (_is_number(low) and _is_number(high)):
        raise UserError(f"space.{key}: a range is of numbers, and this setting takes {shortened(low)}: give a list of choices")
    if low >= high:
        raise UserError(f"space.{key}: low {low} must be below high {high}")
    whole, step = isinstance(low, int) and isinstance(high, int), span.step
    if step is not None and (step <= 0 or (whole and step != int(step))):
        raise UserError(f"space.{key}.step: must be a {'whole ' if whole else ''}number above 0, got {step}")
    if span.log and (step is not None or low <= 0):
        raise UserError(f"space.{key}.log: takes no step, and a low above 0, got {'step ' if step else 'low '}{step or low}")
    if whole:
        return Dimension(IntDistribution(low, high, log=span.log, step=int(step or 1)))
    return Dimension(FloatDistribution(float(low), float(high), log=span.log, step=step))


def _choices(base: Experiment, key: str, given: list[Any], architecture: Architecture) -> Dimension:
    choices = {_label(value): _checked(base, key, value, architecture) for value in given}
    if len(choices) < max(2, len(given)):
        raise UserError(f"space.{key}: expected two choices or more, every one once, got {shortened(given)}")
    return Dimension(CategoricalDistribution(list(choices)), choices)


def space_of(given: Mapping[str, Any], base: Experiment, architecture: Architecture) -> Space:
    """The dimensions of a study's `space`.

    Raises UserError for a setting that does not exist, and for an end of a range or a choice that it does not take, in the base's
    company: whether values go together is found by the trial that has them.
    """
    space = {}
    for key, one in given.items():
        if key.split(".")[0] in NOT_SEARCHED:
            raise UserError(f"space.{key}: is not searched: {', '.join(NOT_SEARCHED)} are of every trial alike")
        if isinstance(one, list):
            space[key] = _choices(base, key, one, architecture)
        elif isinstance(one, dict):
            space[key] = _range(base, key, one, architecture)
        else:
            raise UserError(f"space.{key}: expected a list of choices or a range like {{low: 1, high: 8}}, got {shortened(one)}")
    return space


def enqueued(space: Space, base: Experiment, given: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters as Optuna is given them: those of `enqueue`, and the base's own. Raises UserError for one outside the space."""
    for key in given:
        if key not in space:
            raise UserError(f"enqueue: {key} is not in the space (it has {', '.join(space)})")
    shown = {}
    for key, dimension in space.items():
        value = given.get(key, value_at(base, key))
        try:
            shown[key] = dimension.shown(value)
        except KeyError:
            raise UserError(f"enqueue: {key}: {shortened(value)} is not in its space") from None
    return shown
