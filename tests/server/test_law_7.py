"""Law 7: what a client is charged never exceeds its device type's budget, whatever the strategy, the family, the budget, the prefixes."""

from dataclasses import replace
from functools import cache

import pytest
from conftest import architecture_case, tiny_experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import WHOLE

from raffm_ray.axes.indexing import Plan
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.runs.summary import client_row
from raffm_ray.server import device_type_plans
from raffm_ray.server.plans.view import StrategyView
from raffm_ray.server.ranking import plain_state
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import Round, Setup
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.subnetworks.budgets import Budget, budget_from
from raffm_ray.subnetworks.costs import Costs, costs_of

KINDS = ("params", "layer_params", "bytes", "training_flops", "memory_bytes", "macs")
CASES = [
    (name, prefix, distill)
    for name, strategy in ((name, STRATEGIES[name]) for name in WHOLE)
    for prefix in ("none", "one", "random", "smallest")
    for distill in (0.0, 0.5)
    if strategy.budgeted and (strategy.nested or prefix == "none") and (not distill or prefix in ("random", "smallest"))
]
FAMILIES = (
    ("vit", "image_classification"),
    ("bert", "sequence_classification"),
    ("llama", "causal_language_modelling"),
    ("t5", "sequence_to_sequence"),
)


@cache
def prepared() -> Prepared:
    return prepare(tiny_experiment(clients={"count": 40, "per_round": 40}, salience={"metric": "l1"}))


def setup_of(family: tuple[str, str], case: tuple[str, str, float], limits: list[tuple[str, float]]) -> Setup:
    """A setup of this family whose device types are allowed these fractions of the full model, weakest first."""
    architecture, (name, prefix, distill) = architecture_case(*family), case
    setup = prepared().setup
    full = costs_of(architecture, Plan(), setup.experiment.local.batch_size, setup.experiment.local.optimizer)
    budgets = {one: budget_from({kind: share}, full) for one, (kind, share) in zip(setup.budgets, limits, strict=True)}
    strategy = replace(STRATEGIES[name], prefix=prefix, distill=distill)
    return replace(setup, architecture=architecture, strategy=strategy, budgets=budgets, not_stacked="not asked")


def exceeded(setup: Setup) -> dict[str, str]:
    """By device type, what its clients are charged beyond its budget in a round."""
    work: Round = begin_round(setup, plain_state(setup.architecture))
    rows = [client_row(setup, work, visit, visit.report) for visit in work.visits]
    assert rows or setup.strategy.train is STRATEGIES["exclusive"].train
    return {row.device: row.over_budget for row in rows if row.over_budget}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
@given(data=st.data())
@settings(max_examples=3, deadline=None)
def test_what_a_client_is_charged_is_within_its_device_type_s_budget(case, data) -> None:
    family = data.draw(st.sampled_from(FAMILIES))
    kinds = data.draw(
        st.sampled_from(
            [[kind] * 5 for kind in KINDS] + [["params", "training_flops", "memory_bytes", "params", "training_flops"]]
        )
    )
    shares = sorted(data.draw(st.lists(st.floats(0.75, 1.0), min_size=5, max_size=5)))
    assert exceeded(setup_of(family, case, list(zip(kinds, shares, strict=True)))) == {}


SHARES = (0.6, 0.7, 0.8, 0.9, 1.0)


@pytest.mark.parametrize("prefix", ["random", "smallest"])
def test_control_plans_sized_for_their_own_pass_exceed_it(prefix, monkeypatch) -> None:
    monkeypatch.setattr(
        StrategyView, "costs", lambda view, plan: costs_of(view.architecture, plan, view.batch_size, view.optimizer)
    )
    setup = setup_of(FAMILIES[0], ("raffm", prefix, 0.0), [("training_flops", share) for share in SHARES])
    assert set(exceeded(setup)) == set(list(setup.budgets)[1:])  # the weakest has no smaller prefix


def test_a_strategy_that_ignores_budgets_is_said_to_exceed_them() -> None:
    setup = setup_of(FAMILIES[0], ("full", "none", 0.0), [("training_flops", share) for share in SHARES])
    assert set(exceeded(setup)) == set(list(setup.budgets)[:-1])


def test_prefixes_are_fixed_before_the_plans_that_they_are_charged_to() -> None:
    """With budgets of unlike kinds, whose order is not that of the device types, training and deployed plans agree."""
    limits = [("params", 0.9), ("training_flops", 0.7), ("memory_bytes", 0.95), ("training_flops", 0.8), ("params", 1.0)]
    setup = setup_of(FAMILIES[0], ("raffm", "random", 0.0), limits)
    state = plain_state(setup.architecture)
    view, smaller = device_type_plans.training_view(setup, state, 1)
    deployed = device_type_plans.device_type_plans(setup, state, 1)
    assert list(deployed.values()) == list(smaller)
    assert {name: setup.strategy.train(view, budget, -1) for name, budget in setup.budgets.items()} == deployed


def test_memory_of_prefixes_is_that_of_the_one_at_work() -> None:
    """However many prefixes there are: what stays, and the largest of the passes."""
    setup = setup_of(FAMILIES[0], ("raffm", "random", 0.0), [("params", share) for share in SHARES])
    view, smaller = device_type_plans.training_view(setup, plain_state(setup.architecture), 1)
    own, charged = setup.costs(Plan()), view.costs(Plan())
    beside: list[Costs] = [setup.costs(plan) for plan in smaller if len(plan)]
    passes = [one.bytes + one.bytes_up + one.activation_bytes for one in beside]
    assert charged.memory_bytes == own.memory_bytes - own.activation_bytes + max(own.activation_bytes, *passes)
    assert charged.training_flops == own.training_flops + max(one.training_flops for one in beside)
    assert Budget(memory_bytes=charged.memory_bytes).allows(charged)


def test_a_plan_beyond_its_device_s_memory_is_told_where_a_budget_of_another_kind_lets_it() -> None:
    setup = prepared().setup
    state, (weakest, *_) = plain_state(setup.architecture), setup.budgets
    full = costs_of(setup.architecture, Plan(), setup.experiment.local.batch_size, setup.experiment.local.optimizer)

    def notes(kind: str, limit: float, name: str = "raffm") -> list[str]:
        device = setup.devices[weakest].model_copy(update={"memory_bytes": 0.6 * full.memory_bytes})
        fleet = setup.experiment.fleet.model_copy(update={"budgets": {weakest: {kind: limit}}})
        other = replace(
            setup,
            experiment=setup.experiment.model_copy(update={"fleet": fleet}),
            budgets={**setup.budgets, weakest: budget_from({kind: limit}, full)},
            devices={**setup.devices, weakest: device},
            strategy=STRATEGIES[name],
        )
        return device_type_plans.memory_notes(other, state)

    (line,) = notes("params", 1.0)
    assert line.startswith(f"fleet.budgets.{weakest}: its plan's peak of ")
    assert notes("memory_bytes", 0.59) == []  # control
    assert notes("params", 1.0, "full") == [], "no budget would change what it trains"
