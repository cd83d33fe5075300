"""Law 8: frozen parameters travel once. What devices hold of them, and what they are charged for the rest."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from plans import random_cut
from realistic_models import ALL
from round_states import state_of

from raffm_ray.axes.indexing import Plan, add_coverage
from raffm_ray.axes.layout import is_kept
from raffm_ray.models.architecture import Architecture
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.server.kept.held_parameters import Held, common_bytes, missing_bytes
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import ServerState
from raffm_ray.subnetworks.costs import costs_of

SMALL, LARGE = Plan({"residual": np.arange(8)}), Plan({"residual": np.arange(16)})


def half_frozen(architecture: Architecture) -> Architecture:
    specs = architecture.layout.parameters
    held = {name: replace(spec, frozen=position % 2 == 0) for position, (name, spec) in enumerate(specs.items())}
    return replace(architecture, layout=replace(architecture.layout, parameters=held))


def entries(architecture: Architecture, name: str, plan: Plan) -> torch.Tensor:
    """Which entries of a parameter a plan has, by the mask itself."""
    layout, spec = architecture.layout, architecture.layout.parameters[name]
    found = torch.zeros(architecture.shapes[name])
    return add_coverage(found, spec.dims, layout.axes, plan).bool() if is_kept(spec.layer, plan) else found.bool()


@pytest.mark.parametrize("seed", range(3))
def test_what_a_device_lacks_is_what_its_plan_has_besides_entry_by_entry(architecture, seed) -> None:
    held, rng = half_frozen(architecture), np.random.default_rng(seed)
    plan, before = (random_cut(held.layout, rng, ALL, layers=True) for _ in range(2))
    lacking = sum(int((entries(held, name, plan) & ~entries(held, name, before)).sum()) for name in held.frozen_shapes)
    assert missing_bytes(held, plan, before) == 4 * lacking
    assert missing_bytes(held, plan, plan) == 0
    costs = costs_of(held, plan)
    assert missing_bytes(held, plan, None) == costs.bytes - costs.bytes_up
    assert missing_bytes(held, plan, Plan()) == 0
    assert missing_bytes(held, Plan(), plan) > 0  # a control: it is not symmetric
    names = tuple(held.trained_shapes)
    both = sum(int((entries(held, name, plan) & entries(held, name, before)).sum()) for name in names)
    assert common_bytes(held, plan, before, names) == common_bytes(held, before, plan, names) == 4 * both
    assert common_bytes(held, plan, Plan(), names) == costs.bytes_up


def test_a_device_holds_the_plan_that_it_received_last_and_plans_that_nobody_holds_are_forgotten() -> None:
    nobody = Held()
    assert nobody.by(3) is None
    first = nobody.after({1: SMALL, 3: LARGE}, 5)
    assert [first.by(client) for client in range(5)] == [None, SMALL, None, LARGE, None]
    again = first.after({1: LARGE}, 5)
    assert [again.by(client) for client in range(5)] == [None, LARGE, None, LARGE, None]
    assert again.plans == (LARGE,)
    assert first.after({}, 5) is first


def frozen_run(rounds: int, **fleet: Any) -> tuple[Prepared, list[Any], ServerState]:
    """Rounds in which nobody's training matters."""
    prepared = prepare(tiny_experiment(model={"freeze": ["*embeddings*", "*layers.0.*"]}, rounds=rounds, fleet=fleet))
    state, works = state_of(prepared), []
    for _ in range(rounds):
        work = begin_round(prepared.setup, state)
        state = finish_round(prepared.setup, state, work, torch.zeros_like(state.parameters), [])
        works.append(work)
    return prepared, works, state


def test_a_device_is_charged_for_what_is_frozen_once() -> None:
    prepared, works, state = frozen_run(6)
    seen: dict[int, Plan] = {}
    again = 0
    for work in works:
        for visit in work.visits:
            client, plan = visit.job.client, work.context.plans[visit.job.plan]
            costs = prepared.setup.costs(plan)
            wanted = 0 if seen.get(client) == plan else costs.bytes - costs.bytes_up
            again += client in seen
            assert visit.cost.frozen_bytes_down == wanted
            assert visit.cost.bytes_down == costs.bytes_up + wanted
            seen[client] = plan
    assert again > 3
    assert all(state.held.by(client) == plan for client, plan in seen.items())


def test_control_a_device_that_does_not_keep_it_is_charged_every_round() -> None:
    prepared, works, state = frozen_run(4, keeps_frozen=False)
    visits = [(work.context.plans[visit.job.plan], visit) for work in works for visit in work.visits]
    assert all(visit.cost.bytes_down == prepared.setup.costs(plan).bytes for plan, visit in visits)
    assert not state.held.plans


def test_who_drops_out_holds_what_it_held_before() -> None:
    prepared = prepare(tiny_experiment(model={"freeze": ["*embeddings*"]}, clock={"dropout": 0.999999}))
    state = state_of(prepared)
    work = begin_round(prepared.setup, state)
    assert {visit.outcome for visit in work.visits} == {"dropped"}
    assert not finish_round(prepared.setup, state, work, torch.zeros_like(state.parameters), []).held.plans
