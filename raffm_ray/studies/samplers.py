"""Optuna's samplers and pruners by name, their arguments checked before they are used."""

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Union
from zlib import crc32

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from pydantic import TypeAdapter, ValidationError

from raffm_ray.basics.errors import UserError, in_short, look_up, near_miss
from raffm_ray.basics.seeding import torch_seed

PLAIN: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "None": None}
"""What an argument can be that YAML can say."""
NOT_OFFERED = ("BaseGASampler", "BaseSampler", "GridSampler", "PartialFixedSampler", "BasePruner", "PatientPruner")
"""They take what YAML cannot say, or are none. BruteForceSampler tries every point of a grid."""
NEEDED = {"CmaEsSampler": "cmaes"}
"""Samplers that need a package which Optuna does not bring."""
STEADY = ("QMCSampler",)
"""Samplers whose seed names one sequence, in which a trial's number is a place."""


def _offered(module: Any, ending: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in dir(module) if name.endswith(ending) and name not in NOT_OFFERED}


def _arguments(kind: Any) -> dict[str, Any]:
    """A class's arguments that YAML can say, with their types."""
    found = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        written = parameter.annotation if isinstance(parameter.annotation, str) else parameter.annotation.__name__
        words = written.split(" | ")
        if name != "seed" and all(word in PLAIN for word in words):
            found[name] = Union[tuple(PLAIN[word] for word in words)]  # noqa: UP007
    return found


def _made(what: str, kinds: Mapping[str, Any], given: Mapping[str, Any], seed: int | None) -> Any:
    values = dict(given)
    if not isinstance(name := values.pop("name", None), str):
        raise UserError(f"{what}.name: is required (known: {', '.join(kinds)})")
    kind = look_up(kinds, name, f"{what}.name")
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        raise UserError(f"{what}.name: {name} needs a package that is not installed: pip install {NEEDED[name]}")
    known = _arguments(kind)
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{what}.{key}: {name} has no such argument that can be given here{near_miss(key, known)}")
        try:
            values[key] = TypeAdapter(known[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise UserError(f"{what}.{key}: {error.errors()[0]['msg'].lower()}, got {value!r}") from None
    if seed is not None and "seed" in inspect.signature(kind).parameters:
        values["seed"] = seed
    try:
        return kind(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{what} {name}: {in_short(error)}") from None


def sampler_of(given: Mapping[str, Any], seed: int, position: int, driver: str | None = None) -> BaseSampler:
    """The sampler that chooses the trial at a position of the study: made anew for each, so that a study that was interrupted goes on as
    if it had not been. `driver`: the name of one of several that work on a study at once, and would else choose the same.

    Raises UserError for an unknown name or argument.
    """
    steady = given.get("name") in STEADY
    who = () if driver is None else (crc32(driver.encode()),)
    own = torch_seed(seed, "sampler", *(() if steady else (position, *who))) % 2**32
    sampler: BaseSampler = _made("sampler", _offered(optuna.samplers, "Sampler"), given, own)
    return sampler


def check_sampler(given: Mapping[str, Any], seed: int, distributions: Mapping[str, BaseDistribution]) -> None:
    """Raises UserError as `sampler_of`, and for a sampler that cannot choose from these distributions by key."""
    study = optuna.create_study(sampler=sampler_of(given, seed, 0))
    try:
        study.ask(dict(distributions))
    except (ValueError, ImportError) as error:
        raise UserError(f"sampler {given['name']}: {in_short(error)}") from None


def pruner_of(given: Mapping[str, Any] | None) -> BasePruner:
    """The pruner that is asked for, or one that never prunes. Raises UserError for an unknown name or argument."""
    if given is None:
        return NopPruner()
    pruner: BasePruner = _made("pruner", _offered(optuna.pruners, "Pruner"), given, None)
    return pruner
