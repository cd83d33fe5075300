"""Holds a resource equal over strategies: budgets in its unit, and as many rounds as spend what these budgets allow."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.preparation.baselines import with_strategy
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.server.clock import VirtualClock, Visit
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.ranking import begin_calibration, plain_state
from raffm_ray.server.residual_pace import with_ruled_pace
from raffm_ray.server.round_schedule import received
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import Round, Setup, with_first_choices
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.strategy import BaselineSettings


def _flops(setup: Setup, visit: Visit) -> float:
    return visit.cost.flops


def _allowed_flops(setup: Setup, visit: Visit) -> float:
    limit = setup.budgets[setup.device_types[visit.job.client]].training_flops
    assert limit is not None
    return limit * visit.report.stepped


def _bytes(setup: Setup, visit: Visit) -> float:
    return float(visit.cost.bytes_down + visit.cost.bytes_up)


def _allowed_bytes(setup: Setup, visit: Visit) -> float:
    limit, full = setup.budgets[setup.device_types[visit.job.client]].bytes, setup.costs(Plan())
    assert limit is not None
    return limit * (1 + full.bytes_up / full.bytes)


class Resource(NamedTuple):
    """A row of `RESOURCES`. `kind`: of the budgets that are converted to it; `charged`: what a client's round is charged; `allowed`: what
    its device type's budget allows it. Without the latter two, nothing adds up over rounds, and their number stays."""

    kind: str
    charged: Callable[[Setup, Visit], float] | None = None
    allowed: Callable[[Setup, Visit], float] | None = None


RESOURCES: dict[str, Resource] = {
    "compute": Resource("training_flops", _flops, _allowed_flops),
    "bytes": Resource("bytes", _bytes, _allowed_bytes),
    "memory": Resource("memory_bytes"),
    "time": Resource("training_flops"),
}
"""What may be held equal. Time is that of the virtual clock: a round lasts as long as its slowest client."""


def with_equal_budgets(prepared: Prepared, resource: str) -> Experiment:
    """The experiment with every device type's budget in the unit of a resource: what the device type's plan of the experiment's own strategy
    costs there when nothing is trained beside it. Raises UserError for an unknown resource."""
    kind = look_up(RESOURCES, resource, "--equal").kind
    setup = prepared.setup
    setup = replace(setup, strategy=replace(setup.strategy, prefix="none", distill=0.0))
    plans = device_type_plans(setup, with_ruled_pace(setup, plain_state(setup.architecture)))
    budgets = {name: {kind: float(getattr(setup.costs(plan), kind))} for name, plan in plans.items()}
    experiment = setup.experiment
    fleet = experiment.fleet.model_copy(update={"budgets": budgets})
    return experiment.model_copy(update={"fleet": fleet})


def predicted(setup: Setup, rounds: int) -> list[Round]:
    """The rounds of an experiment as they will be charged, from the first calibration on: clients are drawn as they will be. A plain
    ranking stands in for the real one, which hardly changes what a plan costs."""
    state = with_first_choices(setup, with_ruled_pace(setup, plain_state(setup.architecture)))
    first = begin_calibration(setup, state)
    found = [first] if first else []
    for number in range(1, rounds + 1):
        work = begin_round(setup, state)
        ranked_at = number if number >= state.ranked_at + setup.experiment.salience.every else state.ranked_at
        state = replace(
            state,
            round=number,
            ranked_at=ranked_at,
            clock=VirtualClock(seconds=work.start_seconds + work.seconds),
            held=state.held.after(received(setup, work), len(setup.device_types)),
        )
        found.append(work)
    return found


class Equalized(NamedTuple):
    """`experiment`: with every strategy's own number of rounds. `allowed`: what the budgets allow all clients of a run together, on
    average over seeds; None where nothing adds up over rounds."""

    experiment: Experiment
    allowed: float | None


def equalized(prepared: Sequence[Prepared], resource: str) -> Equalized:
    """Every strategy, the experiment's own and its baselines, with as many rounds as spend what the budgets allow in the experiment's
    rounds, over all of `prepared`, one a seed. Of time: what the experiment's own strategy takes.

    Raises UserError where a strategy's single round takes more than twice as much as is allowed in all.
    """
    experiment, row = prepared[0].setup.experiment, look_up(RESOURCES, resource, "--equal")
    if resource != "time" and row.charged is None:
        return Equalized(experiment, None)
    entries: list[BaselineSettings | None] = [None, *experiment.baselines]
    spent, allowed = [0.0] * len(entries), 0.0
    for one in prepared:
        for position, entry in enumerate(entries):
            setup = with_strategy(one, entry).setup
            works = predicted(setup, experiment.rounds)
            visits = [visit for work in works for visit in work.visits]
            spent[position] += (
                sum(row.charged(setup, visit) for visit in visits) if row.charged else works[-1].seconds + works[-1].start_seconds
            )
            if entry is None and row.allowed is not None:
                allowed += sum(row.allowed(setup, visit) for visit in visits)
    allowed = allowed or spent[0]
    counts = [round(experiment.rounds * allowed / total) for total in spent]
    for entry, count in zip(entries, counts, strict=True):
        if count < 1:
            raise UserError(
                f"--equal {resource}: one round of {entry.shown if entry else experiment.strategy.name} takes more than twice what all "
                f"{experiment.rounds} rounds may: more rounds are needed"
            )
    baselines = tuple(
        one.model_copy(update={"rounds": count}) for one, count in zip(experiment.baselines, counts[1:], strict=True)
    )
    return Equalized(experiment.model_copy(update={"rounds": counts[0], "baselines": baselines}), allowed / len(prepared))
