"""How fast the residual stream is given up beside the layers: once for a whole ranking, so that all plans are prefixes of one list.

The residual stream is the dearest to cut, so it comes last, unless that leaves little of a class's layers: what no layer holds
(embeddings, above all) can take up a budget of parameters or bytes, and only a narrower residual stream makes it smaller.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from raffm_ray.axes.indexing import Plan
from raffm_ray.server.class_plans import class_plans
from raffm_ray.server.state import ServerState, Setup
from raffm_ray.subnetworks.budgets import HOLLOW, Budget, balance, hollow_in_words

LEAN = 0.75
"""A balance (see `budgets.balance`) below which another pace may be better."""
PROPORTIONAL = 1.0
"""The pace at which layers and residual stream arrive at what they keep together: where there is nothing to measure others with."""
Answers = Callable[[ServerState], Sequence[tuple[Budget, Plan]]]
"""The plans of a state, with the budgets that they answer."""


def class_answers(setup: Setup) -> Answers:
    """The plans of all device classes, for use."""
    return lambda state: [(setup.budgets[name], plan) for name, plan in class_plans(setup, state).items()]


def wants_pace(setup: Setup, state: ServerState, answers: Answers) -> bool:
    """Whether the residual stream comes last, no setting says so, and that leaves the layers of an answer lean."""
    if setup.experiment.extraction.pace is not None or state.pace:
        return False
    full = setup.costs(Plan())
    return any(balance(budget, setup.costs(plan), full) < LEAN for budget, plan in answers(state))


def with_ruled_pace(setup: Setup, state: ServerState) -> ServerState:
    """The state with the pace of its device classes where nothing is measured: the setting's, else `PROPORTIONAL` where layers would be lean."""
    state = replace(state, pace=setup.experiment.extraction.pace or 0.0)
    return replace(state, pace=PROPORTIONAL) if wants_pace(setup, state, class_answers(setup)) else state


def hollow_notes(setup: Setup, state: ServerState) -> list[str]:
    """A line about every device class whose subnetwork has hollow layers."""
    full, notes = setup.costs(Plan()), []
    for name, plan in class_plans(setup, state).items():
        if balance(setup.budgets[name], costs := setup.costs(plan), full) < HOLLOW:
            notes.append(f"device class {name}: {hollow_in_words(setup.budgets[name], costs, full)}")
    return notes
