"""Client updates against their formulas, on clients whose losses are quadratics: all that a method ends at is known."""

from typing import Any

import pytest
import torch
from quadratics import BODY, ENTRIES, RATE, Federation, Quadratic, after, clients_of, eye, nothing, rounds_of
from torch import Tensor

from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.updates.control_variates import CONTROL, DUAL
from raffm_ray.clients.updates.row import OWN
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS

STEPS, PULL, FAR = 4, 1.0, 0.1
"""Steps of a client, `local.proximal`, and how far apart at least two points are that must differ."""
HERE = {"scaffold": {}, "feddyn": {"proximal": PULL}}
"""The updates that move to the optimum of the mean, and the settings that they need."""


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def gradient(clients: Federation, client: int, at: Tensor) -> Tensor:
    """[entries]: of a client's loss, 0 of what it does not hold."""
    held = clients.held[client]
    flat = nothing()
    flat[held] = clients.cut(client) @ (at[held] - clients.optima[client][held])
    return flat


@pytest.mark.parametrize("in_part", [False, True])
def test_fedavg_stands_still_beside_the_optimum(in_part: bool) -> None:
    clients = clients_of(in_part)
    ended = after(30, "standard", clients, STEPS).flat
    assert apart(ended, clients.fedavg(STEPS)) < 1e-6
    assert apart(ended, clients.optimum) > FAR
    assert apart(after(60, "standard", clients, 1).flat, clients.optimum) < 1e-6  # of one step it is gradient descent


@pytest.mark.parametrize("per_round", [0, 2])
@pytest.mark.parametrize("in_part", [False, True])
@pytest.mark.parametrize("name", HERE)
def test_what_corrects_for_drift_reaches_the_optimum(name: str, in_part: bool, per_round: int) -> None:
    clients = clients_of(in_part)
    ended = after(100 if per_round else 40, name, clients, STEPS, per_round=per_round, **HERE[name])
    assert apart(ended.flat, clients.optimum) < 1e-6
    assert apart(clients.fedavg(STEPS), clients.optimum) > FAR
    kind = CONTROL if name == "scaffold" else DUAL
    for client in range(len(clients.weights)):
        kept = ended.kept_flat(clients, client, kind)
        assert apart(kept, gradient(clients, client, clients.optimum)) < 1e-5
        assert apart(kept, gradient(clients, client, clients.fedavg(STEPS))) > FAR / 10


@pytest.mark.parametrize("in_part", [False, True])
def test_the_variate_is_the_mean_of_the_clients_own(in_part: bool) -> None:
    clients = clients_of(in_part)
    rounds = rounds_of("scaffold", clients, STEPS, per_round=2)
    for _, state in zip(range(8), rounds, strict=False):
        assert apart(state.variate, state.mean_kept(clients, CONTROL)) < 1e-12
    assert apart(state.variate, state.mean_kept(clients, CONTROL, state.moved)) > FAR


def test_a_mean_over_a_rounds_clients_times_their_part_of_all_drifts_away() -> None:
    """As the paper's line 17 is where everybody holds everything: what few hold is then corrected by another mean than that of its holders."""

    def by_part(clients: Federation) -> Any:
        every = float(clients.weights.sum())

        def change(summed: Tensor, covered: Tensor) -> Tensor:
            return torch.where(covered > 0, summed / covered.clamp(min=1e-9), 0.0) * float(covered.max()) / every

        return change

    for in_part in (False, True):
        clients = clients_of(in_part)
        ended = after(100, "scaffold", clients, STEPS, per_round=2, change_of=by_part(clients))
        assert (apart(ended.flat, clients.optimum) > FAR) is in_part


def test_scaffold_takes_the_steps_of_its_formula() -> None:
    clients = clients_of(True)
    rounds = rounds_of("scaffold", clients, STEPS)
    before = next(rounds)
    x, c = before.flat.clone(), before.variate.clone()
    controls = [before.kept_flat(clients, client, CONTROL) for client in range(len(clients.weights))]
    state = next(rounds)
    for client, control in enumerate(controls):
        y, held = x.clone(), clients.held[client]
        for _ in range(STEPS):
            step = nothing()
            step[held] = (gradient(clients, client, y) - control + c)[held]
            y = y - RATE * step
        wanted = nothing()
        wanted[held] = (control - c + (x - y) / (STEPS * RATE))[held]
        assert apart(state.kept_flat(clients, client, CONTROL), wanted) < 1e-12


def test_feddyns_server_remembers_the_mean_of_the_clients_duals() -> None:
    clients = clients_of(True)
    for _, state in zip(range(8), rounds_of("feddyn", clients, STEPS, per_round=2, proximal=PULL), strict=False):
        assert apart(PULL * state.moments["drift"], state.mean_kept(clients, DUAL)) < 1e-12
    assert apart(PULL * state.moments["drift"], state.mean_kept(clients, DUAL, state.moved)) > FAR


def test_ditto_averages_as_fedavg_and_keeps_the_optimum_near_it() -> None:
    clients = clients_of()
    ended = after(30, "ditto", clients, STEPS, proximal=PULL)
    assert apart(ended.flat, clients.fedavg(STEPS)) < 1e-6
    for client in range(len(clients.weights)):
        mine = ended.kept_flat(clients, client, OWN)
        assert apart(mine, _near(clients, client, ended.flat, PULL)) < 1e-6
        assert apart(mine, _near(clients, client, ended.flat, 2 * PULL)) > 0.01
        assert apart(mine, clients.optima[client]) > FAR


def _near(clients: Federation, client: int, centre: Tensor, pull: float) -> Tensor:
    """The minimum of F_i(v) + pull/2 ||v - centre||^2."""
    matrix = clients.matrices[client]
    return torch.linalg.solve(matrix + pull * eye(matrix), matrix @ clients.optima[client] + pull * centre)


def test_pfedme_is_gradient_descent_on_the_envelopes() -> None:
    clients, half = clients_of(), PULL / 2
    first = after(1, "pfedme", clients, 1, proximal=half)
    assert apart(first.flat, RATE * half * first.mean_kept(clients, OWN)) < 1e-12  # from 0: w - rate lambda (w - theta)
    ended = after(100, "pfedme", clients, 1, proximal=PULL)
    envelopes = clients.mean_zero(clients.pulls(lambda a: torch.linalg.solve(a + PULL * eye(a), a)))
    assert apart(ended.flat, envelopes) < 1e-6
    assert apart(envelopes, clients.optimum) > FAR
    for client in range(len(clients.weights)):
        assert apart(ended.kept_flat(clients, client, OWN), _near(clients, client, envelopes, PULL)) < 1e-6


def test_per_fedavg_stands_still_where_gradients_after_a_step_add_up_to_nothing() -> None:
    clients = clients_of()
    ended = after(80, "per_fedavg", clients, 1).flat
    assert apart(ended, clients.mean_zero(clients.pulls(lambda a: a @ (eye(a) - RATE * a)))) < 1e-6
    assert apart(ended, clients.optimum) > 0.01  # with one step, FedAvg is there


def test_fedrep_moves_personal_parameters_then_the_others() -> None:
    clients = clients_of()
    rounds = rounds_of("fedrep", clients, STEPS, personal=["head"])
    next(rounds)
    state = next(rounds)
    before, heads = state.flat.clone(), {one: values["head"].clone() for one, values in state.own.items()}
    state = next(rounds)
    total = nothing()
    for client, weight in enumerate(clients.weights):
        y = torch.cat([before[:BODY], heads[client]])
        for part in (slice(BODY, ENTRIES), slice(BODY)):
            for _ in range(STEPS):
                y[part] -= RATE * gradient(clients, client, y)[part]
        assert apart(state.own[client]["head"], y[BODY:]) < 1e-12
        total += weight * torch.cat([y[:BODY] - before[:BODY], torch.zeros(ENTRIES - BODY)])
    assert apart(state.flat, before + total / clients.weights.sum()) < 1e-12
    assert apart(state.flat[BODY:], torch.zeros(ENTRIES - BODY)) == 0  # the server's never move
    together = after(3, "standard", clients, STEPS, personal=["head"])
    assert apart(together.flat, state.flat) > 0.01


@pytest.mark.parametrize("name", sorted(HERE))
def test_personal_parameters_are_not_corrected(name: str) -> None:
    clients = clients_of()
    ended = after(50, name, clients, STEPS, personal=["head"], **HERE[name])
    for client in range(len(clients.weights)):
        mine = torch.cat([ended.flat[:BODY], ended.own[client]["head"]])
        assert apart(gradient(clients, client, mine)[BODY:], torch.zeros(ENTRIES - BODY)) < 1e-5
        assert apart(gradient(clients, client, mine)[:BODY], torch.zeros(BODY)) > FAR
    total = sum(
        weight * gradient(clients, client, torch.cat([ended.flat[:BODY], ended.own[client]["head"]]))[:BODY]
        for client, weight in enumerate(clients.weights)
    )
    assert apart(torch.as_tensor(total), torch.zeros(BODY)) < 1e-4


def test_what_is_charged_is_what_goes_through_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = Quadratic.forward
    monkeypatch.setattr(Quadratic, "forward", lambda self, matrix: (seen.append(1), plain(self, matrix))[1])
    for name, row in CLIENT_UPDATES.items():
        seen.clear()
        options = {"proximal": PULL} if row.proximal else {}
        after(1, name, clients_of(count=1), STEPS, personal=["head"] if row.personal else [], **options)
        assert len(seen) == row.passes * STEPS, name


def test_a_server_without_its_side_of_feddyn_ends_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quadratics.SERVER_OPTIMIZERS", {"sgd": SERVER_OPTIMIZERS["sgd"]})
    clients = clients_of(True)
    ended = after(100, "feddyn", clients, STEPS, per_round=2, proximal=PULL)
    assert apart(ended.flat, clients.optimum) > 1e-3
