"""Clients trained at once as one stacked module: the same as one by one, up to rounding; and how rounds are cut into stacks."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_experiment
from plans import random_cut
from torch import Tensor

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.clients.stacked_training import _batch, stacking_groups
from raffm_ray.models import stacked_modules
from raffm_ray.models.architecture import FAMILIES, adapted, architecture_of, build, new_model
from raffm_ray.models.model_config import parse_config
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.models.stacked_modules import StackedModule, stacked_skeleton, why_not_stacked
from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.pretraining import pretrained
from raffm_ray.preparation.starting_parameters import pretraining_of
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.blocks import LEAST_BLOCKS, blocks_of, least_clients, stack_sizes
from raffm_ray.server.state import new_state
from raffm_ray.settings.adapters import AdapterSettings
from raffm_ray.subnetworks.extraction import AXIS_KINDS

CLIENTS, EXAMPLES, TOKENS = 3, 2, 12
HEADS = [(name, head) for name in TINY for head in FAMILIES[TINY[name]["model_type"]].heads]


def described(name: str, head: str, **changes: Any):
    labels = {"num_labels": 2} if head == "question_answering" else {}
    return architecture_of(parse_config({**TINY[name], **labels, **changes}), head, TOKENS, TOKENS)


def inputs_of(config: Any, rng: torch.Generator) -> dict[str, Tensor]:
    rows = CLIENTS * EXAMPLES
    if hasattr(config, "image_size"):
        return {"pixel_values": torch.randn(rows, config.num_channels, config.image_size, config.image_size, generator=rng)}
    words, mask = torch.randint(4, 50, (rows, TOKENS), generator=rng), torch.ones(rows, TOKENS, dtype=torch.long)
    words[1, 8:], mask[1, 8:] = 1, 0
    return {"input_ids": words, "attention_mask": mask}


def outputs(answer: Any, mask: Tensor | None) -> Tensor:
    """What a head says, without positions that are padding."""
    logits = answer.logits if hasattr(answer, "logits") else torch.stack([answer.start_logits, answer.end_logits], -1)
    return logits if mask is None or logits.dim() < 3 else logits * mask[..., None]


def small_plan(architecture: Any) -> Plan:
    """Fewer FFN neurons in the first layer, and none of the last layer, where the model has such axes."""
    axes = architecture.layout.axes
    kept = {name: np.arange(1, axis.size, 2) for name, axis in axes.items() if name.endswith("0/ffn")}
    return Plan(kept | {"layers": np.arange(axes["layers"].size - 1)} if "layers" in axes else kept)


def both(architecture: Any, plan: Plan, module: StackedModule, mix_up: bool = False) -> list[tuple[Tensor, Tensor]]:
    """(stacked, one by one): outputs, and gradients of every parameter, for clients with different weights."""

    rng = torch.Generator().manual_seed(5)
    inputs = inputs_of(architecture.config, rng)
    mask = inputs.get("attention_mask")
    cut = []
    for seed in range(CLIENTS):
        whole = {name: values.detach() for name, values in new_model(architecture, seed).named_parameters()}
        cut.append({name: values.clone() for name, values in take_all(whole, architecture.layout, plan).items()})
    models = [build(architecture, values, plan, "sdpa").train() for values in cut]
    stack = {name: torch.stack([values[name] for values in cut]).requires_grad_() for name in cut[0]}
    together = outputs(module(stack, inputs), mask)
    parts = [{name: values[EXAMPLES * row :][:EXAMPLES] for name, values in inputs.items()} for row in range(CLIENTS)]
    order = [1, 0, 2] if mix_up else [0, 1, 2]
    alone = torch.cat([outputs(models[at](**part), part.get("attention_mask")) for at, part in zip(order, parts, strict=True)])
    direction = torch.randn(alone.shape, generator=rng)
    (together * direction).sum().backward()
    (alone * direction).sum().backward()
    pairs = [(together.detach(), alone.detach())]
    for name, values in stack.items():
        mine = [dict(model.named_parameters())[name].grad for model in models]
        if values.grad is not None and all(gradient is not None for gradient in mine):
            pairs.append((values.grad, torch.stack(mine)))
    return pairs


@pytest.mark.parametrize(("name", "head"), HEADS)
@pytest.mark.parametrize("cut", ["", "layers", "vo", "qk", "heads", "ffn", "residual", "all"])
def test_a_stacked_module_is_the_modules_that_it_stacks(name: str, head: str, cut: str) -> None:
    changes = {"summary_first_dropout": 0.0} if name == "gpt2" else {}
    attention = "sdpa" if cut in ("", "all") else "eager"  # both, with narrowed heads and without
    architecture = replace(described(name, head, **changes), attention=attention)
    if reason := why_not_stacked(architecture):
        assert name in ("qwen3", "t5", "t5_gated"), reason
        with pytest.raises(ValueError, match="not stacked"):
            stacked_skeleton(architecture, Plan())
        return
    kinds = AXIS_KINDS if cut == "all" else (cut,)
    plan = {"": Plan(), "layers": small_plan(architecture)}.get(cut) or random_cut(
        architecture.layout, np.random.default_rng(1), kinds
    )
    module = stacked_skeleton(architecture, plan)
    module.module.train()
    (outputs_of, their_outputs), *gradients = both(architecture, plan, module)
    torch.testing.assert_close(outputs_of, their_outputs, rtol=0, atol=1e-5)
    largest = max(float(alone.abs().max()) for _, alone in gradients)  # some are zero but for rounding: a key's bias
    for together, alone in gradients:
        torch.testing.assert_close(together / largest, alone / largest, rtol=0, atol=2e-6)
    mixed = both(architecture, plan, module, mix_up=True)
    assert max(float((together - alone).abs().max()) for together, alone in mixed) > 1e-3


def test_control_without_the_hooks_of_what_it_replaces_narrowed_values_do_not_fit(monkeypatch) -> None:
    monkeypatch.setattr("raffm_ray.models.stacked_modules._CARRIED", ())
    architecture = described("llama", "sequence_classification")
    plan = random_cut(architecture.layout, np.random.default_rng(1), ("vo",))
    with pytest.raises(RuntimeError, match="shape"):
        both(architecture, plan, stacked_skeleton(architecture, plan))


def test_a_hook_that_cannot_be_carried_over_is_a_reason(monkeypatch) -> None:
    architecture, real = described("bert", "sequence_classification"), stacked_modules.skeleton

    def hooked(*given):
        model = real(*given)
        model.classifier.register_full_backward_hook(lambda *_: None)
        return model

    monkeypatch.setattr(stacked_modules, "skeleton", hooked)
    assert why_not_stacked(architecture) == "Linear has backward hooks"
    with pytest.raises(ValueError, match="not stacked: Linear has backward hooks"):
        stacked_skeleton(architecture, Plan())


def test_a_model_that_drops_out_is_not_stacked() -> None:
    assert "hidden_dropout_prob" in str(why_not_stacked(described("bert", "sequence_classification", hidden_dropout_prob=0.1)))
    plain = described("bert", "sequence_classification")
    assert why_not_stacked(adapted(plain, AdapterSettings(rank=2))) is None
    assert "model.adapters.dropout" in str(why_not_stacked(adapted(plain, AdapterSettings(rank=2, dropout=0.1))))
    dropping = tiny_experiment(model={"config": {**TINY["vit"], "hidden_dropout_prob": 0.1}, "pretrain": {"epochs": 1}})
    asked = dropping.model_copy(update={"pool": dropping.pool.model_copy(update={"stack_clients": 4})})
    asked.model.config.pop("num_labels")
    with pytest.raises(UserError, match=r"pool\.stack_clients: 4 clients of this model cannot be trained at once: it drops out"):
        prepare(asked)


@pytest.mark.parametrize("head", list(OBJECTIVES))
def test_the_parts_of_examples_make_the_mean_loss(head: str) -> None:
    rng = torch.Generator().manual_seed(0)
    if head == "question_answering":
        output = type(
            "Output", (), {"start_logits": torch.randn(4, 9, generator=rng), "end_logits": torch.randn(4, 9, generator=rng)}
        )
        labels = torch.tensor([[2, 3, 1, 8]]).repeat(4, 1)
    elif head.endswith("classification"):
        output, labels = type("Output", (), {"logits": torch.randn(4, 5, generator=rng)}), torch.tensor([0, 3, 1, 4])
    else:
        output, labels = (
            type("Output", (), {"logits": torch.randn(4, 9, 7, generator=rng)}),
            torch.randint(0, 7, (4, 9), generator=rng),
        )
        labels[1, 4:] = labels[2, 7:] = -100
    summed, counted = OBJECTIVES[head].each(output, labels).sum(0)
    torch.testing.assert_close(summed / counted, OBJECTIVES[head].loss(output, labels, "mean"))


class System:
    """Twelve clients of a tiny model with shares of unlike sizes, and a package in which they train."""

    def __init__(self, prefix: str = "none", **local: Any) -> None:
        experiment = tiny_experiment(local={"batch_size": 32, "learning_rate": 0.01, **local})
        self.prepared = prepare(experiment)
        state = new_state(pretrained(pretraining_of(self.prepared), lambda *_: None).flat)
        self.flat = state.parameters.numpy()
        small = Plan({"residual": np.arange(0, 24, 2), "0/ffn": np.arange(8), "1/heads": [0, 2], "layers": [0, 1]})
        middle = Plan({"residual": [*np.arange(0, 24, 2).tolist(), 1, 5], "0/ffn": np.arange(12)[::-1]})
        self.plans = (small, middle, Plan())
        self.context = RoundContext(seed=0, round=1, plans=self.plans, local=experiment.local, learning_rate=0.01)
        self.jobs = [
            Job(
                client=client, plan=1 + client % 2, prefixes=tuple(range(1 + client % 2)), prefix=prefix, weight=float(len(share))
            )
            for client, share in enumerate(self.prepared.shares)
            if len(share)
        ]

    def run(self, stack: tuple[int, ...], jobs: list[Job] | None = None):
        return self.prepared.runner().block(replace(self.context, stack=stack), self.flat, self.jobs if jobs is None else jobs)


@pytest.mark.parametrize(
    ("prefix", "local"),
    [
        ("none", {}),
        ("none", {"steps": 3}),
        ("none", {"epochs": 2, "clip": None}),
        ("smallest", {"steps": 2}),
        ("random", {"epochs": 2}),
        ("one", {"steps": 3}),
        ("random", {"steps": 2, "proximal": 0.1, "optimizer": "sgd"}),
        ("none", {"optimizer": "momentum", "weight_decay": 0.1, "epochs": 2}),
    ],
)
def test_a_stack_of_clients_learns_what_they_learn_alone(prefix: str, local: dict[str, Any]) -> None:
    system = System(prefix, **local)
    alone, alone_sum = system.run(())
    together, sum_together = system.run((4, 4, 4))
    by_client = {report.client: report for report in together.reports}
    assert {report.client for report in alone.reports} == set(by_client)
    for report in alone.reports:
        other = by_client[report.client]
        assert (report.steps, report.examples, report.forward_backward) == (other.steps, other.examples, other.forward_backward)
        assert report.loss == pytest.approx(other.loss, rel=1e-4)
    assert dict(alone.weights) == dict(together.weights)
    step = float(np.abs(alone_sum).max())
    # Adam divides by a gradient's size: where that is about zero, a rounding error decides a step's sign.
    off = np.abs(alone_sum - sum_together) / step
    assert np.quantile(off, 0.99) < 2e-4
    others = [
        replace(job, client=(job.client + 1) % 12) if system.prepared.shares[(job.client + 1) % 12].size else job
        for job in system.jobs
    ]
    assert np.quantile(np.abs(alone_sum - system.run((4, 4, 4), others)[1]) / step, 0.99) > 1e-2
    again, same_sum = system.run((4, 4, 4))
    assert same_sum.tobytes() == sum_together.tobytes()
    assert [replace(report, seconds=0.0) for report in again.reports] == [
        replace(report, seconds=0.0) for report in together.reports
    ]


def test_one_client_that_diverges_spoils_no_other() -> None:
    system = System(steps=2, optimizer="sgd")
    jobs = [job for job in system.jobs if job.plan == 1][:3]
    pixels = system.prepared.task.clients.inputs["pixel_values"]
    pixels[system.prepared.shares[jobs[1].client]] = np.nan
    together, summed = system.run((4, 4, 4), jobs)
    assert [bool(report.refused) for report in together.reports] == [False, True, False]
    assert np.isfinite(summed).all()
    alone, alone_sum = system.run((), jobs)
    assert dict(alone.weights) == dict(together.weights)
    np.testing.assert_allclose(summed, alone_sum, atol=1e-4 * float(np.abs(alone_sum).max()))


def test_a_batch_is_filled_up_with_rows_that_do_not_count() -> None:
    examples = System().prepared.task.clients
    batch, real = _batch(examples, [np.array([3, 4, 5]), None, np.array([7])], "cpu")
    assert real.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    wanted = examples.batch(np.array([3, 4, 5, 3, 3, 3, 7, 7, 7]))
    assert torch.equal(batch["labels"], wanted["labels"])


def test_a_round_is_cut_into_stacks_of_one_plan_in_even_parts() -> None:
    jobs = [Job(client, client % 2) for client in range(100)]
    steps = [client % 3 for client in range(100)]
    blocks = blocks_of(jobs, steps, None, (16, 1))
    stacked = [block for block in blocks if block[0].plan == 0]
    assert sorted(job.client for block in blocks for job in block) == list(range(100))
    assert [len(block) for block in stacked] == [12, 13, 12, 13]
    assert all(len({job.plan for job in block}) == 1 for block in stacked)
    assert len(blocks) == 4 + 50  # those of the other plan one by one
    assert [len({steps[job.client] for job in block}) for block in stacked] == [1, 2, 2, 1]  # like steps beside each other
    assert blocks_of(jobs, steps, 7, (16, 1)) == blocks_of(jobs, steps, 7, ())  # asked for


def test_groups_of_a_block_keep_to_their_plans_and_sizes() -> None:
    jobs = [Job(0, 1), Job(1, None, calibrate=True), Job(2, 1), Job(3, 0), Job(4, 1), Job(5, 0)]
    assert [(plan, [job.client for job in group]) for plan, group in stacking_groups(jobs, (2, 2))] == [
        (1, [0, 2]),
        (None, [1]),
        (0, [3, 5]),
        (1, [4]),
    ]
    assert [len(group) for _, group in stacking_groups(jobs, ())] == [1] * 6


@pytest.mark.skipif("RAFFM_TEST_STACK" in os.environ, reason="what is done where nobody says otherwise")
def test_small_models_are_stacked_by_themselves_and_large_ones_are_not() -> None:
    setup = prepare(tiny_experiment()).setup
    assert stack_sizes(setup, [Plan()]) == (16,)
    many = setup.experiment.model_copy(update={"local": setup.experiment.local.model_copy(update={"batch_size": 100_000})})
    assert stack_sizes(replace(setup, experiment=many), [Plan()]) == (1,)
    never = setup.experiment.model_copy(update={"pool": setup.experiment.pool.model_copy(update={"stack_clients": 1})})
    assert stack_sizes(replace(setup, experiment=never), [Plan()]) == ()
    assert stack_sizes(replace(setup, strategy=replace(setup.strategy, distill=0.5)), [Plan()]) == ()


def test_runs_with_and_without_stacks_agree_to_rounding(tmp_path: Any) -> None:
    summaries = {}
    for size in (None, 1):
        experiment = tiny_experiment(
            local={"batch_size": 16, "learning_rate": 0.01, "optimizer": "sgd"},
            pool={"backend": "in_process", "stack_clients": size},
        )
        summaries[size] = simulate(experiment, tmp_path / str(size))
    assert summaries[None]["full_model"] == pytest.approx(summaries[1]["full_model"], abs=0.01)
    assert summaries[None]["bytes_up"] == summaries[1]["bytes_up"]
    assert summaries[None]["params_sha256"] != summaries[1]["params_sha256"]  # rounding differs: it is another path


def test_blocks_hold_what_makes_their_sum_worth_moving() -> None:
    jobs = [Job(client, 0) for client in range(50)]
    assert {len(block) for block in blocks_of(jobs, [1] * 50, None, ())} == {1}
    assert least_clients([1e12] * 50, 45_000_000) == 1
    assert least_clients([3e8] * 50, 45_000_000) == 2
    assert least_clients([1e6] * 50, 45_000_000) == 50 // LEAST_BLOCKS
    assert least_clients([0.0] * 50, 45_000_000) == 50 // LEAST_BLOCKS
    assert least_clients([1.0] * 15, 45_000_000) == 1
    assert least_clients([], 45_000_000) == 1
    blocks = blocks_of(jobs, [1] * 50, None, (), 2)
    assert [len(block) for block in blocks] == [2] * 25
    assert [job.client for block in blocks for job in block] == list(range(50))
    assert [len(block) for block in blocks_of(jobs, [1] * 50, 7, (), 2)] == [7] * 7 + [1]
