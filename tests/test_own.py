"""Parameters of which sizes have copies of their own: which copy a size uses, who trains it, and what is left on disk."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_experiment
from safetensors.torch import load_file
from torch import Tensor

from raffm_ray.aggregate import flat_coverage
from raffm_ray.architectures import FAMILIES, architecture_of, parse_config
from raffm_ray.axes import Plan
from raffm_ray.errors import UserError
from raffm_ray.evaluation import measure
from raffm_ray.messages import flatten, views
from raffm_ray.own import OWNED, copies_of, owned_names, saved_copies, with_copies
from raffm_ray.pool import InProcessPool
from raffm_ray.prepare import prepare
from raffm_ray.ranking import rank_again
from raffm_ray.server import begin_round, finish_round
from raffm_ray.simulation import simulate
from raffm_ray.state import class_plans, copies, new_state

BOTH = ("norms", "classifier")


def system(own: tuple[str, ...] = BOTH, name: str = "raffm", **changes: Any):
    """A prepared experiment, and its ranked state with random parameters."""
    prepared = prepare(tiny_experiment(strategy={"name": name, "own": own}, salience={"metric": "l1"}, **changes))
    setup = prepared.setup
    size = sum(torch.Size(shape).numel() for shape in setup.architecture.shapes.values())
    start = with_copies(
        0.1 * torch.randn(size, generator=torch.Generator().manual_seed(0)), setup.architecture, setup.owned, len(setup.budgets)
    )
    return prepared, rank_again(setup, new_state(start), None)


def one_round(prepared: Any, state: Any):
    """(the round, its blocks' updates, the state after it)."""
    work = begin_round(prepared.setup, state)
    summed, updates = torch.zeros_like(state.parameters), []
    calls = [("block", work.package, (block,)) for block in work.blocks]
    for update, part in InProcessPool(prepared.runner()).run(
        state.parameters.numpy(), calls, [1.0] * len(calls), lambda *_: None
    ):
        summed += torch.from_numpy(part)
        updates.append(update)
    return work, updates, finish_round(prepared.setup, state, work, summed, updates)


def copy_changes(prepared: Any, before: Tensor, after: Tensor) -> dict[int, float]:
    """By copy (0: the model's own), how much its owned parameters changed."""
    setup = prepared.setup
    shapes, owned = setup.architecture.shapes, setup.owned
    return {
        copy: max(
            float((views(after, shapes, owned, copy)[name] - views(before, shapes, owned, copy)[name]).abs().max())
            for name in owned
        )
        for copy in range(len(setup.budgets))
    }


def test_a_size_uses_the_copy_of_the_largest_class_that_is_not_larger() -> None:
    classes = {"small": 10, "middle": 20, "large": 40}
    assert copies_of(classes, [5, 10, 15, 20, 39, 40, 50]) == (1, 1, 1, 2, 2, 0, 0)
    assert copies_of({"only": 10}, [5, 10, 20]) == (0, 0, 0)
    assert copies_of({"small": 10, "twin": 10}, [5, 10]) == (1, 0)


@pytest.mark.parametrize("name", sorted(TINY))
def test_what_is_owned_is_told_without_the_family(name: str) -> None:
    for head in FAMILIES[TINY[name]["model_type"]].heads:
        labels = {"num_labels": 2} if head == "question_answering" else {}
        architecture = architecture_of(parse_config({**TINY[name], **labels}), head, 12, 12)
        found = owned_names(architecture, ["norms"])
        assert {one.rpartition(".")[0] for one in found} == set(architecture.layout.norms)
        tied = (name in ("qwen2", "qwen3") and head == "causal_language_modelling") or (
            name == "gpt2" and head == "causal_language_modelling"
        )
        if name.startswith("t5") or tied:
            with pytest.raises(UserError, match=r"strategy\.own: a \w+ model has no classifier"):
                owned_names(architecture, ["classifier"])
        else:
            kept = owned_names(architecture, BOTH)
            assert set(found) < set(kept) <= set(architecture.shapes)
            assert set(kept) - set(found) == set(list(architecture.shapes)[-len(set(kept) - set(found)) :])  # the head comes last


def test_an_unknown_kind_names_its_near_miss() -> None:
    with pytest.raises(UserError, match=r"strategy\.own 'norm' is not known .did you mean 'norms'"):
        prepare(tiny_experiment(strategy={"own": ("norm",)}))
    assert set(OWNED) == set(BOTH)


@pytest.mark.parametrize("name", ["raffm", "fedrolex", "depth", "federated_dropout", "full", "smallest"])
def test_only_its_own_clients_train_a_copy(name: str) -> None:
    prepared, state = system(name=name, clients={"count": 12, "per_round": 2})
    work, _, after = one_round(prepared, state)
    used = {work.package.copy_of(job.plan) for job in work.jobs}
    changed = copy_changes(prepared, state.parameters, after.parameters)
    assert {copy for copy, change in changed.items() if change > 0} == used
    assert used < set(range(5))
    plain, plain_state = system((), name, clients={"count": 12, "per_round": 2})
    _, _, plain_after = one_round(plain, plain_state)
    assert len(plain_state.parameters) < len(state.parameters)
    norms = plain.setup.architecture.layout.norms
    assert all(  # without copies everybody trains them
        (
            views(plain_after.parameters, plain.setup.architecture.shapes)[f"{norm}.weight"]
            != views(plain_state.parameters, plain.setup.architecture.shapes)[f"{norm}.weight"]
        ).any()
        for norm in norms[-1:]
    )


def test_copies_are_averaged_as_the_dense_oracle_says() -> None:
    prepared, state = system(pool={"backend": "in_process", "block_clients": 1})
    setup = replace(prepared.setup, strategy=replace(prepared.setup.strategy, prefix="none", aggregation="coverage"))
    work = begin_round(setup, state)
    runner, shapes, owned = prepared.runner(), setup.architecture.shapes, setup.owned
    sums, weights = (
        torch.zeros_like(state.parameters, dtype=torch.float64),
        torch.zeros_like(state.parameters, dtype=torch.float64),
    )
    total, updates = torch.zeros_like(state.parameters), []
    for job in work.jobs:
        update, part = runner.block(work.package, state.parameters.numpy(), [job])
        updates.append(update)
        total += torch.from_numpy(part)
        mask = flat_coverage(
            {0: 1.0},
            [work.package.plans[job.plan]],
            setup.architecture.layout,
            shapes,
            owned,
            [work.package.copy_of(job.plan)],
            len(total),
        )
        assert (torch.from_numpy(part)[mask == 0] == 0).all()
        sums += torch.from_numpy(part).double()
        weights += job.weight * mask
    after = finish_round(setup, state, work, total, updates)
    expected = state.parameters.double() + torch.where(weights > 0, sums / weights.clamp(min=1e-9), 0.0)
    torch.testing.assert_close(after.parameters.double(), expected, rtol=0, atol=1e-6)
    assert len({work.package.copy_of(job.plan) for job in work.jobs}) > 1


def test_a_class_is_measured_with_its_own_copy() -> None:
    prepared, state = system()
    setup = prepared.setup
    plans = class_plans(setup, state)
    weakest, strongest = next(iter(plans.values())), list(plans.values())[-1]
    pool = InProcessPool(prepared.runner())

    def losses(parameters: Tensor) -> list[float]:
        return [
            loss for _, loss in measure(setup, replace(state, parameters=parameters), [weakest, strongest], pool, prepared.task)
        ]

    before, changed = losses(state.parameters), state.parameters.clone()
    views(changed, setup.architecture.shapes, setup.owned, 1)[setup.owned[-1]].add_(torch.arange(10.0))
    after = losses(changed)
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert copies(setup, state, [weakest, strongest, Plan()]) == (1, 0, 0)


def test_prefixes_share_the_copy_of_the_client() -> None:
    prepared, state = system(clients={"count": 12, "per_round": 5}, local={"steps": 3, "learning_rate": 0.01})
    work, _, after = one_round(prepared, state)
    assert any(job.prefixes for job in work.jobs)
    used = {work.package.copy_of(job.plan) for job in work.jobs}
    assert {copy for copy, change in copy_changes(prepared, state.parameters, after.parameters).items() if change > 0} == used


def test_a_run_with_copies_leaves_a_plain_model_and_its_copies(tmp_path: Any) -> None:
    changes: dict[str, Any] = {"strategy": {"own": BOTH}, "evaluation": {"every": 2, "sizes": 2}}
    summaries = {
        size: simulate(tiny_experiment(**changes, pool={"backend": "in_process", "workers": size}), tmp_path / str(size))
        for size in (1, 2)
    }
    assert summaries[1]["params_sha256"] == summaries[2]["params_sha256"]
    plain = simulate(tiny_experiment(evaluation={"every": 2, "sizes": 2}), tmp_path / "plain")
    assert plain["params_sha256"] != summaries[1]["params_sha256"]
    assert plain["bytes_up"] == summaries[1]["bytes_up"]
    final = tmp_path / "1" / "checkpoints" / "final"
    model, own = load_file(final / "model.safetensors"), load_file(final / "own.safetensors")
    assert set(model) == set(load_file(tmp_path / "plain" / "checkpoints" / "final" / "model.safetensors"))
    assert not (tmp_path / "plain" / "checkpoints" / "final" / "own.safetensors").exists()
    classes = list(summaries[1]["tiers"])
    assert {name.split("/")[0] for name in own} == set(classes[:-1])
    differing = [name for name, values in own.items() if (values != model[name.split("/")[1]]).any()]
    assert differing


def test_saved_copies_are_those_of_the_flat_array() -> None:
    architecture = architecture_of(parse_config(TINY["bert"]), "sequence_classification", 12)
    owned = owned_names(architecture, ["classifier"])
    base = {name: torch.randn(shape) for name, shape in architecture.shapes.items()}
    flat = with_copies(flatten(base, architecture.shapes), architecture, owned, 3)
    views(flat, architecture.shapes, owned, 2)[owned[0]].fill_(7.0)
    saved = saved_copies(flat, architecture, owned, ["a", "b", "c"])
    assert set(saved) == {f"{name}/{one}" for name in ("a", "b") for one in owned}
    assert (saved[f"b/{owned[0]}"] == 7).all()
    assert torch.equal(saved[f"a/{owned[0]}"], base[owned[0]])
    assert np.array_equal(views(flat, architecture.shapes)[owned[0]], base[owned[0]])
