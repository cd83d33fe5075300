"""Parameters that nobody trains: their bits, what is sent and computed, and what the closed formulas say of it."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import architecture_case, outputs, tiny_experiment
from methods import WHOLE
from plans import random_cut
from realistic_models import ALL, LEARNS, REALISTIC, cut_module, training_batch
from round_states import context_of, state_of
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.errors import UserError
from raffm_ray.clients import module_factory
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.client_updates import train
from raffm_ray.clients.local_training import ClientData, Training
from raffm_ray.clients.messages import Job
from raffm_ray.models.architecture import Architecture, architecture_of, new_model
from raffm_ray.models.freezing import (
    ALIGNMENT,
    InFloat32,
    for_training,
    freeze,
    from_array,
    frozen_in_words,
    named_parameters,
    only_trained,
    to_array,
)
from raffm_ray.models.model_config import parse_config
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.pretraining import pretrained, starting_model
from raffm_ray.preparation.starting_parameters import pretraining_of
from raffm_ray.server.aggregation import AGGREGATION_RULES
from raffm_ray.server.kept.held_parameters import missing_bytes
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS
from raffm_ray.server.round_schedule import cost_of, planned_work
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import ServerState, Setup, parameters_of
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS
from raffm_ray.subnetworks.costs import FLOAT_BYTES, activation_floats, costs_of
from raffm_ray.subnetworks.norm_correction import norm_statistics

FREEZE = ("*embeddings*", "*.1.attention.*", "*.layernorm_before.bias")


@cache
def prepared_with(freeze: tuple[str, ...] = FREEZE, strategy: str = "raffm") -> Prepared:
    changes: dict[str, Any] = {"strategy": {"name": strategy}, "clients": {"per_round": 5}}
    local = {"weight_decay": 0.1, "steps": 1, "batch_size": 8}
    return prepare(tiny_experiment(model={"freeze": freeze}, local=local, **changes))


def frozen_names(prepared: Prepared) -> list[str]:
    return [name for name, spec in prepared.setup.architecture.layout.parameters.items() if spec.frozen]


def holding(prepared: Prepared, state: ServerState) -> ClientRunner:
    """A runner that was sent what of the state is frozen."""
    runner = prepared.runner()
    runner.hold(to_array(state.frozen))
    return runner


def moved(setup: Setup, before: ServerState, after: ServerState) -> set[str]:
    """The parameters in which a bit differs."""
    return differing(parameters_of(setup, before), parameters_of(setup, after))


def differing(old: dict[str, Tensor], new: dict[str, Tensor]) -> set[str]:
    return {name for name in old if not torch.equal(old[name].view(torch.int32), new[name].view(torch.int32))}


def round_of(prepared: Prepared, state: ServerState) -> ServerState:
    work, runner = begin_round(prepared.setup, state), holding(prepared, state)
    done = [runner.block(work.context, state.parameters.numpy(), block) for block in work.blocks]
    summed = torch.from_numpy(np.sum([part for _, part in done], axis=0))
    return finish_round(prepared.setup, state, work, summed, [update for update, _ in done])


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_no_strategy_moves_a_frozen_bit(name) -> None:
    prepared = prepared_with(strategy=name)
    start = state_of(prepared)
    start.frozen[::7] = -0.0  # which a sum with 0.0 would turn into 0.0
    changed = moved(prepared.setup, start, round_of(prepared, start))
    assert changed == set(prepared.setup.architecture.shapes) - set(frozen_names(prepared))


def test_control_a_round_without_freezing_moves_everything() -> None:
    free = prepared_with(())
    start = state_of(free)
    assert moved(free.setup, start, round_of(free, start)) == set(free.setup.architecture.shapes)


def test_stacked_clients_train_as_they_do_one_by_one() -> None:
    prepared = prepared_with()
    start = state_of(prepared)
    work, runner = begin_round(prepared.setup, start), holding(prepared, start)
    plan = max(job.plan for job in work.jobs if job.plan is not None)
    first = next(job for job in work.jobs if job.plan == plan)
    jobs = [replace(first, client=client) for client in (0, 1, 2)]
    context = replace(work.context, local=work.context.local.model_copy(update={"optimizer": "sgd"}))
    parts = [
        runner.block(replace(context, stack=(size,) * len(work.context.plans)), start.parameters.numpy(), jobs)[1]
        for size in (3, 1)
    ]
    assert first.prefixes
    named = [views(torch.from_numpy(part), prepared.setup.architecture.trained_shapes) for part in parts]
    assert set(named[0]) == set(prepared.setup.architecture.shapes) - set(frozen_names(prepared))
    for name, change in named[0].items():
        torch.testing.assert_close(change, named[1][name])
        assert name.endswith("k_proj.bias") or bool(
            change.any()
        )  # it moves all scores of a query alike, which leaves attention as it is


def test_sizes_have_copies_of_their_own_of_norms_that_are_trained_only() -> None:
    changes = {"strategy": {"own": ["norms"]}, "local": {"steps": 1}}
    for patterns in (["*layernorm_after*"], []):
        prepared = prepare(tiny_experiment(model={"freeze": patterns}, **changes))
        setup, start = prepared.setup, state_of(prepared)
        after, stay = round_of(prepared, start), []
        for copy in range(len(setup.budgets)):
            old, new = (parameters_of(setup, state, copy) for state in (start, after))
            stay += [torch.equal(old[name], new[name]) for name in old if "layernorm_after" in name]
        assert all(stay) == bool(patterns)
        assert all("layernorm_after" not in name for name in setup.size_specific) == bool(patterns)
    with pytest.raises(UserError, match="strategy.own: norms: model.freeze names all of their parameters"):
        prepare(tiny_experiment(model={"freeze": ["*norm*"]}, **changes)).setup.size_specific  # noqa: B018


@pytest.mark.parametrize("rule", sorted(AGGREGATION_RULES))
def test_no_rule_and_no_server_optimizer_moves_a_frozen_bit(rule) -> None:
    frozen = set(frozen_names(prepared_with()))
    for patterns, held in ((FREEZE, True), ((), False)):
        prepared = prepared_with(patterns)
        start = state_of(prepared)
        work = begin_round(prepared.setup, start)
        few = replace(work, blocks=((work.jobs[0],), (work.jobs[-1],)))
        done = [holding(prepared, start).block(few.context, start.parameters.numpy(), block) for block in few.blocks]
        summed, updates = torch.from_numpy(done[0][1] + done[1][1]), [update for update, _ in done]
        assert len(summed) == sum(torch.Size(one).numel() for one in prepared.setup.architecture.trained_shapes.values())
        for optimizer in SERVER_OPTIMIZERS:
            setup = prepared.setup
            experiment = setup.experiment.model_copy(
                update={"server": setup.experiment.server.model_copy(update={"optimizer": optimizer, "learning_rate": 0.7})}
            )
            setup = replace(setup, experiment=experiment, strategy=replace(setup.strategy, aggregation=rule))
            after = finish_round(setup, finish_round(setup, start, few, summed, updates), few, summed, updates)
            changed = moved(setup, start, after)
            assert changed - frozen
            assert (not changed & frozen) == held


def test_a_worker_that_was_sent_no_frozen_parameters_says_so() -> None:
    prepared = prepared_with()
    start = state_of(prepared)
    work = begin_round(prepared.setup, start)
    with pytest.raises(ValueError, match="0 frozen parameters, and this model has others"):
        prepared.runner().block(work.context, start.parameters.numpy(), work.blocks[0])


def test_frozen_tensors_are_aligned_used_where_they_lie_and_cut_once() -> None:
    prepared = prepared_with()
    state, runner = state_of(prepared), prepared.runner()
    parameters, made = parameters_of(prepared.setup, state), runner.module_factory
    names = set(frozen_names(prepared))
    assert all(values.data_ptr() % ALIGNMENT == 0 for name, values in parameters.items() if name in names)
    for name, values in made.module(parameters, Plan(), {}).named_parameters():
        assert (values.data_ptr() == parameters[name].data_ptr()) == (name in names)
    first, again = (dict(made.module(parameters, SMALL, {}).named_parameters()) for _ in range(2))
    for name in first:
        assert (first[name].data_ptr() == again[name].data_ptr()) == (name in names)
    other = parameters_of(prepared.setup, state.with_frozen(state.frozen + 1))
    changed = dict(made.module(other, SMALL, {}).named_parameters())
    assert all(torch.equal(changed[name], first[name] + 1) for name in first if name in names)


def test_cuts_of_frozen_parameters_are_kept_within_a_bound(monkeypatch) -> None:
    prepared = prepared_with()
    parameters, made = parameters_of(prepared.setup, state_of(prepared)), prepared.runner().module_factory
    plans = [Plan({"residual": np.arange(size)}) for size in (8, 12, 16)]
    for plan in (*plans, Plan()):
        made.cut(parameters, plan, {})
    assert [key for key, _ in made.frozen_cuts] == [plan.key for plan in (*plans, Plan())]
    monkeypatch.setattr(module_factory, "FROZEN_BYTES", 1)
    made.cut(parameters, plans[0], {})
    assert [key for key, _ in made.frozen_cuts] == [plans[0].key]


def test_cuts_are_forgotten_with_the_frozen_parameters_that_they_are_of() -> None:
    prepared = prepared_with()
    state = state_of(prepared)
    runner, first = holding(prepared, state), to_array(state.frozen)
    for forgetting, kept in (
        (lambda: runner.hold(first), True),
        (lambda: runner.hold(first.copy()), False),
        (runner.forget, False),
    ):
        runner.module_factory.cut(parameters_of(prepared.setup, state), SMALL, {})
        forgetting()
        assert bool(runner.module_factory.frozen_cuts) == kept


def test_what_is_frozen_is_said_in_a_line() -> None:
    (line,) = frozen_in_words(prepared_with().setup.architecture)
    names = frozen_names(prepared_with())
    assert f"{len(names)} of {len(prepared_with().setup.architecture.shapes)} tensors" in line
    assert names[0] in line
    assert names[-1] in line
    assert frozen_in_words(prepared_with(()).setup.architecture) == []


def test_bytes_up_fall_by_those_of_what_is_frozen_and_bytes_down_stay_where_it_is_sent_every_round() -> None:
    prepared, free = prepared_with(), prepared_with(())
    work = begin_round(prepared.setup, state_of(prepared))
    shapes, layout = prepared.setup.architecture.shapes, prepared.setup.architecture.layout
    for job in work.jobs:
        assert job.plan is not None
        cut = take_all({name: torch.empty(shape) for name, shape in shapes.items()}, layout, work.context.plans[job.plan])
        less = sum(FLOAT_BYTES * cut[name].numel() for name in frozen_names(prepared) if name in cut)
        costs = [cost_of(one.setup, work.context, job, planned_work(one.setup, work.context, job)) for one in (prepared, free)]
        assert 0 < less == costs[1].bytes_up - costs[0].bytes_up
        assert costs[0].bytes_down == costs[1].bytes_down  # of a device that holds nothing yet
        assert (costs[0].frozen_bytes_down, costs[1].frozen_bytes_down) == (less, 0)
    change = prepared.runner()._train(parameters_of(prepared.setup, state_of(prepared)), work.context, job, job.plan).change
    assert change.numel() == sum(values.numel() for name, values in cut.items() if name not in frozen_names(prepared))


SMALL = Plan({"0/ffn": np.arange(0, 40, 5), "1/heads": [0, 2], "residual": np.arange(0, 24, 2), "layers": [0, 1]})


def one_step(prepared: Prepared, clip: float | None) -> dict[str, Tensor]:
    """The full model's change by one step of plain SGD with a prefix whose norms are corrected."""
    architecture, runner, state = prepared.setup.architecture, prepared.runner(), state_of(prepared)
    parameters = parameters_of(prepared.setup, state)
    whole = runner.module_factory.module(parameters, Plan(), {})
    norms = norm_statistics(whole, architecture.layout, [prepared.task.clients.batch(np.arange(12))])
    runner.module_factory.release()
    local = prepared.setup.experiment.local.model_copy(update={"optimizer": "sgd", "clip": clip, "steps": 1, "weight_decay": 0.0})
    context = context_of(prepared, state, SMALL, Plan(), norms=norms, local=local, learning_rate=1.0)
    change = runner._train(parameters, context, Job(client=0, plan=1, prefixes=(0,), prefix="smallest"), 1).change
    return views(change, architecture.trained_shapes)


def test_what_is_trained_beside_prefixes_gets_the_gradients_that_it_gets_without_freezing() -> None:
    prepared = prepared_with()
    held, free = one_step(prepared, None), one_step(prepared_with(()), None)
    frozen = set(frozen_names(prepared))
    assert set(held) == set(free) - frozen
    for name, change in held.items():
        torch.testing.assert_close(change, free[name])
    # The gradient is clipped by the norm of what is trained.
    norm = torch.cat([change.flatten() for change in held.values()]).norm()
    clipped = one_step(prepared, 0.01)
    assert float(torch.cat([change.flatten() for change in clipped.values()]).norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped["classifier.bias"], held["classifier.bias"] * 0.01 / norm, rtol=1e-3, atol=1e-6)
    control = one_step(prepared_with(()), 0.01)
    assert float(torch.cat([control[name].flatten() for name in held]).norm()) < 0.0099


def test_a_prefix_keeps_reading_norms_of_which_a_part_is_frozen() -> None:
    """Over several steps: a frozen bias that is shifted by its trained gain, and what is frozen elsewhere, as in a fresh cut."""
    prepared = prepared_with()
    architecture, runner, state = prepared.setup.architecture, prepared.runner(), state_of(prepared)
    parameters = parameters_of(prepared.setup, state)
    whole = runner.module_factory.module(parameters, Plan(), {})
    norms = norm_statistics(whole, architecture.layout, [prepared.task.clients.batch(np.arange(12))])
    own = {name: p.detach().clone() for name, p in whole.named_parameters()}
    for name, values in own.items():
        values.requires_grad_(not architecture.layout.parameters[name].frozen)
    inner, prefix = runner.module_factory.inside(SMALL, Plan(), own, norms)
    with torch.no_grad():
        for values in own.values():
            if values.requires_grad:
                values.add_(0.1)
    for _ in range(2):
        prefix.read()
    expected = dict(prepared.runner().module_factory.module(own, SMALL, norms).named_parameters())
    for name, values in inner.named_parameters():
        torch.testing.assert_close(values.detach(), expected[name].detach())


def test_no_optimizer_state_and_no_gradient_for_what_is_frozen(monkeypatch) -> None:
    prepared, made = prepared_with(), []
    monkeypatch.setitem(OPTIMIZERS, "adamw", lambda *given: made.append(torch.optim.AdamW(given[0], lr=given[1])) or made[-1])
    architecture, runner, state = prepared.setup.architecture, prepared.runner(), state_of(prepared)
    module = runner.module_factory.module(parameters_of(prepared.setup, state), Plan(), {})
    learning = only_trained(dict(module.named_parameters()), architecture.layout)
    train(
        module,
        Training(runner.objective, prepared.setup.experiment.local, 0.01),
        prepared.task.clients,
        ClientData(np.arange(20), np.random.default_rng(0), np.random.default_rng(0)),
    )
    assert len(made[0].state) == len(learning) == len(architecture.shapes) - len(frozen_names(prepared))
    assert all((parameter.grad is None) == (name in frozen_names(prepared)) for name, parameter in module.named_parameters())


def test_pretraining_leaves_frozen_bits_and_is_cached_apart() -> None:
    starts = {}
    for patterns in (FREEZE, ()):
        prepared = prepared_with(patterns)
        starts[patterns] = pretrained(pretraining_of(prepared), lambda *_: None).flat
        assert torch.equal(pretrained(pretraining_of(prepared), lambda *_: None).flat, starts[patterns])
    prepared = prepared_with()
    architecture = prepared.setup.architecture
    fresh = flatten(dict(starting_model(architecture, None, 0).named_parameters()), architecture.shapes)
    before, held, free = (views(flat, architecture.shapes) for flat in (fresh, starts[FREEZE], starts[()]))
    assert not differing(before, held) & set(frozen_names(prepared))
    assert differing(before, free) >= set(frozen_names(prepared))


def test_calibration_is_of_the_whole_model_whatever_is_frozen() -> None:
    found = []
    for patterns in (FREEZE, ("*[!r].weight", "*bias", "*token*", "*embeddings"), ()):
        prepared = prepared_with(patterns)
        state = state_of(prepared)
        context = context_of(prepared, state, calibration_examples=8)
        parameters = parameters_of(prepared.setup, state)
        found.append(prepared.runner()._calibrate(parameters, context, 0, "fisher"))
        costs = prepared.setup.costs(Plan())
        assert (costs.calibration_flops == costs.training_flops) == (not patterns)
    for statistics in found[:-1]:
        assert all(torch.equal(values, found[-1][name]) for name, values in statistics.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": {"freeze": ["*embedings*"]}},
            r"model.freeze: '\*embedings\*' matches no parameter .did you mean 'vit.embeddings'",
        ),
        ({"model": {"freeze": ["vit.layer.*"]}}, r"model.freeze: 'vit.layer.\*' matches no parameter .did you mean 'vit.layers"),
        ({"model": {"freeze": ["vit.*", "class*"]}}, r"model.freeze: vit.\*, class\*: all 56 parameters match"),
        ({"model": {"freeze": "*embeddings*"}}, "model.freeze: expected a list"),
        (
            {
                "model": {"freeze": ["*embeddings*", "vit.layers.[01].*", "vit.layernorm*", "class*"]},
                "strategy": {"name": "depth"},
            },
            "model.freeze: nothing is left to train in the subnetwork of device type",
        ),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused_before_work(changes, words) -> None:
    with pytest.raises(UserError, match=words):
        prepare(tiny_experiment(**changes))


def frozen(architecture: Architecture, rng: np.random.Generator | None) -> Architecture:
    """With the first part of the parameters frozen, or any, so that something of every plan is trained."""
    names = list(architecture.shapes)
    drawn = {name for name in names[:-1] if rng is not None and rng.random() < 0.8}
    chosen = drawn if rng is not None else set(names[: len(names) // 2])
    specs = {name: replace(spec, frozen=name in chosen) for name, spec in architecture.layout.parameters.items()}
    return replace(architecture, layout=replace(architecture.layout, parameters=specs))


@pytest.mark.parametrize("seed", range(2))
def test_training_flops_are_those_that_autograd_computes(architecture, model, inputs, seed) -> None:
    rng = np.random.default_rng(seed)
    held = frozen(architecture, rng if seed else None)
    plan = random_cut(held.layout, rng, ALL, layers=True) if seed % 2 else Plan()
    model.requires_grad_(False)
    small = for_training(cut_module(held, model, plan, "eager"), held.layout)
    with FlopCounterMode(display=False) as counted:
        outputs(small, inputs).sum().backward()
    examples = len(next(iter(inputs.values())))
    assert costs_of(held, plan).training_flops * examples == counted.get_total_flops()
    assert costs_of(architecture, plan).training_flops * examples > counted.get_total_flops()


PATTERNS = {
    "embeddings": "*embed*|shared*|*.wte.*|*.wpe.*",
    "first layer": "*embed*|shared*|*.wte.*|*.wpe.*|*layer.0.*|*layers.0.*|*.h.0.*|encoder.block.0.*",
    "attention": "*attn*|*attention.*|*Attention.*",
}


@pytest.mark.parametrize("name", ["cifar", "bert", "gpt2", "qwen3", "t5_gated"])
@pytest.mark.parametrize("what", PATTERNS)
def test_training_memory_is_within_15_percent_of_what_autograd_keeps(name, what) -> None:
    config = parse_config(REALISTIC[name])
    free = architecture_of(config, LEARNS.get(config.model_type, "causal_language_modelling"), 64, 32)
    names = list(free.layout.parameters)
    patterns = [one for one in PATTERNS[what].split("|") if _matches(free, one)]
    architecture = replace(free, layout=freeze(free.layout, patterns))
    assert names == list(architecture.layout.parameters)
    module, batch = for_training(new_model(architecture, 0), architecture.layout), 8
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, int] = {}
    alive: list[Any] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        module(**training_batch(architecture, batch)).loss.backward()
    counted = sum(saved.values())
    held = FLOAT_BYTES * (
        sum(p.numel() for p in module.parameters()) + 3 * sum(p.numel() for p in module.parameters() if p.requires_grad)
    )
    assert activation_floats(architecture, Plan()) * batch * FLOAT_BYTES == pytest.approx(counted, rel=0.15)
    assert costs_of(architecture, Plan(), batch).memory_bytes == pytest.approx(counted + held, rel=0.15)


def _matches(architecture: Architecture, pattern: str) -> bool:
    try:
        freeze(architecture.layout, [pattern])
    except UserError:
        return False
    return True


def test_memory_control_the_formula_without_freezing_is_far_off() -> None:
    free = architecture_case("bert", "sequence_classification")
    held = replace(free, layout=freeze(free.layout, ["*embeddings*", "*layer.[01].*"]))
    assert activation_floats(held, Plan()) < 0.5 * activation_floats(free, Plan())
    assert costs_of(held, Plan()).memory_bytes < 0.7 * costs_of(free, Plan()).memory_bytes


def in_bfloat16(precision: str = "float32", **others: Any) -> Prepared:
    model = {"freeze": FREEZE, "frozen_precision": "bfloat16"}
    local = {"steps": 2, "batch_size": 8, "precision": precision}
    return prepare(tiny_experiment(model=model, local=local, clients={"per_round": 5}, **others))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_frozen_parameters_in_bfloat16_are_rounded_once_and_train_as_rounded_ones(precision) -> None:
    prepared, whole = in_bfloat16(precision), prepared_with()
    start = state_of(prepared)
    assert start.frozen.dtype == torch.bfloat16
    assert start.parameters.dtype == torch.float32
    named, exact = parameters_of(prepared.setup, start), parameters_of(whole.setup, state_of(whole))
    for name in named:
        rounded = exact[name].bfloat16().float() if name in frozen_names(prepared) else exact[name]
        assert torch.equal(named[name], rounded)
    assert torch.equal(from_array(torch.from_numpy(to_array(start.frozen))), start.frozen)
    after = round_of(prepared, start)
    changed = moved(prepared.setup, start, after)
    assert changed == set(named) - set(frozen_names(prepared))
    if precision == "bfloat16":  # matrices are computed with as they are kept
        module = holding(prepared, start).module_factory
        module.precision = precision
        parameters = named_parameters(start.parameters, start.frozen, prepared.setup.architecture)
        kept = {name: values.dtype for name, values in module.module(parameters, SMALL, {}).named_parameters()}
        assert kept["vit.layers.1.attention.q_proj.weight"] == torch.bfloat16
        assert kept["vit.layers.1.attention.q_proj.bias"] == torch.float32


def test_bfloat16_halves_the_bytes_of_what_is_frozen_in_every_charge() -> None:
    half, whole = in_bfloat16().setup, prepared_with().setup
    for plan in (Plan(), SMALL):
        one, other = half.costs(plan), whole.costs(plan)
        frozen = missing_bytes(whole.architecture, plan, None)
        assert missing_bytes(half.architecture, plan, None) == frozen // 2
        assert one.bytes == other.bytes - frozen // 2
        assert one.memory_bytes == other.memory_bytes - frozen // 2
        assert one.bytes_up == other.bytes_up
        assert one.params == other.params


def test_a_parameter_is_converted_when_it_is_asked_for() -> None:
    half, single = torch.arange(4).bfloat16(), torch.arange(3.0)
    named = InFloat32({"half": half, "single": single})
    assert list(named) == ["half", "single"]
    assert named["half"].dtype == torch.float32
    assert named["half"].equal(half.float())
    assert named["single"].data_ptr() == single.data_ptr()
    half[0] = 7
    assert named["half"][0] == 7  # nothing is kept from the time before
