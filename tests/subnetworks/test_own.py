"""Parameters of which sizes have copies of their own: which copy a size uses, who trains it, and what is left on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, architecture_case, small_tokenizer, tiny_experiment
from methods import WHOLE
from safetensors.torch import load_file
from text_data import WORDS, glue_folder, text_experiment
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan, take
from raffm_ray.axes.layout import is_kept
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.messages import Update
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.baselines import with_strategy
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs.evaluation import measure
from raffm_ray.runs.recorder import parameters_sha256
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.clock import LateUpdate, VirtualClock
from raffm_ray.server.device_type_plans import copies, device_type_plans
from raffm_ray.server.ranking import rank_again
from raffm_ray.server.round_schedule import advance_clock
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import new_state
from raffm_ray.settings.strategy import BaselineSettings
from raffm_ray.subnetworks.size_specific import SIZE_SPECIFIC, copies_of, saved_copies, size_specific_names, with_copies

BOTH = ("norms", "classifier")
EVERYBODY = {"count": 12, "per_round": 12}


def system(own: tuple[str, ...] = BOTH, strategy: Mapping[str, Any] | None = None, **changes: Any):
    """A prepared experiment, and its ranked state with random parameters; copies differ from the model's own and from each other."""
    values = {
        "clients": EVERYBODY,
        "salience": {"metric": "l1"},
        "local": {"steps": 2},
        "pool": {"backend": "in_process", "stack_clients": 1},
        **changes,
    }
    prepared = prepare(tiny_experiment(strategy={"aggregation": "coverage", "own": own, **(strategy or {})}, **values))
    setup, generator = prepared.setup, torch.Generator().manual_seed(0)
    size = sum(map(prod, setup.architecture.shapes.values()))
    flat = with_copies(0.1 * torch.randn(size, generator=generator), setup.architecture, setup.size_specific, len(setup.budgets))
    flat[size:] += 0.1 * torch.randn(len(flat) - size, generator=generator)
    return prepared, rank_again(setup, new_state(flat), None)


def one_round(prepared: Any, state: Any):
    """(the round, the state after it)."""
    work = begin_round(prepared.setup, state)
    summed, updates, runner = torch.zeros_like(state.parameters), [], prepared.runner()
    for block in work.blocks:
        update, part = runner.block(work.context, state.parameters.numpy(), block)
        summed += torch.from_numpy(part)
        updates.append(update)
    return work, finish_round(prepared.setup, state, work, summed, updates)


def by_hand(flat: Tensor, shapes: Mapping[str, tuple[int, ...]], size_specific: Sequence[str], copy: int) -> dict[str, Tensor]:
    """What a copy's subnetworks are cut out of, entry after entry of the flat array."""
    at, found = 0, {}
    for number in range(copy + 1):
        for name in size_specific if number else shapes:
            found[name] = flat[at : at + prod(shapes[name])].reshape(shapes[name])
            at += prod(shapes[name])
    return found


def changed(prepared: Any, before: Any, after: Any) -> set[int]:
    """The copies (0: the model's own) with owned parameters that a round changed."""
    setup = prepared.setup
    old, new = (
        [by_hand(state.parameters, setup.architecture.shapes, setup.size_specific, copy) for copy in range(len(setup.budgets))]
        for state in (before, after)
    )
    return {
        copy for copy in range(len(old)) if any(not torch.equal(old[copy][name], new[copy][name]) for name in setup.size_specific)
    }


def trained_copies(prepared: Any, state: Any, number: int) -> set[int]:
    """The copies that clients of the round after `number` train."""
    work = begin_round(prepared.setup, replace(state, round=number))
    return {work.context.copy_of(job.plan) for job in work.jobs}


def test_a_size_uses_the_copy_of_the_largest_trained_one_that_is_not_larger() -> None:
    assert copies_of([10, 20, 40], [5, 10, 15, 20, 39, 40, 50]) == (1, 1, 1, 2, 2, 0, 0)
    assert copies_of([40, 10, 20], [10, 20, 40]) == (1, 2, 0)
    assert copies_of([10], [5, 10, 20]) == (0, 0, 0)
    assert copies_of([10, 10, 40], [5, 10, 40]) == (2, 2, 0)
    assert copies_of([10, 10], [5, 10, 20]) == (0, 0, 0)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_what_is_owned_is_told_without_the_family(name: str, head: str) -> None:
    architecture = architecture_case(name, head)
    layout = architecture.layout
    assert {one.rpartition(".")[0] for one in size_specific_names(layout, ["norms"])} == set(layout.norms)
    with torch.device("meta"):
        bare = AutoModel.from_config(AutoConfig.for_model(**architecture.config.to_dict()))
    inside = {one for one, _ in bare.named_parameters() if not one.startswith("pooler.")}
    beside = [one for one in architecture.shapes if not any(one == other or one.endswith(f".{other}") for other in inside)]
    if beside:
        assert list(size_specific_names(layout, ["classifier"])) == beside
        both = size_specific_names(layout, BOTH)
        assert set(both) == {*beside, *size_specific_names(layout, ["norms"])}
        assert list(both) == [one for one in architecture.shapes if one in both]
    else:
        with pytest.raises(UserError, match=r"strategy\.own: this model has no classifier"):
            size_specific_names(layout, ["classifier"])
    with pytest.raises(UserError, match=r"strategy\.own: this model has no norms"):
        size_specific_names(replace(layout, norms=()), ["norms"])


def test_mistakes_are_told_before_training() -> None:
    with pytest.raises(UserError, match=r"strategy\.own 'norm' is not known .did you mean 'norms'"):
        prepare(tiny_experiment(strategy={"own": ("norm",)}))
    with pytest.raises(UserError, match=r"strategy\.own: norms: the divisor of all clients .* must be coverage or damped"):
        prepare(tiny_experiment(strategy={"name": "raffm_reference", "own": ("norms",)}))
    assert set(SIZE_SPECIFIC) == set(BOTH)


def test_without_the_setting_there_are_no_copies() -> None:
    prepared, state = system(own=())
    work, _ = one_round(prepared, state)
    assert prepared.setup.size_specific == work.context.size_specific == ()
    assert len(state.parameters) == sum(map(prod, prepared.setup.architecture.shapes.values()))
    assert set(work.context.copies) == {0}
    own, own_state = system()
    assert len(own_state.parameters) > len(state.parameters)
    assert set(one_round(own, own_state)[0].context.copies) == set(range(5))
    assert with_strategy(own, BaselineSettings(name="full")).setup.size_specific == ()  # a baseline has its own defaults


@pytest.mark.parametrize("name", WHOLE)
def test_a_device_type_is_measured_with_the_copy_that_its_clients_train(name: str) -> None:
    prepared, state = system(strategy={"name": name}, clients={"count": 40, "per_round": 40})
    setup = prepared.setup
    assert set(setup.device_types) == set(setup.budgets)
    deployed = device_type_plans(setup, state)
    measured = dict(zip(deployed, copies(setup, state, list(deployed.values())), strict=True))
    for number in range(3):
        work = begin_round(setup, replace(state, round=number))
        trained = {(setup.device_types[job.client], work.context.copy_of(job.plan)) for job in work.jobs}
        assert trained <= set(measured.items())
        assert {copy for _, copy in trained} == set(measured.values())
    assert copies(setup, state, [Plan()]) == (0,)
    if name in ("full", "exclusive"):  # control: going by the sizes that device types get, most copies would stay as they began
        sizes = [setup.costs(plan).params for plan in deployed.values()]
        assert set(copies_of(sizes, sizes)) - {copy for _, copy in trained}


def test_a_device_type_that_owns_no_data_has_no_copy() -> None:
    prepared, state = system()
    setup = prepared.setup
    weakest, next_one = [one for one in setup.budgets if one in setup.device_types][:2]
    assert copies(setup, state, list(device_type_plans(setup, state).values())) == (1, 2, 3, 4, 0)
    owners = [0 if name == weakest else count for name, count in zip(setup.device_types, setup.examples, strict=True)]
    without = replace(setup, examples=owners)
    plans = device_type_plans(without, state)
    work = begin_round(without, state)
    shared = {work.context.copy_of(job.plan) for job in work.jobs if setup.device_types[job.client] == next_one}
    assert set(copies(without, state, [plans[weakest], plans[next_one]])) == shared


def test_sizes_go_by_parameters_and_not_by_the_order_of_devices() -> None:
    budgets = {"raspberry_pi_4": 0.9, "raspberry_pi_5": 0.5, "laptop": 0.65, "jetson_agx_orin": 0.8, "v100": 0.4}
    prepared, state = system(
        fleet={"budgets": {name: {"params": share} for name, share in budgets.items()}}, clients={"count": 40, "per_round": 40}
    )
    plans = device_type_plans(prepared.setup, state)
    used = copies(prepared.setup, state, [*plans.values(), Plan()])
    assert dict(zip(plans, used, strict=False)) == {
        "raspberry_pi_4": 0,
        "raspberry_pi_5": 2,
        "laptop": 3,
        "jetson_agx_orin": 4,
        "v100": 1,
    }
    assert used[-1] == 0


@pytest.mark.parametrize("name", ["raffm", "fedrolex", "depth", "federated_dropout"])
def test_only_a_size_s_own_clients_train_its_copy(name: str) -> None:
    changes: dict[str, Any] = {"clients": {"count": 40, "per_round": 2}}
    prepared, state = system(strategy={"name": name}, **changes)
    state = replace(state, round=next(one for one in range(20) if 0 not in trained_copies(prepared, state, one)))
    work, after = one_round(prepared, state)
    assert changed(prepared, state, after) == {work.context.copy_of(job.plan) for job in work.jobs}
    # Control: without copies, the same clients change the norms of the largest size too.
    plain, before = system(own=(), strategy={"name": name}, **changes)
    before = replace(before, round=state.round)
    plain_work, plain_after = one_round(plain, before)
    assert [job.client for job in plain_work.jobs] == [job.client for job in work.jobs]
    shapes, norm = plain.setup.architecture.shapes, f"{plain.setup.architecture.layout.norms[-1]}.weight"
    assert not torch.equal(views(before.parameters, shapes)[norm], views(plain_after.parameters, shapes)[norm])


@pytest.mark.parametrize("name", ["raffm", "fedrolex", "depth"])
def test_copies_are_averaged_as_the_dense_oracle_says(name: str) -> None:
    prepared, state = system(strategy={"name": name, "prefix": "none"})
    setup, runner = prepared.setup, prepared.runner()
    shapes, layout = setup.architecture.shapes, setup.architecture.layout
    work, after = one_round(prepared, state)
    sizes = [setup.costs(plan).params for plan in device_type_plans(setup, state).values()]
    sums: dict[tuple[str, int], Tensor] = {}
    weights: dict[tuple[str, int], Tensor] = {}
    for job in work.jobs:
        assert job.plan is not None
        plan = work.context.plans[job.plan]
        used = sum(size <= setup.costs(plan).params for size in sizes) % len(sizes)
        given = by_hand(state.parameters, shapes, setup.size_specific, used)
        change = runner._train(given, work.context, job, job.plan).change
        for one, spec in layout.parameters.items():
            if not is_kept(spec.layer, plan):
                continue
            places = take(torch.arange(prod(shapes[one])).view(shapes[one]), spec.dims, layout.axes, plan).flatten()
            part, change = change[: len(places)], change[len(places) :]
            trained = given[one].flatten()[places].double() + part.double()
            for totals, values in ((sums, trained), (weights, torch.ones_like(trained))):
                key = (one, used if one in setup.size_specific else 0)
                totals.setdefault(key, torch.zeros(prod(shapes[one]), dtype=torch.float64))[places] += job.weight * values
        assert len(change) == 0
    assert len({copy for _, copy in sums}) > 2
    for copy in range(len(setup.budgets)):
        old, new = (by_hand(one.parameters, shapes, setup.size_specific, copy) for one in (state, after))
        for one in setup.size_specific if copy else shapes:
            covered = weights.get((one, copy), torch.zeros(1))
            expected = torch.where(
                covered > 0, sums.get((one, copy), covered) / covered.clamp(min=1), old[one].double().flatten()
            )
            torch.testing.assert_close(new[one].double().flatten(), expected, atol=1e-5, rtol=0)


def test_a_late_update_goes_to_the_copy_that_it_was_trained_from() -> None:
    prepared, state = system(clock={"late": "accept"})
    work = begin_round(prepared.setup, state)
    shapes, size_specific = prepared.setup.architecture.shapes, prepared.setup.size_specific
    summed = torch.zeros_like(state.parameters)
    views(summed, shapes, size_specific, 2)[size_specific[-1]].fill_(6.0)

    sent = replace(work, visits=tuple(replace(visit, outcome="stale") for visit in work.visits))
    updates = [Update({visit.job.plan: 1.0}, ()) for visit in sent.visits]
    waiting, _ = advance_clock(prepared.setup, state.clock, sent, updates, [summed] * len(updates))
    assert [late.copy for late in waiting.late] == [work.context.copy_of(visit.job.plan) for visit in work.visits]
    assert {late.copy for late in waiting.late} == set(range(5))

    def after(copy: int) -> Any:
        late = LateUpdate(round=0, arrival_seconds=0.0, visit=work.visits[0], plan=Plan(), weight=2.0, summed=summed, copy=copy)
        return finish_round(prepared.setup, replace(state, clock=VirtualClock(late=(late,))), work, torch.zeros_like(summed), [])

    assert changed(prepared, state, after(2)) == {2}
    assert changed(prepared, state, after(0)) == set()  # control: nobody covers what has changed


def test_blocks_may_run_anywhere_and_be_cut_anyhow() -> None:
    results = {}
    for size in (1, 4):
        pool = {"backend": "in_process", "stack_clients": 1, "block_clients": size}
        prepared, state = system(pool=pool, clients={"count": 12, "per_round": 8})
        work, after = one_round(prepared, state)
        results[size] = after.parameters
        assert len(work.blocks) == 8 // size
    torch.testing.assert_close(results[4], results[1], atol=1e-6, rtol=1e-5)
    one, *others = (prepared.runner() for _ in range(3))
    there = [one.block(work.context, state.parameters.numpy(), block)[1] for block in work.blocks]
    back = [
        other.block(work.context, state.parameters.numpy(), block)[1]
        for other, block in zip(others, work.blocks[::-1], strict=True)
    ]
    assert all((part == other).all() for part, other in zip(there, back[::-1], strict=True))
    assert not (there[0] == there[1]).all()


def test_stacked_clients_train_their_size_s_copy() -> None:
    results = []
    for stacked in (1, 4):
        prepared, state = system(pool={"backend": "in_process", "stack_clients": stacked}, local={"optimizer": "sgd", "steps": 3})
        results.append(one_round(prepared, state)[1])
        assert changed(prepared, state, results[-1]) == set(range(5))
    torch.testing.assert_close(results[0].parameters, results[1].parameters, atol=1e-5, rtol=0)


def test_a_device_type_is_measured_with_its_own_copy() -> None:
    prepared, state = system()
    setup = prepared.setup
    plans = device_type_plans(setup, state)
    asked = [*plans.values(), Plan()]
    pool = InProcessPool(prepared.runner())

    def losses(parameters: Tensor) -> list[float]:
        return [loss for _, loss in measure(setup, replace(state, parameters=parameters), asked, pool, prepared.task)]

    before = losses(state.parameters)
    for copy in range(len(plans)):
        other = state.parameters.clone()
        views(other, setup.architecture.shapes, setup.size_specific, copy)[setup.size_specific[-1]].add_(torch.arange(10.0))
        differs = [now != then for now, then in zip(losses(other), before, strict=True)]
        assert differs == [one == copy for one in copies(setup, state, asked)]


def test_prefixes_share_the_copy_of_the_client() -> None:
    prepared, state = system(strategy={"prefix": "random"}, clients={"count": 40, "per_round": 3}, local={"steps": 3})
    number = next(one for one in range(20) if 1 not in trained_copies(prepared, state, one))
    state = replace(state, round=number)
    work, after = one_round(prepared, state)
    weakest = copies(prepared.setup, state, list(work.context.plans)).index(1)
    assert any(weakest in job.prefixes for job in work.jobs)
    assert changed(prepared, state, after) == trained_copies(prepared, state, number)


def test_a_run_with_copies_leaves_a_plain_model_and_its_copies(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"evaluation": {"every": 2, "sizes": 1}, "salience": {"metric": "l1"}}
    plain = simulate(tiny_experiment(**changes), tmp_path / "plain")
    size_specific = simulate(tiny_experiment(**changes, strategy={"own": BOTH}), tmp_path / "owned")
    assert size_specific["start"] == plain["start"]
    assert [device_type["start"] for device_type in size_specific["device_types"].values()] == [
        device_type["start"] for device_type in plain["device_types"].values()
    ]
    assert size_specific["params_sha256"] != plain["params_sha256"]
    assert [size_specific[key] for key in ("bytes_up", "bytes_down", "params")] == [
        plain[key] for key in ("bytes_up", "bytes_down", "params")
    ]
    final = {name: tmp_path / name / "checkpoints" / "final" for name in ("plain", "owned")}
    model, own = load_file(final["owned"] / "model.safetensors"), load_file(final["owned"] / "own.safetensors")
    assert not (final["plain"] / "own.safetensors").exists()
    assert {name: values.shape for name, values in model.items()} == {
        name: values.shape for name, values in load_file(final["plain"] / "model.safetensors").items()
    }
    assert {name.split("/")[0] for name in own} == set(list(size_specific["device_types"])[:-1])
    assert any(not torch.equal(values, model[name.split("/")[1]]) for name, values in own.items())


@pytest.mark.parametrize("name", ["raffm", "fedrolex", "depth"])
def test_a_run_on_texts(name: str, tmp_path: Path) -> None:
    small_tokenizer(WORDS).save_pretrained(tmp_path / "tokenizer")
    glue_folder(tmp_path / "data", "sst2")
    task = {"name": "sst2", "data": str(tmp_path / "data"), "held_out": "validation"}
    chosen = text_experiment(
        task,
        "bert",
        str(tmp_path / "tokenizer"),
        strategy={"name": name, "own": BOTH},
        extraction={"steps": {"heads": 1, "ffn": 4}},
    )
    simulate(chosen, tmp_path / "run")
    final = tmp_path / "run" / "checkpoints" / "final"
    own = load_file(final / "own.safetensors")
    loaded = dict(AutoModelForSequenceClassification.from_pretrained(final).named_parameters())
    assert {one.split("/")[1] for one in own} == {
        one for one in loaded if "LayerNorm" in one or "pooler" in one or "classifier" in one
    }
    assert any(not torch.equal(values, loaded[one.split("/")[1]]) for one, values in own.items())


def test_what_is_saved_and_digested() -> None:
    architecture = architecture_case("bert", "sequence_classification")
    size_specific, shapes = size_specific_names(architecture.layout, ["classifier"]), architecture.shapes
    base = flatten({name: torch.randn(shape) for name, shape in shapes.items()}, shapes)
    assert with_copies(base, architecture, (), 3) is base
    flat = with_copies(base, architecture, size_specific, 3)
    assert parameters_sha256(flat, architecture) != parameters_sha256(base, architecture)
    before = parameters_sha256(flat, architecture)
    by_hand(flat, shapes, size_specific, 2)[size_specific[0]].fill_(7.0)
    assert parameters_sha256(flat, architecture) != before
    assert torch.equal(flat[: len(base)], base)
    saved = saved_copies(flat, architecture, size_specific, {"a": 2, "b": 1, "c": 0})
    assert set(saved) == {f"{device}/{name}" for device in ("a", "b") for name in size_specific}
    assert (saved[f"a/{size_specific[0]}"] == 7).all()
    assert torch.equal(saved[f"b/{size_specific[0]}"], views(base, shapes)[size_specific[0]])
