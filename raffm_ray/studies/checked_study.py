"""A study whose settings were checked: its search space, objectives and constraints."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.data.metrics import METRICS
from raffm_ray.preparation.pinning import pinned
from raffm_ray.preparation.prepare import prepare
from raffm_ray.settings.experiment import Experiment
from raffm_ray.studies.samplers import check_sampler, pruner_of
from raffm_ray.studies.search_space import Space, enqueued, space_of
from raffm_ray.studies.study_settings import Study
from raffm_ray.studies.trial import CHOSEN_BY, HELD_OUT, WATCHED

VALIDATED, MOST_VALIDATED = 0.1, 2000
"""Of the clients' examples, what a study without a validation part takes off them, and at most how many."""


@dataclass(frozen=True)
class Goal:
    """An objective: a measure of `CHOSEN_BY`, and whether more of it is better."""

    measure: str
    higher: bool


@dataclass(frozen=True)
class Limit:
    """A constraint `measure >= bound`, or `<=`; `text`: as it was given."""

    text: str
    measure: str
    at_least: bool
    bound: float

    def excess(self, value: float) -> float:
        """By how much a value misses the bound: 0 or less where it holds."""
        return self.bound - value if self.at_least else value - self.bound


@dataclass(frozen=True)
class CheckedStudy:
    """A study whose settings can work. `first`: parameters of the trials that come first, as Optuna is given them; `examples`: of the
    `validation` and the `held_out` part; `notes`: what a user should know before it starts."""

    study: Study
    base: Experiment
    space: Space
    metric: str
    goals: Sequence[Goal]
    limits: Sequence[Limit]
    first: Sequence[Mapping[str, Any]]
    examples: Mapping[str, int]
    notes: Sequence[str] = ()

    @property
    def watched(self) -> str | None:
        """What is reported after every round, None where nothing is pruned."""
        return self.study.objectives[0] if self.study.pruner else None


def _limit(text: str) -> Limit:
    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*", text)
    try:
        name, relation, bound = found.groups() if found else ("", "", "")
        value = float(bound)
    except ValueError:
        raise UserError(f"constraints: expected 'measure >= number' or 'measure <= number', got {text!r}") from None
    look_up(CHOSEN_BY, name, "constraints: measure")
    return Limit(text=text, measure=name, at_least=relation == ">=", bound=value)


def check_study(study: Study, base: Experiment) -> CheckedStudy:
    """The study ready to run. Raises UserError, before any training, for whatever in it cannot work."""
    for name in study.objectives:
        look_up(CHOSEN_BY, name, "objectives: measure")
    limits = [_limit(text) for text in study.constraints]
    pruner_of(study.pruner)
    if study.pruner and (len(study.objectives) > 1 or study.objectives[0] not in WATCHED):
        raise UserError(f"pruner: prunes by one objective that is known after every round: {' or '.join(WATCHED)}")
    base = pinned(base)
    if base.baselines:
        base = base.model_copy(update={"baselines": ()})
    if "curve_area" in [*study.objectives, *(limit.measure for limit in limits)] and not base.evaluation.sizes:
        raise UserError("curve_area: evaluation.sizes is 0: no sizes between the device types' are measured")
    if study.parallel > 1 and base.pool.gpus_per_worker == "auto":
        raise UserError(f"pool.gpus_per_worker: auto is for one trial at a time, got parallel {study.parallel}: give a number")
    prepared, told = prepare(base), list[str]()
    if not base.task.validation:
        taken = max(1, min(MOST_VALIDATED, round(VALIDATED * len(prepared.task.clients))))
        base = base.model_copy(update={"task": base.task.model_copy(update={"validation": taken})})
        told.append(
            f"task.validation was 0: {taken:,} of the clients' {len(prepared.task.clients):,} examples are the validation part, by which "
            "trials are chosen; the held-out part is for what is reported"
        )
        prepared = prepare(base)
    chosen = prepared.setup.experiment  # with the learning rates that a space may be around
    base = base.model_copy(update={"local": chosen.local, "model": chosen.model})
    space = space_of(study.space, base, prepared.setup.architecture)
    check_sampler(study.sampler, study.seed, {key: dimension.distribution for key, dimension in space.items()})
    metric = prepared.task.metric
    goals = [Goal(name, METRICS[metric].higher if name in HELD_OUT else False) for name in study.objectives]
    return CheckedStudy(
        study=study,
        base=base,
        space=space,
        metric=metric,
        goals=goals,
        limits=limits,
        examples={"validation": base.task.validation, "held_out": len(prepared.task.held_out)},
        first=[enqueued(space, base, given) for given in study.enqueue],
        notes=told,
    )
