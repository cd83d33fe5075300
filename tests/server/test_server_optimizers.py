"""Server optimizers: each is its paper's algorithm, entry by entry, over the rounds in which an entry was trained."""

from dataclasses import replace
from math import copysign, sqrt
from typing import Any

import pytest
import torch
from conftest import tiny_experiment
from torch import Tensor

from raffm_ray.basics.errors import UserError
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.aggregation import flat_coverage
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS, Step
from raffm_ray.server.ranking import rank_again
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import new_state
from raffm_ray.settings.experiment import ServerSettings

RATES = {"sgd": 1.0, "momentum": 1.0, "adam": 0.001, "yogi": 0.001, "feddyn": 1.0}
SHARE = 0.7
"""What covers an entry, where anything does: a weight, or a part of that of all who hold it."""
SETTINGS = {"beta1": 0.8, "beta2": 0.95, "tau": 0.01}


def paper(
    name: str, start: float, changes: list[float], rate: float, beta1: float, beta2: float, tau: float, share: float
) -> float:
    """One number through Hsu et al.'s FedAvgM Reddi et al.'s algorithm 2 or Acar et al.'s FedDyn, in Python's floats."""
    w, v, m, square = start, 0.0, 0.0, tau * tau
    for change in changes:
        if name == "sgd":
            w += rate * change
        elif name == "momentum":
            v = beta1 * v + change
            w += rate * v
        elif name == "feddyn":
            v -= share * change
            w += rate * (change - v)
        else:
            m = beta1 * m + (1 - beta1) * change
            if name == "adam":
                square = beta2 * square + (1 - beta2) * change**2
            else:
                difference = square - change**2
                square -= (1 - beta2) * change**2 * copysign(1.0, difference)
            w += rate * m / (sqrt(square) + tau)
    return w


def rounds_of(optimizer: Step, settings: ServerSettings, start: Tensor, changes: Tensor, covered: Tensor) -> list[Any]:
    """[(parameters, moments)] after every round; an uncovered entry's average is its old value."""
    current, moments, history = start, {}, []
    for change, weight in zip(changes, covered, strict=True):
        averaged = torch.where(weight > 0, current + change, current)
        current, moments = optimizer(current, averaged, weight, moments, settings)
        history.append((current, moments))
    return history


def drawn(rounds: int = 12, entries: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """(start, changes of 0.001 to 0.1, weights of which about half are 0)."""
    rng = torch.Generator().manual_seed(0)
    scale = 10 ** (-1 - 2 * torch.rand(entries, generator=rng))
    changes = scale * (0.5 + torch.randn(rounds, entries, generator=rng))
    covered = torch.randint(0, 2, (rounds, entries), generator=rng) * SHARE
    return torch.randn(entries, generator=rng), changes, covered


def expected(name: str, start: Tensor, changes: Tensor, covered: Tensor, rate: float) -> Tensor:
    return torch.tensor(
        [
            paper(
                name,
                float(start[at]),
                changes[covered[:, at] > 0, at].double().tolist(),
                rate,
                **SETTINGS,
                share=float(covered[:, at].max()),
            )
            for at in range(len(start))
        ]
    )


@pytest.mark.parametrize("rate", [None, 0.3])
@pytest.mark.parametrize("name", sorted(SERVER_OPTIMIZERS))
def test_where_all_is_covered_it_is_the_paper_s_algorithm(name, rate) -> None:
    start, changes, covered = drawn()
    settings = ServerSettings(optimizer=name, learning_rate=rate, **SETTINGS)
    new, _ = rounds_of(SERVER_OPTIMIZERS[name].step, settings, start, changes, torch.ones_like(covered))[-1]
    wanted = expected(name, start, changes, torch.ones_like(covered), rate or RATES[name])
    torch.testing.assert_close(new, wanted, rtol=1e-4, atol=2e-6)
    assert not torch.allclose(new, start, atol=1e-3)


def everywhere(name: str) -> Step:
    """The control: an optimizer that takes what nobody trained for a change of zero."""
    return lambda old, averaged, covered, *rest: SERVER_OPTIMIZERS[name].step(old, averaged, torch.ones_like(covered), *rest)


@pytest.mark.parametrize("name", sorted(SERVER_OPTIMIZERS))
def test_an_entry_goes_through_the_algorithm_in_the_rounds_that_cover_it(name) -> None:
    start, changes, covered = drawn()
    settings = ServerSettings(optimizer=name, **SETTINGS)
    wanted = expected(name, start, changes, covered, RATES[name])
    new, _ = rounds_of(SERVER_OPTIMIZERS[name].step, settings, start, changes, covered)[-1]
    torch.testing.assert_close(new, wanted, rtol=1e-4, atol=2e-6)
    control, _ = rounds_of(everywhere(name), settings, start, changes, covered)[-1]
    assert name == "sgd" or not torch.allclose(control, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SERVER_OPTIMIZERS))
def test_an_uncovered_entry_keeps_its_bits_and_its_moments(name) -> None:
    start, changes, covered = drawn()
    settings = ServerSettings(optimizer=name, **SETTINGS)

    def moved(optimizer: Step) -> int:
        history = rounds_of(optimizer, settings, start, changes, covered)
        pairs = zip(history, history[1:], covered[1:], strict=False)
        return sum(
            int((one[away] != two[away]).sum())
            for before, after, weight in pairs
            for away in [weight == 0]
            for one, two in [(before[0], after[0]), *((before[1][key], after[1][key]) for key in after[1])]
        )

    assert moved(SERVER_OPTIMIZERS[name].step) == 0
    assert name == "sgd" or moved(everywhere(name)) > 0


def test_sgd_takes_the_average_to_the_bit_and_a_rate_scales_the_step() -> None:
    start, changes, covered = drawn()
    averaged = start + changes[0]
    assert SERVER_OPTIMIZERS["sgd"].step(start, averaged, covered[0], {}, ServerSettings())[0] is averaged
    half, _ = SERVER_OPTIMIZERS["sgd"].step(start, averaged, covered[0], {}, ServerSettings(learning_rate=0.5))
    torch.testing.assert_close(half, (start + averaged) / 2)


def test_optimizers_change_nothing_that_they_are_given() -> None:
    start, changes, covered = drawn()
    for name, optimizer in SERVER_OPTIMIZERS.items():
        settings = ServerSettings(optimizer=name)
        _, moments = optimizer.step(start, start + changes[0], covered[0], {}, settings)
        given = [start, start + changes[1], covered[1], moments]
        copies = [start.clone(), given[1].clone(), covered[1].clone(), {key: value.clone() for key, value in moments.items()}]
        first, again = (optimizer.step(*given, settings) for _ in range(2))
        assert torch.equal(first[0], again[0])
        assert all(torch.equal(one, two) for one, two in zip(given[:3], copies[:3], strict=True))
        assert all(torch.equal(moments[key], copies[3][key]) for key in moments)


@pytest.mark.parametrize(
    "name", sorted(name for name, row in SERVER_OPTIMIZERS.items() if name != "sgd" and not row.client_update)
)
def test_a_round_s_average_goes_through_the_optimizer_and_the_ranking_moves_nothing(name) -> None:
    plain, chosen = (prepare(tiny_experiment(server={"optimizer": one}, salience={"metric": "l1"})) for one in ("sgd", name))
    setup = chosen.setup
    size = sum(torch.Size(shape).numel() for shape in setup.architecture.shapes.values())
    flat = 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(0))
    state = rank_again(setup, new_state(flat), None)
    work = begin_round(setup, state)
    # Only a small client trains, so that some entries are covered by nobody.
    few = replace(work, blocks=((min(work.jobs, key=lambda job: job.plan),),))
    update, part = chosen.runner().block(few.context, flat.numpy(), few.jobs)
    averaged = finish_round(plain.setup, state, few, torch.from_numpy(part), [update]).parameters
    after = finish_round(setup, state, few, torch.from_numpy(part), [update])
    covered = flat_coverage(update.weights, few.context.plans, setup.architecture)
    assert 0 < int((covered == 0).sum()) < size
    wanted, moments = SERVER_OPTIMIZERS[name].step(flat, averaged, covered, {}, setup.experiment.server)
    assert torch.equal(after.parameters, wanted)
    assert torch.equal(after.parameters[covered == 0], flat[covered == 0])
    assert {key: values.shape for key, values in after.moments.items()} == dict.fromkeys(moments, flat.shape)
    ranked = rank_again(setup, after, None)
    assert any((ranked.scores[key] != state.scores[key]).any() for key in ranked.scores)
    assert ranked.moments is after.moments
    assert ranked.parameters is after.parameters
    nobody = finish_round(setup, after, begin_round(setup, after), torch.zeros(size), [])
    assert nobody.moments is after.moments
    assert torch.equal(nobody.parameters, after.parameters)


def test_a_run_names_its_optimizer(tmp_path) -> None:
    runs = {
        name: simulate(tiny_experiment(rounds=1, salience={"metric": "l1"}, server={"optimizer": name}), tmp_path / name)
        for name in ("sgd", "yogi")
    }
    assert runs["sgd"]["params_sha256"] != runs["yogi"]["params_sha256"]


def test_an_unknown_optimizer_is_refused_before_training() -> None:
    with pytest.raises(UserError, match=r"server.optimizer 'adm' is not known \(did you mean 'adam'\?\)"):
        prepare(tiny_experiment(server={"optimizer": "adm"}))
    assert prepare(tiny_experiment(server={"optimizer": "adam"}))
