"""Laws of all strategies: budgets, nesting, coverage, and what the reference's divisor does to clients that change nothing."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from math import ceil, gcd, lcm, log

import numpy as np
import pytest
import torch
from conftest import TINY, architecture_case, tiny_experiment
from methods import WHOLE
from plans import masks

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import AxisError, Plan, check_plan, kept_size
from raffm_ray.axes.nesting import within
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.local_training import one_thread
from raffm_ray.devices.profiles import DEVICES
from raffm_ray.models.architecture import FAMILIES, Architecture, new_model
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.baselines import with_strategy
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs.evaluation import evaluate
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.aggregation import flat_coverage
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.plans.view import StrategyView
from raffm_ray.server.ranking import rank_again
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import ServerState, new_state
from raffm_ray.server.strategies import STRATEGIES, fedrolex
from raffm_ray.settings.strategy import BaselineSettings
from raffm_ray.subnetworks.budgets import Budget, budget_from
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import Cutting
from raffm_ray.subnetworks.salience import METRICS

CUTTING = Cutting({"groups": 1, "heads": 1, "qk": 2, "vo": 2, "ffn": 4, "residual": 4}, {"residual": 0.5})
FAMILIES_CASES = {name: FAMILIES[settings["model_type"]].heads[0] for name, settings in TINY.items()}
BATCH = 4
NAMES = sorted(WHOLE)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@cache
def parameters_of(architecture: Architecture) -> dict[str, torch.Tensor]:
    return {name: values.detach() for name, values in new_model(architecture, 0).named_parameters()}


def view_of(
    architecture: Architecture, budgets: dict[str, Budget], round_number: int = 1, kind: str = "ranked_list"
) -> StrategyView:
    scores = METRICS["random"].score(architecture.layout, {}, {}, np.random.default_rng(0))
    return StrategyView(
        architecture=architecture,
        scores=scores,
        cutting=CUTTING,
        kind=kind,
        seed=0,
        round=round_number,
        batch_size=BATCH,
        optimizer="adamw",
        budgets=budgets,
        parameters=parameters_of(architecture),
    )


def budgets_of(architecture: Architecture, limit: str, *shares: float) -> dict[str, Budget]:
    full = costs_of(architecture, Plan(), BATCH)
    return {str(share): budget_from({limit: share}, full) for share in shares}


@pytest.mark.parametrize("limit", ["params", "layer_params", "memory_bytes", "training_flops"])
@pytest.mark.parametrize("family", FAMILIES_CASES)
@pytest.mark.parametrize("name", NAMES)
def test_no_plan_exceeds_its_budget_and_smaller_ones_are_nested_where_that_is_claimed(name, family, limit) -> None:
    strategy, architecture = STRATEGIES[name], architecture_case(family, FAMILIES_CASES[family])
    budgets = budgets_of(architecture, limit, 0.5, 0.75, 1.0)
    view = view_of(architecture, budgets, round_number=5)
    for extract, bound, nested in ((strategy.train, strategy.budgeted, strategy.nested), (strategy.deploy, True, True)):
        plans = [extract(view, budget, 3) for budget in budgets.values()]
        for plan, budget in zip(plans, budgets.values(), strict=True):
            if plan is not None:
                check_plan(plan, architecture.layout.axes)
                assert not bound or budget.allows(costs_of(architecture, plan, BATCH))
        present = [plan for plan in plans if plan is not None]
        for small, large in itertools.pairwise(present) if nested else ():
            within(small, large, architecture.layout)
        # Everyone keeps what it may; only the smallest of all device types binds everybody, and only the full model lets nobody else in.
        assert len(present) == (1 if name == "exclusive" and extract is strategy.train else 3)
        assert (present[-1] == Plan()) == (name != "smallest")
        assert (len(set(plans)) == 1) == (name == "smallest" or not bound)


@pytest.mark.parametrize("kind", ["ranked_list", "common_rate"])
@pytest.mark.parametrize("name", NAMES)
def test_no_plan_exceeds_its_budget_in_any_round_or_for_any_client(name, kind) -> None:
    strategy, architecture = STRATEGIES[name], architecture_case("vit", "image_classification")
    budgets = budgets_of(architecture, "params", 0.4, 0.6)
    for number, (budget, client) in itertools.product(range(4), zip(budgets.values(), (0, 7), strict=True)):
        view = view_of(architecture, budgets, number, kind)
        plans = [strategy.deploy(view, budget, -1), strategy.train(view, budget, client) if strategy.budgeted else None]
        assert all(plan is None or budget.allows(costs_of(architecture, plan, BATCH)) for plan in plans)


def test_budget_control_the_upper_bound_exceeds_it() -> None:
    architecture = architecture_case("vit", "image_classification")
    (budget,) = budgets_of(architecture, "params", 0.5).values()
    plan = STRATEGIES["full"].train(view_of(architecture, {"only": budget}), budget, 0)
    assert plan is not None
    assert not budget.allows(costs_of(architecture, plan, BATCH))


@pytest.mark.parametrize("name", [name for name in NAMES if not STRATEGIES[name].nested])
def test_nested_control_what_does_not_claim_it_is_not(name) -> None:
    architecture = architecture_case("vit", "image_classification")
    budgets = budgets_of(architecture, "params", 0.5, 0.75)
    view = view_of(architecture, budgets)
    small, large = (STRATEGIES[name].train(view, budget, client) for client, budget in enumerate(budgets.values()))
    with pytest.raises(AxisError, match="inner plan keeps indices"):
        within(small, large, architecture.layout)


def test_nested_control_windows_of_unlike_rounds_are_not() -> None:
    architecture = architecture_case("vit", "image_classification")
    small, large = budgets_of(architecture, "params", 0.5, 0.75).values()
    plans = [fedrolex(view_of(architecture, {}, number), budget, 0) for number, budget in ((0, small), (20, large))]
    with pytest.raises(AxisError, match="inner plan keeps indices"):
        within(*plans, architecture.layout)


def test_smallest_keeps_within_limits_of_unlike_kinds_at_once() -> None:
    architecture = architecture_case("vit", "image_classification")
    budgets = {**budgets_of(architecture, "params", 0.6), "flops": budgets_of(architecture, "training_flops", 0.5)["0.5"]}
    view = view_of(architecture, budgets)
    plans = {STRATEGIES["smallest"].train(view, budget, 0) for budget in budgets.values()}
    (plan,) = plans
    assert all(budget.allows(costs_of(architecture, plan, BATCH)) for budget in budgets.values())
    alone = {STRATEGIES["smallest"].train(view_of(architecture, {}), budget, 0) for budget in budgets.values()}
    assert len(alone) == 2


def test_two_stacks_are_cut_in_proportion_and_only_the_first_layers_stay() -> None:
    architecture = architecture_case("t5_gated", "sequence_to_sequence")
    shares = (0.5, 0.8, 1.0)
    plans = [
        STRATEGIES["depth"].train(view_of(architecture, {}), budget, 0)
        for budget in budgets_of(architecture, "layer_params", *shares).values()
    ]
    kept = [{name: indices.tolist() for name, indices in plan.items()} for plan in plans]
    assert kept == [{"decoder/layers": [0], "encoder/layers": [0]}, {"encoder/layers": [0, 1]}, {}]


def reached(architecture: Architecture, plans: list[Plan]) -> dict[str, torch.Tensor]:
    """Where at least one of the plans has an entry."""
    flat = flat_coverage(dict.fromkeys(range(len(plans)), 1.0), plans, architecture)
    return {name: values > 0 for name, values in views(flat, architecture.shapes).items()}


def window_plans(architecture: Architecture, rounds: int, share: float = 0.5) -> list[Plan]:
    (budget,) = budgets_of(architecture, "params", share).values()
    return [fedrolex(view_of(architecture, {}, number), budget, 0) for number in range(rounds)]


def test_rolling_windows_reach_every_index_in_the_stated_number_of_rounds_and_no_sooner() -> None:
    architecture = architecture_case("vit", "image_classification")
    plans = window_plans(architecture, 40)
    for name in plans[0]:
        size, window = architecture.layout.axes[name].size, kept_size(name, architecture.layout.axes, plans[0])
        assert 1 < window < size
        rounds = size - window + 1
        for first in (0, 3):
            assert len(np.unique([plan[name] for plan in plans[first : first + rounds]])) == size
            assert len(np.unique([plan[name] for plan in plans[first : first + rounds - 1]])) == size - 1


def test_rolling_windows_reach_every_entry_within_the_stated_number_of_rounds() -> None:
    architecture = architecture_case("vit", "image_classification")
    axes = architecture.layout.axes
    plan = window_plans(architecture, 1)[0]
    pairs = [("residual", f"0/{kind}") for kind in ("qk", "vo", "ffn")]
    for first, second in pairs:
        assert kept_size(first, axes, plan) + kept_size(second, axes, plan) > gcd(axes[first].size, axes[second].size)
    rounds = max(lcm(axes[first].size, axes[second].size) for first, second in pairs)
    assert all(values.all() for values in reached(architecture, window_plans(architecture, rounds)).values())


def test_rolling_control_a_window_that_does_not_roll_leaves_entries_out() -> None:
    architecture = architecture_case("vit", "image_classification")
    (budget,) = budgets_of(architecture, "params", 0.5).values()
    plans = [STRATEGIES["heterofl"].train(view_of(architecture, {}, number), budget, 0) for number in range(40)]
    assert not all(values.all() for values in reached(architecture, plans).values())


@pytest.mark.parametrize("sizes", [(6, 4), (8, 4), (6, 6), (5, 3), (12, 9)])
def test_two_windows_meet_every_entry_just_where_the_closed_form_says(sizes) -> None:
    first, second = sizes
    for k, other in itertools.product(range(1, first + 1), range(1, second + 1)):
        met = np.zeros(sizes, dtype=bool)
        for number in range(lcm(*sizes)):
            met[np.ix_((number + np.arange(k)) % first, (number + np.arange(other)) % second)] = True
        assert met.all() == (k + other > gcd(*sizes))


def test_random_widths_reach_every_entry_within_the_union_bound() -> None:
    architecture = architecture_case("bert", "sequence_classification")  # its pooler is residual by residual
    axes, strategy = architecture.layout.axes, STRATEGIES["federated_dropout"]
    (budget,) = budgets_of(architecture, "params", 0.5).values()
    first = strategy.train(view_of(architecture, {}), budget, 0)
    kept = {name: kept_size(name, axes, first) for name in ("residual", "0/qk", "0/vo", "0/ffn")}
    size = axes["residual"].size
    fractions = [count / axes[name].size for name, count in kept.items() if name != "residual"] + [
        (kept["residual"] - 1) / (size - 1)
    ]
    least = kept["residual"] / size * min(fractions)
    entries = costs_of(architecture, Plan()).params
    failure = 1e-3
    plans_needed = ceil(log(entries / failure) / -log(1 - least))
    clients = 5
    views_of_rounds = [view_of(architecture, {}, number) for number in range(ceil(plans_needed / clients))]
    plans = [strategy.train(view, budget, client) for view in views_of_rounds for client in range(clients)]
    assert len(set(plans)) == len(plans)
    assert all(values.all() for values in reached(architecture, plans).values())
    assert not all(values.all() for values in reached(architecture, plans[:2]).values())
    again = strategy.train(view_of(architecture, {}), budget, 0)
    assert again == first


def test_depth_reaches_the_first_layers_and_nothing_else_of_the_stack() -> None:
    architecture = architecture_case("vit", "image_classification")
    (budget,) = budgets_of(architecture, "params", 0.75).values()
    plans = [STRATEGIES["depth"].train(view_of(architecture, {}, number), budget, number) for number in range(3)]
    assert plans[0] is not None
    assert plans[0]["layers"].tolist() == [0, 1]
    for name, values in reached(architecture, plans).items():
        assert values.all() == (".layers.2." not in name)
        assert values.any() == values.all()


def test_magnitude_ranks_anew_by_the_current_parameters() -> None:
    architecture = architecture_case("vit", "image_classification")
    (budget,) = budgets_of(architecture, "params", 0.5).values()
    view = view_of(architecture, {})
    before = STRATEGIES["fiarse"].train(view, budget, 0)
    dropped = sorted(set(range(40)) - set(before["1/ffn"].tolist()))[:4]
    larger = dict(view.parameters)
    for key, dims in ((key, spec.dims) for key, spec in architecture.layout.parameters.items() if ("1/ffn",) in spec.dims):
        larger[key] = larger[key].clone()
        larger[key].index_fill_(dims.index(("1/ffn",)), torch.tensor(dropped), 10.0)
    after = STRATEGIES["fiarse"].train(replace(view, parameters=larger), budget, 0)
    assert set(dropped) <= set(after["1/ffn"].tolist())
    assert STRATEGIES["raffm"].train(replace(view, parameters=larger), budget, 0) == STRATEGIES["raffm"].train(view, budget, 0)


def started(name: str) -> tuple[Prepared, ServerState]:
    """A run of one strategy before round 1, from a model that has learned something; its clients take plain gradient steps."""
    prepared = prepare(
        tiny_experiment(
            strategy={"name": name},
            model={"pretrain": {"epochs": 40}},
            salience={"metric": "l1", "until": 0},
            local={"optimizer": "sgd", "clip": None},
        )
    )
    start = starting_parameters(prepared, lambda *_: None, lambda _: None)
    return prepared, rank_again(prepared.setup, new_state(start), None)


def idle_round(prepared: Prepared, state: ServerState) -> tuple[ServerState, torch.Tensor]:
    """A round of clients that return what they were given; also by how much of the weight every entry is covered."""
    work = begin_round(prepared.setup, state)
    work = replace(work, context=replace(work.context, learning_rate=0.0))
    update, part = prepared.runner().block(work.context, state.parameters.numpy(), work.jobs)
    assert not part.any()
    layout, shapes = prepared.setup.architecture.layout, prepared.setup.architecture.shapes
    total = sum(update.weights.values())
    share = torch.zeros_like(state.parameters)
    for plan, weight in update.weights.items():
        dense = masks(layout, shapes, work.context.plans[plan])
        share += torch.cat([dense[name].reshape(-1) for name in shapes]) * (weight / total)
    return finish_round(prepared.setup, state, work, torch.from_numpy(part), [update]), share


def test_the_reference_divisor_shrinks_what_few_clients_cover_although_nobody_changes_anything() -> None:
    prepared, state = started("raffm_reference")
    pool = InProcessPool(prepared.runner())
    start, expected = state, state.parameters.double()
    for _ in range(4):
        before = state.parameters
        state, share = idle_round(prepared, state)
        expected = expected * share.double()
        torch.testing.assert_close(state.parameters.double(), expected, rtol=1e-5, atol=1e-9)
        rare = share < 0.99
        assert rare.float().mean() > 0.3
        assert state.parameters[rare].norm() < before[rare].norm()
        assert torch.allclose(state.parameters[~rare], before[~rare])
    first, last = (evaluate(prepared.setup, one, pool, prepared.task) for one in (start, state))
    assert first.metric > 0.7
    assert last.metric < first.metric - 0.1
    assert last.loss > first.loss


@pytest.mark.parametrize("name", [name for name in NAMES if STRATEGIES[name].aggregation != "all_clients"])
def test_divisor_control_no_other_strategy_changes_a_bit(name) -> None:
    prepared, state = started(name)
    start = state.parameters.clone()
    for _ in range(2):
        state, share = idle_round(prepared, state)
        assert torch.equal(state.parameters, start)
    assert (share.max() > share.min()) == (name not in {"full", "exclusive"})


def test_one_run_of_every_strategy(out) -> None:
    budgets = {name: {"params": 0.5} for name in ("raspberry_pi_4", "raspberry_pi_5")}
    rest = [name for name in NAMES if name != "raffm"]
    small = {"local": {"steps": 2}, "evaluation": {"sizes": 0}}
    summary = simulate(tiny_experiment(rounds=1, baselines=rest, fleet={"budgets": budgets}, **small), out)
    assert sorted(summary["baselines"]) == rest
    assert len({one["params_sha256"] for one in summary["baselines"].values()} | {summary["params_sha256"]}) == len(NAMES)


def test_a_plan_for_use_is_nested_in_those_that_are_trained_in_the_same_round() -> None:
    prepared = prepare(tiny_experiment(strategy={"name": "fedrolex", "prefix": "smallest"}))
    size = sum(values.numel() for values in parameters_of(prepared.setup.architecture).values())
    state = replace(rank_again(prepared.setup, new_state(torch.zeros(size)), None), round=11)
    work = begin_round(prepared.setup, state)
    assert any(job.prefixes for job in work.jobs)
    assert device_type_plans(prepared.setup, state) != device_type_plans(prepared.setup, state, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": {"name": "exclusive"}, "fleet": {"budgets": {name: {"params": 0.9} for name in DEVICES}}},
            "strategy.name 'exclusive': no client with data has a device that can train the full model (raspberry_pi_4: params",
        ),
        (
            {"strategy": {"name": "depth"}, "fleet": {"budgets": {"raspberry_pi_4": {"params": 0.3}}}},
            "device type raspberry_pi_4: the budget is below one layer: params",
        ),
        (
            {"strategy": {"name": "smallest"}, "fleet": {"budgets": {"raspberry_pi_4": {"params": 0.01}}}},
            "below the smallest subnetwork: ",
        ),
        (
            {"strategy": {"name": "federated_dropout", "prefix": "one"}},
            "strategy.prefix: must be none with strategy 'federated_dropout', whose plans are not nested in each other, got 'one'",
        ),
    ],
)
def test_what_a_strategy_cannot_do_is_said_before_anything_is_trained(changes, message) -> None:
    with pytest.raises(UserError) as error:
        prepare(tiny_experiment(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_baseline_that_cannot_be_run_is_named() -> None:
    prepared = prepare(tiny_experiment(fleet={"budgets": {"raspberry_pi_4": {"params": 0.3}}}))
    with pytest.raises(UserError, match="below one layer.*strategy 'depth'"):
        with_strategy(prepared, BaselineSettings(name="depth"))


def test_a_model_whose_layers_cannot_be_dropped() -> None:
    architecture = architecture_case("vit", "image_classification")
    kept = {name: axis for name, axis in architecture.layout.axes.items() if name != "layers"}
    parameters = {name: replace(spec, layer=None) for name, spec in architecture.layout.parameters.items()}
    attentions = tuple(replace(site, layer=None) for site in architecture.layout.attentions)
    solid = replace(architecture, layout=replace(architecture.layout, axes=kept, parameters=parameters, attentions=attentions))
    half, whole = budgets_of(solid, "params", 0.5, 1.0).values()
    assert STRATEGIES["depth"].train(view_of(solid, {}), whole, 0) == Plan()
    with pytest.raises(UserError, match="below the full model, of which no layer can be dropped: params"):
        STRATEGIES["depth"].train(view_of(solid, {}), half, 0)


def test_clients_that_rest_count_in_what_full_size_would_have_moved(tmp_path) -> None:
    exclusive, full = (simulate(tiny_experiment(strategy={"name": name}), tmp_path / name) for name in ("exclusive", "full"))
    assert exclusive["bytes_full_size"] == full["bytes_full_size"] > 0
    assert exclusive["device_types"]["v100"]["client_rounds"] < 10  # of 5 a round; the others had nothing to do
    assert exclusive["device_types"]["laptop"]["client_rounds"] == 0 < full["device_types"]["laptop"]["client_rounds"]
