"""What a client keeps: cut by plan, in the full model's indices, and carried over to another plan."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from round_states import context_of, state_of

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan, take_selected
from raffm_ray.basics.profiling import Stopwatch
from raffm_ray.clients.client_state import NO_STATE, ClientState, carried_over, recall
from raffm_ray.clients.client_state import state_of as kept_state
from raffm_ray.clients.messages import Job
from raffm_ray.clients.module_factory import ModuleFactory
from raffm_ray.clients.updates.row import OWN
from raffm_ray.preparation.prepare import prepare
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.rounds import begin_round


@pytest.fixture(scope="module")
def prepared():
    return prepare(
        tiny_experiment(strategy={"name": "raffm", "prefix": "none", "personal": ["classifier", "*layernorm_before*"]})
    )


def test_what_two_plans_share_is_carried_over_and_the_rest_begins_anew() -> None:
    full, start = torch.arange(20.0).view(4, 5), torch.full((4, 5), 100.0)
    before, after = (torch.tensor([2, 0]), torch.tensor([1, 3, 4])), (torch.tensor([0, 1, 2]), None)
    found = carried_over(take_selected(full, before), before, after, start)
    expected = torch.full((4, 5), 100.0)
    for row in (0, 2):
        for column in (1, 3, 4):
            expected[row, column] = full[row, column]
    assert torch.equal(found, expected[[0, 1, 2]])
    assert not torch.equal(found, take_selected(full, after))  # the control: another order and other entries


def test_a_state_survives_a_new_ranking_and_a_larger_plan(prepared) -> None:
    architecture = prepared.setup.architecture
    factory = ModuleFactory(architecture, Stopwatch())
    states = [state_of(prepared, seed) for seed in (0, 1)]  # two rankings
    small, other = (next(iter(device_type_plans(prepared.setup, state).values())) for state in states)
    assert small != other
    named = views(states[0].parameters, architecture.shapes)
    values = {name: torch.randn(values.shape, generator=torch.Generator().manual_seed(3)) for name, values in named.items()}
    state = kept_state(small, {"kept": factory.cut(values, small, {})}, {"steps": 3.0})
    for plan in (small, other, Plan()):
        given = factory.cut(named, plan, {})
        memory = recall(state, plan, {"kept": "zeros"}, given, named, factory)
        assert memory.numbers == {"steps": 3.0}
        held = factory.cut({name: torch.ones_like(one) for name, one in named.items()}, small, {})
        for name, found in memory.kept["kept"].items():
            mask = torch.zeros(architecture.shapes[name])
            if name in held:
                mask = carried_over(held[name], factory.selections(small)[name], (None,) * mask.dim(), mask)
            expected = factory.cut({**named, name: values[name] * mask}, plan, {})[name]
            assert torch.equal(found, expected), (plan, name)


def test_who_never_trained_begins_as_the_row_says(prepared) -> None:
    factory, state = ModuleFactory(prepared.setup.architecture, Stopwatch()), state_of(prepared)
    named = views(state.parameters, prepared.setup.architecture.shapes)
    plan = next(iter(device_type_plans(prepared.setup, state).values()))
    given = factory.cut(named, plan, {})
    memory = recall(NO_STATE, plan, {"a": "zeros", "b": "received"}, given, named, factory)
    assert all(not bool(values.any()) for values in memory.kept["a"].values())
    assert all(torch.equal(values, given[name]) for name, values in memory.kept["b"].items())
    next(iter(memory.kept["b"].values())).add_(1)
    assert not torch.equal(next(iter(memory.kept["b"].values())), next(iter(given.values())))  # it shares no memory


def run_of(prepared, personal, states=None, seed=0):
    """A block of three clients: its update, and its sum by name."""
    state = state_of(prepared, seed)
    work = begin_round(prepared.setup, state)
    jobs = tuple(replace(job, calibrate=False) for job in work.jobs[:3])
    runner = prepared.runner()
    context = replace(work.context, personal=personal, statistic=None)
    update, total = runner.block(context, state.parameters.numpy(), jobs, states or {})
    return update, views(torch.from_numpy(total), prepared.setup.architecture.trained_shapes), jobs, context


def test_personal_parameters_are_trained_and_kept_and_never_sent(prepared) -> None:
    personal = prepared.setup.personal
    assert personal
    update, total, jobs, _ = run_of(prepared, personal)
    plain, moved, *_ = run_of(prepared, ())
    assert not plain.states
    for name, values in total.items():
        assert bool(values.any()) == (name not in personal)
        assert bool(moved[name].any())  # the control: without being personal it moves
    for job in jobs:
        assert set(update.states[job.client].of_kind(OWN)) == set(personal)


def test_a_client_goes_on_from_its_own_parameters(prepared) -> None:
    personal = prepared.setup.personal
    first, total, jobs, _ = run_of(prepared, personal)
    again, other, *_ = run_of(prepared, personal, first.states)
    same, _, *_ = run_of(prepared, personal, {})
    client = jobs[0].client
    one, two, three = (update.states[client].of_kind(OWN) for update in (first, again, same))
    assert all(torch.equal(one[name], three[name]) for name in one)
    assert not all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(total[name], other[name]) for name in total)


def test_a_state_that_is_not_finite_is_refused(prepared) -> None:
    personal = prepared.setup.personal
    first, *_ = run_of(prepared, personal)
    client, state = next(iter(first.states.items()))
    name = f"{OWN}/{personal[0]}"
    bad = ClientState(state.plan, {**state.tensors, name: torch.full_like(state.tensors[name], np.nan)})
    again, *_ = run_of(prepared, personal, {client: bad})
    report = next(one for one in again.reports if one.client == client)
    assert report.refused
    assert client not in again.states
    assert report.state_bytes is None
    assert all(not one.refused and one.state_bytes for one in again.reports if one.client != client)


def test_law_10_a_state_does_not_depend_on_its_block(prepared) -> None:
    personal = prepared.setup.personal
    first, _, jobs, context = run_of(prepared, personal)
    flat = state_of(prepared).parameters.numpy()
    both = prepared.runner().block(context, flat, jobs[:2], first.states)[0].states
    alone = {}
    for job in jobs[:2]:
        alone |= prepared.runner().block(context, flat, (job,), first.states)[0].states
    assert both.keys() == alone.keys()
    for client in both:
        for key, values in both[client].tensors.items():
            assert torch.equal(values, alone[client].tensors[key])
    swapped = dict(zip(first.states, reversed(first.states.values()), strict=True))
    other = prepared.runner().block(context, flat, jobs[:2], swapped)[0].states  # the control: another client's state
    assert any(
        not torch.equal(values, both[client].tensors[key])
        for client in both
        for key, values in other[client].tensors.items()
        if values.shape == both[client].tensors[key].shape
    )


def test_a_calibrating_client_keeps_what_it_had(prepared) -> None:
    state = state_of(prepared)
    context = context_of(prepared, state, Plan(), personal=prepared.setup.personal)
    update, _ = prepared.runner().block(context, state.parameters.numpy(), (Job(0, None, calibrate=True),), {})
    assert not update.states
    assert update.reports[0].state_bytes is None
