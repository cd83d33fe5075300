"""q-FedAvg and agnostic weighting: against their formulas, on problems whose answer is known, and in rounds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from round_states import state_of

from raffm_ray.basics.errors import UserError
from raffm_ray.clients.block_sums import change_weight, fair_weights
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.local_training import one_thread
from raffm_ray.clients.messages import Job, Report, RoundContext, Update
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.server.aggregation import mean_over_coverage
from raffm_ray.server.agnostic_mixture import Mixture, first_mixture
from raffm_ray.server.round_schedule import cost_of, planned_work
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.workload import expected_work, reported_work, training_flops

CENTRES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 6.0]], dtype=torch.float64)
WEIGHTS = [1.0, 2.0, 1.0]
RATE = 0.1


def losses(at: torch.Tensor) -> list[float]:
    """Of three clients with F_k(w) = ||w - centre||^2 / 2."""
    return (0.5 * (at - CENTRES).square().sum(1)).tolist()


def context(q: float) -> RoundContext:
    local = tiny_experiment().local
    return RoundContext(seed=0, round=1, plans=(), local=local, learning_rate=RATE, received_loss=True, fair_exponent=q)


def step(at: torch.Tensor, q: float, local_steps: int = 1) -> torch.Tensor:
    """A round as the project makes it: weights, sums and the rule `coverage`."""
    summed, covered = torch.zeros(2, dtype=torch.float64), 0.0
    for centre, weight, loss in zip(CENTRES, WEIGHTS, losses(at), strict=True):
        change = (1 - (1 - RATE) ** local_steps) * (centre - at)
        counts, covers = fair_weights(context(q), weight, loss, change)
        summed += counts * change
        covered += covers
    return mean_over_coverage(at, summed, torch.full((2,), covered, dtype=torch.float64), covered)


def q_fedavg(at: torch.Tensor, q: float, local_steps: int = 1) -> torch.Tensor:
    """Algorithm 2 of Li et al. 2020 as it is printed, for clients of these weights."""
    delta, divisor, lipschitz = torch.zeros(2, dtype=torch.float64), 0.0, 1 / RATE
    for centre, weight, loss in zip(CENTRES, WEIGHTS, losses(at), strict=True):
        trained = centre + (1 - RATE) ** local_steps * (at - centre)
        moved = lipschitz * (at - trained)
        delta += weight * loss**q * moved
        divisor += weight * (q * loss ** (q - 1) * float(moved.square().sum()) + lipschitz * loss**q)
    return at - delta / divisor


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("local_steps", [1, 5])
def test_a_round_is_the_step_of_the_papers_algorithm(q, local_steps) -> None:
    at = torch.tensor([3.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(step(at, q, local_steps), q_fedavg(at, q, local_steps), rtol=1e-12, atol=0)
    other = q_fedavg(at, q + 0.5, local_steps)
    assert not torch.allclose(step(at, q, local_steps), other, rtol=1e-3)  # a control


@pytest.mark.parametrize("q", [0.0, 1.0, 4.0])
def test_rounds_end_where_the_fair_objective_is_least(q) -> None:
    """Where sum p F^q grad F = 0; with q = 0 at the mean, and the larger q is, the nearer to the far client."""
    at = torch.tensor([3.0, -1.0], dtype=torch.float64)
    for _ in range(500):
        at = step(at, q)
    powers = torch.tensor([weight * loss**q for weight, loss in zip(WEIGHTS, losses(at), strict=True)], dtype=torch.float64)
    gradient = (powers[:, None] * (at - CENTRES)).sum(0) / powers.sum()
    assert float(gradient.abs().max()) < 1e-6
    mean = (torch.tensor(WEIGHTS, dtype=torch.float64)[:, None] * CENTRES).sum(0) / sum(WEIGHTS)
    assert (max(losses(at)) < max(losses(mean)) - 0.5) == (q > 0)


def test_without_an_exponent_weights_are_the_jobs_whatever_the_loss() -> None:
    change = torch.ones(3)
    assert fair_weights(context(0.0), 7.0, float("nan"), change) == (7.0, 7.0)
    assert change_weight(context(2.0), 7.0, 3.0) == 63.0
    assert fair_weights(context(1.0), 1.0, 0.0, change)[1] > 0


# --- in a worker


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(tiny_experiment(server={"fair_exponent": 2.0}, salience={"source": "public"}, local={"optimizer": "sgd"}))


def ran(runner: ClientRunner, one: RoundContext, flat: torch.Tensor, jobs: list[Job]) -> tuple[Update, torch.Tensor]:
    with one_thread():
        update, summed = runner.block(one, flat.numpy(), jobs)
    return update, torch.from_numpy(summed)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_block_sums_changes_by_the_loss_that_clients_measured_before_they_trained(prepared, stacked) -> None:
    setup, state = prepared.setup, state_of(prepared)
    work = begin_round(setup, state)
    runner, jobs = prepared.runner(), list(work.jobs)
    assert work.context.received_loss
    given = replace(work.context, stack=(8,) * len(work.context.plans) if stacked else ())
    update, summed = ran(runner, given, state.parameters, jobs)
    plain = replace(given, received_loss=False, fair_exponent=0.0, stack=())
    expected, covered, reports = torch.zeros_like(summed), dict[int, float](), {one.client: one for one in update.reports}
    for job in jobs:
        module = runner.module_factory.module(
            runner._parameters(state.parameters.numpy(), given, job.plan), given.plans[job.plan], given.norms
        ).eval()
        loss = reports[job.client].received_loss
        batch = runner.examples.batch(runner.shares[job.client], "cpu")
        labels = batch.pop("labels")
        with torch.no_grad():
            assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(module(**batch).logits, labels)), rel=1e-5)
        alone, change = ran(runner, plain, state.parameters, [replace(job, weight=1.0)])
        assert np.isnan(alone.reports[0].received_loss)
        assert reports[job.client].loss == pytest.approx(alone.reports[0].loss, rel=1e-4)
        squares = float(change.double().square().sum())
        expected += job.weight * loss**2 * change
        weight = job.weight * (loss**2 + 2 * loss * squares / given.learning_rate)
        covered[job.plan] = covered.get(job.plan, 0.0) + weight
    scale = float(expected.abs().max())
    torch.testing.assert_close(summed / scale, expected / scale, rtol=0, atol=1e-4)
    assert {plan: pytest.approx(weight, rel=1e-3) for plan, weight in covered.items()} == update.weights
    _, unweighted = ran(runner, plain, state.parameters, jobs)
    assert not torch.allclose(unweighted / scale, expected / scale, atol=1e-2)  # a control


def test_measuring_is_charged_a_forward_pass_of_all_examples(prepared) -> None:
    setup, state = prepared.setup, state_of(prepared)
    work = begin_round(setup, state)
    without = replace(work.context, received_loss=False)
    for visit in work.visits:
        job, plan = visit.job, work.context.plans[visit.job.plan]
        more = setup.costs(plan).forward_flops * setup.examples[job.client]
        report = planned_work(setup, work.context, job)
        assert training_flops(setup, work.context, report) == training_flops(setup, without, report) + more
        assert reported_work(setup, work.context, report).flops == training_flops(setup, work.context, report)
        assert cost_of(setup, work.context, job, report).seconds > cost_of(setup, without, job, report).seconds
        told = expected_work(setup, plan, [], setup.examples[job.client]).flops
        plain = replace(setup, experiment=tiny_experiment(local={"optimizer": "sgd"}))
        assert told == pytest.approx(expected_work(plain, plan, [], setup.examples[job.client]).flops + more)


# --- agnostic weighting


def test_the_mixture_takes_the_step_of_exponentiated_gradient() -> None:
    shares = np.array([0.5, 0.3, 0.2])
    start = Mixture(weights=shares, shares=shares, losses=np.full(3, np.nan))
    after = start.after([(0, 1.0, 1.0), (0, 3.0, 2.0), (1, 1.0, 4.0), (2, 2.0, 0.5)], rate=0.7)
    grown = shares * np.exp(0.7 * np.array([1.75, 4.0, 0.5]))
    np.testing.assert_allclose(after.weights, grown / grown.sum(), rtol=1e-12)
    assert not np.allclose(after.weights, shares * np.array([1.75, 4.0, 0.5]) / 2.175)  # a control: not in proportion to losses
    assert [start.factor(number) for number in range(3)] == [1, 1, 1]
    assert after.factor(1) == pytest.approx(after.weights[1] / 0.3)


def test_a_device_type_that_was_not_heard_of_steps_by_its_last_loss_and_one_that_never_was_by_the_mean() -> None:
    shares = np.array([0.5, 0.3, 0.2])
    start = Mixture(weights=shares, shares=shares, losses=np.full(3, np.nan))
    first = start.after([(0, 1.0, 1.0), (1, 1.0, 3.0), (2, 1.0, float("nan"))], rate=1.0)
    mean = (0.5 * 1 + 0.3 * 3) / 0.8
    grown = shares * np.exp([1.0, 3.0, mean])
    np.testing.assert_allclose(first.weights, grown / grown.sum(), rtol=1e-12)
    again = first.after([(0, 1.0, 2.0), (2, 1.0, 2.0)], rate=1.0)
    grown = first.weights * np.exp([2.0, 3.0, 2.0])
    np.testing.assert_allclose(again.weights, grown / grown.sum(), rtol=1e-12)
    assert start.after([], rate=1.0) is start
    wild = start.after([(0, 1.0, 1e4), (1, 1.0, -1e4)], rate=1.0)
    assert np.isfinite(wild.weights).all()


def test_rounds_come_to_where_the_worst_group_is_best_off_and_fedavg_does_not() -> None:
    """Two groups on a line, at 0 and 4: of one client and of three. The least of the worst is in the middle, the mean at 1."""
    places, weights = torch.tensor([4.0, 0.0]), np.array([1.0, 3.0])

    def end(rate: float) -> float:
        mixture, at, late = first_mixture(np.array([0, 1], dtype=np.int32), weights, 2), 0.0, list[float]()
        for number in range(4000):
            loss = [0.5 * (at - float(place)) ** 2 for place in places]
            factors = [weight * mixture.factor(group) for group, weight in enumerate(weights.tolist())]
            change = sum(factor * 0.02 * (float(place) - at) for factor, place in zip(factors, places, strict=True))
            mixture = mixture.after([(group, float(weights[group]), loss[group]) for group in range(2)], rate)
            at += change / sum(factors)
            late += [at] if number >= 2000 else []
        return sum(late) / len(late)

    assert end(0.01) == pytest.approx(2.0, abs=0.02)
    assert end(0.0) == pytest.approx(1.0, abs=1e-6)  # a control


def reporting(loss: Callable[[int], float]) -> Callable[..., Any]:
    def finished(setup: Any, state: Any, work: Any) -> Any:
        reports = [
            Report(
                client=job.client,
                plan=job.plan,
                examples=1,
                steps=1,
                loss=float("nan"),
                seconds=0.0,
                received_loss=loss(job.client),
            )
            for job in work.jobs
        ]
        return finish_round(setup, state, work, torch.zeros_like(state.parameters), [Update({}, tuple(reports))])

    return finished


@pytest.mark.parametrize("client_weight", ["examples", "equal"])
def test_jobs_weigh_by_the_mixture_which_begins_as_it_is_without(client_weight) -> None:
    changes: dict[str, Any] = {"rounds": 6, "strategy": {"client_weight": client_weight}}
    prepared = prepare(tiny_experiment(server={"agnostic_rate": 0.5}, **changes))
    setup, state = prepared.setup, state_of(prepared)
    plain = prepare(tiny_experiment(**changes)).setup
    assert state_of(prepare(tiny_experiment(**changes))).mixture is None
    first, without = begin_round(setup, state), begin_round(plain, replace(state, mixture=None))
    assert [job.weight for job in first.jobs] == [job.weight for job in without.jobs]
    weak = next(iter(setup.budgets))
    finished = reporting(lambda client: 5.0 if setup.device_types[client] == weak else 1.0)
    for _ in range(4):
        state = finished(setup, state, begin_round(setup, state))
    assert state.mixture is not None
    assert state.mixture.weights[0] > state.mixture.shares[0]
    for job in begin_round(setup, state).jobs:
        base = 1.0 if client_weight == "equal" else setup.examples[job.client]
        assert job.weight == base * state.mixture.factor(int(setup.device_type_numbers[job.client]))


def test_what_stays_with_a_client_is_in_place_when_it_measures_what_it_received() -> None:
    personal = ["classifier"]
    prepared = prepare(
        tiny_experiment(
            server={"fair_exponent": 1.0}, salience={"source": "public"}, strategy={"personal": personal}, local={"steps": 3}
        )
    )
    work = begin_round(prepared.setup, state := state_of(prepared))
    runner, job = prepared.runner(), work.jobs[0]
    flat = state.parameters.numpy()
    with one_thread():
        first, _ = runner.block(work.context, flat, [job])
        kept = first.states
        again, _ = runner.block(work.context, flat, [job], kept)
        fresh, _ = runner.block(work.context, flat, [job])
    assert again.reports[0].received_loss < first.reports[0].received_loss  # its own classifier was trained meanwhile
    assert fresh.reports[0].received_loss == first.reports[0].received_loss  # a control


def test_q_fedavg_is_not_with_a_control_variate() -> None:
    with pytest.raises(UserError, match=r"server.fair_exponent: 2 cannot be with local.client_update 'scaffold'"):
        prepare(tiny_experiment(server={"fair_exponent": 2.0}, local={"client_update": "scaffold"}, strategy={"prefix": "none"}))
