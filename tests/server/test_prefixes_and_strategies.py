"""Local prefixes, the interface that strategies share, and rankings over rounds."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from round_states import context_of, state_of

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.seeding import generator
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.local_training import choose
from raffm_ray.clients.messages import Job
from raffm_ray.preparation.prepare import prepare
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.plans.view import StrategyView
from raffm_ray.server.ranking import rank_again, ranking_is_due
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.strategies import STRATEGIES, Strategy, ranked
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import plan_of
from raffm_ray.subnetworks.norm_correction import norm_statistics
from raffm_ray.subnetworks.salience import METRICS


def test_a_prefix_is_the_very_subnetwork_that_its_device_type_gets_also_with_corrected_norms() -> None:
    prepared = prepare(tiny_experiment())
    runner, state = prepared.runner(), state_of(prepared)
    architecture = prepared.setup.architecture
    parameters = views(state.parameters, architecture.shapes)
    whole = runner.module_factory.module(parameters, Plan(), {})
    batch = prepared.task.clients.batch(np.arange(12))
    norms = norm_statistics(whole, architecture.layout, [batch])
    runner.module_factory.release()
    small = Plan({"residual": np.arange(0, 24, 2), "0/ffn": np.arange(8), "1/heads": [0, 2], "layers": [0, 1]})
    middle = Plan({"residual": [*np.arange(0, 24, 2).tolist(), 1, 5], "0/ffn": np.arange(12)[::-1]})
    for outer in (Plan(), middle):
        context = context_of(prepared, state, small, outer, norms=norms)
        expected = runner.module_factory.module(parameters, small, context.norms)
        loss = torch.nn.functional.cross_entropy(expected(pixel_values=batch["pixel_values"]).logits, batch["labels"])
        loss.backward()
        wanted = {name: p.grad.clone() for name, p in expected.named_parameters()}
        values = {name: p.detach().clone() for name, p in expected.named_parameters()}
        runner.module_factory.release()
        own = dict(runner.module_factory.module(parameters, outer, context.norms).named_parameters())
        inner, prefix = runner.module_factory.inside(small, outer, own, context.norms)
        prefix.read()
        for name, parameter in inner.named_parameters():
            torch.testing.assert_close(parameter.detach(), values[name])
        got = torch.nn.functional.cross_entropy(inner(pixel_values=batch["pixel_values"]).logits, batch["labels"])
        torch.testing.assert_close(got, loss)
        got.backward()
        for name, p in inner.named_parameters():
            torch.testing.assert_close(p.grad, wanted[name])
        prefix.return_gradients()
        assert not any(p.numel() or p.grad is not None for p in inner.parameters())
        runner.module_factory.release()


def test_the_gradient_of_a_corrected_norm_is_that_of_the_client_s_own_gain() -> None:
    prepared = prepare(tiny_experiment())
    runner, state = prepared.runner(), state_of(prepared)
    architecture = prepared.setup.architecture
    parameters = views(state.parameters, architecture.shapes)
    batch = prepared.task.clients.batch(np.arange(12))
    norms = norm_statistics(runner.module_factory.module(parameters, Plan(), {}), architecture.layout, [batch])
    runner.module_factory.release()
    small = Plan({"residual": np.arange(0, 24, 2)})
    context = context_of(prepared, state, small, norms=norms)
    own = dict(runner.module_factory.module(parameters, Plan(), context.norms).named_parameters())
    inner, prefix = runner.module_factory.inside(small, Plan(), own, context.norms)
    gain = own["vit.layernorm.weight"]

    def loss() -> torch.Tensor:
        prefix.read()
        return torch.nn.functional.cross_entropy(inner(pixel_values=batch["pixel_values"]).logits, batch["labels"])

    loss().backward()
    prefix.return_gradients()
    assert gain.grad is not None
    step = 1e-2
    with torch.no_grad():
        for index in (4, 10):
            gain[index] += step
            above = loss()
            gain[index] -= 2 * step
            below = loss()
            gain[index] += step
            assert float(gain.grad[index]) == pytest.approx(float((above - below) / (2 * step)), rel=0.02, abs=1e-4)
    assert float(gain.grad[5]) == 0


def test_modules_are_kept_without_weights() -> None:
    prepared = prepare(tiny_experiment())
    runner, state = prepared.runner(), state_of(prepared)
    work = begin_round(prepared.setup, state)
    for block in work.blocks:
        runner.block(work.context, state.parameters.numpy(), block)
    assert runner.module_factory.skeletons
    assert all(
        p.is_meta and p.grad is None for kept in runner.module_factory.skeletons.values() for p in kept.module.parameters()
    )


@pytest.mark.parametrize(
    ("prefix", "first", "seen"),
    [
        ("none", (True, None), {(True, None)}),
        ("smallest", (True, 0), {(True, 0)}),
        ("random", None, {(True, 0), (True, 1), (True, 2)}),
        ("one", (True, None), {(True, None), (False, 0), (False, 1), (False, 2)}),
    ],
)
def test_which_prefixes_a_step_trains(prefix, first, seen) -> None:
    rng = np.random.default_rng(0)
    drawn = [choose(prefix, 3, step, rng) for step in range(200)]
    assert set(drawn) == seen
    assert first is None or drawn[0] == first
    assert all(choose(prefix, 0, step, rng) == (True, None) for step in range(5))


def test_prefix_compute_is_charged_to_the_device() -> None:
    from raffm_ray.server.workload import training_flops

    totals = {}
    for prefix in ("none", "smallest", "one"):
        prepared = prepare(tiny_experiment(strategy={"prefix": prefix}, salience={"until": 0}))
        state = state_of(prepared)
        work = begin_round(prepared.setup, state)
        update, _ = prepared.runner().block(work.context, state.parameters.numpy(), work.jobs)
        totals[prefix] = sum(training_flops(prepared.setup, work.context, report) for report in update.reports)
        assert [report.steps for report in update.reports] == [-(-report.examples // 16) for report in update.reports]
    assert totals["one"] <= totals["none"] < totals["smallest"]


def rolling(view: StrategyView, budget: Any, client: int) -> Plan:
    """A window of FFN neurons that moves with the round, as FedRolex does."""
    orders = {name: np.roll(np.arange(axis.size), view.round) for name, axis in view.architecture.layout.axes.items()}
    for count in range(40, 0, -1):
        plan = plan_of(
            {f"{layer}/ffn": count for layer in range(3)} | {f"{layer}/vo": min(8, count) for layer in range(3)},
            orders,
            view.architecture.layout,
        )
        if budget.allows(costs_of(view.architecture, plan, view.batch_size, view.optimizer)):
            return plan
    raise UserError("too small")


def random_units(view: StrategyView, budget: Any, client: int) -> Plan | None:
    """Another random cut for every client and round, as federated dropout does; every third client stays out."""
    if client >= 0 and client % 3 == 0:
        return None
    rng = generator(view.seed, "federated dropout", view.round, max(client, 0))
    scores = METRICS["random"].score(view.architecture.layout, {}, {}, rng)
    return ranked(replace(view, scores=scores), budget, client)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("rolling", Strategy(rolling, rolling, salience=False)),
        ("random", Strategy(random_units, ranked, salience=False, per_client=True)),
    ],
)
def test_the_interface_fits_rolling_and_random_strategies(monkeypatch, name, strategy) -> None:
    monkeypatch.setitem(STRATEGIES, name, strategy)
    budgets = {device: {"params": 0.7} for device in tiny_experiment().fleet.budgets}
    prepared = prepare(tiny_experiment(strategy={"name": name}, fleet={"budgets": budgets}))
    state = rank_again(prepared.setup, state_of(prepared), None)
    seen = set()
    for _ in range(2):
        work = begin_round(prepared.setup, state)
        update, part = prepared.runner().block(work.context, state.parameters.numpy(), work.jobs)
        after = finish_round(prepared.setup, state, work, torch.from_numpy(part), [update])
        assert not torch.equal(after.parameters, state.parameters)
        seen |= set(work.context.plans)
        state = after
    assert len(seen) > 1
    assert all(job.client % 3 for job in work.jobs) or name == "rolling"


def test_prefixes_of_plans_that_are_not_nested_are_refused(monkeypatch) -> None:
    monkeypatch.setitem(STRATEGIES, "random", Strategy(random_units, ranked, salience=False, per_client=True))
    prepared = prepare(tiny_experiment(strategy={"name": "random", "prefix": "smallest"}))
    with pytest.raises(UserError, match="plans of strategy 'random' are not nested"):
        begin_round(prepared.setup, rank_again(prepared.setup, state_of(prepared), None))


def advance(prepared: Any, state: Any, rounds: int) -> tuple[Any, list[bool], list[int]]:
    """Runs rounds; which were ranked before, and how many clients calibrated in each."""
    ranked_before, calibrated = [], []
    for _ in range(rounds):
        due = ranking_is_due(prepared.setup, state)
        ranked_before.append(due)
        if due:
            state = rank_again(prepared.setup, state, state.pending)
        work = begin_round(prepared.setup, state)
        calibrated.append(sum(job.calibrate for job in work.jobs))
        update, part = prepared.runner().block(work.context, state.parameters.numpy(), work.jobs)
        state = finish_round(prepared.setup, state, work, torch.from_numpy(part), [update])
    return state, ranked_before, calibrated


def test_the_ranking_is_renewed_every_so_many_rounds_until_it_stays() -> None:
    whole = {device: {"params": 1.0} for device in tiny_experiment().fleet.budgets}
    prepared = prepare(tiny_experiment(rounds=10, salience={"every": 2, "until": 0.5}, fleet={"budgets": whole}))
    _, ranked_before, calibrated = advance(prepared, state_of(prepared), 10)
    assert ranked_before == [False, False, True, False, True, False, False, False, False, False]
    # One round of five clients reports more examples than a ranking wants, and only the round before it has a model to rank that is
    # new: nobody calibrates earlier, nor for a ranking that never comes.
    assert calibrated == [0, 5, 0, 5, 0, 0, 0, 0, 0, 0]


def test_ranking_waits_for_somebody_to_report() -> None:
    prepared = prepare(tiny_experiment(rounds=10, salience={"every": 1, "until": 1.0}))
    state = replace(state_of(prepared), round=3, ranked_at=0, pending=None)
    assert not ranking_is_due(prepared.setup, state)
    assert ranking_is_due(prepared.setup, replace(state, pending={"examples": torch.tensor(1.0)}))
    weights_only = prepare(tiny_experiment(rounds=10, salience={"metric": "l1", "every": 1, "until": 1.0}))
    assert ranking_is_due(weights_only.setup, state)


def test_an_update_that_is_not_finite_is_refused_and_counted() -> None:
    prepared = prepare(tiny_experiment(local={"optimizer": "sgd", "learning_rate": 1e-3, "clip": None}))
    state = state_of(prepared)
    work = begin_round(prepared.setup, state)
    poisoned = prepared.task.clients.inputs["pixel_values"].copy()
    victim = work.jobs[0].client
    poisoned[prepared.shares[victim]] = np.nan
    plain = prepared.runner()
    runner = ClientRunner(
        architecture=plain.architecture,
        examples=replace(plain.examples, inputs={"pixel_values": poisoned}),
        shares=plain.shares,
        held_out=plain.held_out,
    )
    update, part = runner.block(work.context, state.parameters.numpy(), work.jobs)
    assert [report.client for report in update.reports if report.refused] == [victim]
    after = finish_round(prepared.setup, state, work, torch.from_numpy(part), [update])
    assert after.parameters.isfinite().all()
    only = Job(victim, work.jobs[0].plan, calibrate=True)
    update, part = runner.block(
        replace(work.context, statistic="fisher", calibration_examples=8), state.parameters.numpy(), [only]
    )
    assert update.statistics is None
    untouched = finish_round(prepared.setup, state, work, torch.from_numpy(part), [update])
    assert torch.equal(untouched.parameters, state.parameters)


def test_device_types_keep_nested_subnetworks() -> None:
    from raffm_ray.axes.nesting import within

    prepared = prepare(tiny_experiment())
    plans = list(device_type_plans(prepared.setup, state_of(prepared)).values())
    for small, large in itertools.pairwise(plans):
        within(small, large, prepared.setup.architecture.layout)
