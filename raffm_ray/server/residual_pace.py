"""How fast the residual stream is given up beside the layers: once for a whole ranking, so that all plans are prefixes of one list.

The residual stream is the dearest to cut, so it comes last, unless that leaves little of a device type's layers: what no layer holds
(embeddings, above all) can take up a budget of parameters or bytes, and only a narrower residual stream makes it smaller.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from raffm_ray.axes.indexing import Plan
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.state import ServerState, Setup
from raffm_ray.subnetworks.budgets import HOLLOW, Budget, balance, hollow_in_words

LEAN = 0.75
"""A balance (see `budgets.balance`) below which another pace may be better."""
PACES = (0.0, 0.5, 1.0, 2.0)
"""That are compared (see `Cutting`): the residual stream last, at half the layers' pace, at theirs, at twice it."""
Answers = Callable[[ServerState], Sequence[tuple[Budget, Plan]]]
"""The plans of a state, with the budgets that they answer."""


def device_type_answers(setup: Setup) -> Answers:
    """The plans of all device types, for use."""
    return lambda state: [(setup.budgets[name], plan) for name, plan in device_type_plans(setup, state).items()]


def _least_balance(setup: Setup, state: ServerState, answers: Answers) -> float:
    full = setup.costs(Plan())
    return min(balance(budget, setup.costs(plan), full) for budget, plan in answers(state))


def wants_pace(setup: Setup, state: ServerState, answers: Answers) -> bool:
    """Whether the residual stream comes last, no setting says so, and that leaves the layers of an answer lean."""
    if setup.experiment.extraction.pace is not None or state.pace:
        return False
    return _least_balance(setup, state, answers) < LEAN


def ruled_pace(setup: Setup, state: ServerState, answers: Answers) -> float:
    """The pace where nothing can be measured: the slowest, but for 0, that leaves no layers hollow, or the one that leaves most of them."""
    least = {pace: _least_balance(setup, replace(state, pace=pace), answers) for pace in PACES[1:]}
    return next((pace for pace, one in least.items() if one >= HOLLOW), max(PACES[1:], key=lambda pace: least[pace]))


def with_ruled_pace(setup: Setup, state: ServerState) -> ServerState:
    """The state with the pace of its device types where nothing is measured: the setting's, else `ruled_pace` where layers would be lean."""
    state, answers = replace(state, pace=setup.experiment.extraction.pace or 0.0), device_type_answers(setup)
    return replace(state, pace=ruled_pace(setup, state, answers)) if wants_pace(setup, state, answers) else state


def hollow_notes(setup: Setup, state: ServerState) -> list[str]:
    """A line about every device type whose subnetwork has hollow layers."""
    full, notes = setup.costs(Plan()), []
    for name, plan in device_type_plans(setup, state).items():
        if balance(setup.budgets[name], costs := setup.costs(plan), full) < HOLLOW:
            notes.append(f"device type {name}: {hollow_in_words(setup.budgets[name], costs, full)}")
    return notes
