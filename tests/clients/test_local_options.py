"""Options of local training and averaging: FedProx, in-place distillation, and what a client counts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import architecture_case, tiny_experiment
from methods import WHOLE
from round_states import state_of
from torch import Tensor, nn
from torch.func import functional_call

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.client_updates import train
from raffm_ray.clients.local_training import (
    ClientData,
    Distillation,
    Training,
    backward,
    decayed_groups,
    pull_back,
)
from raffm_ray.data.examples import IGNORED, batches
from raffm_ray.models.architecture import new_model
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.preparation.prepare import prepare
from raffm_ray.server.ranking import rank_again
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import setup_strategy
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS

SMALL = Plan({"0/ffn": np.arange(0, 40, 5), "1/heads": [0, 2], "2/ffn": np.arange(7)})
STEPS, RATE = 3, 0.05


class Trained:
    """The same two plans, batches and start for the system and for a loss that is written out."""

    def __init__(self) -> None:
        self.prepared = prepare(tiny_experiment(local={"optimizer": "sgd", "learning_rate": RATE, "clip": None, "steps": STEPS}))
        self.architecture = self.prepared.setup.architecture
        self.start = views(state_of(self.prepared).parameters, self.architecture.shapes)
        self.share, self.examples = np.arange(50), self.prepared.task.clients

    def system(self, prefix: str, proximal: float = 0.0, clip: float | None = None, **options: Any) -> dict[str, Tensor]:
        """The full model's parameters after local training with the small plan as its prefix."""
        runner = self.prepared.runner()
        local = self.prepared.setup.experiment.local.model_copy(update={"proximal": proximal, "clip": clip})
        module = runner.module_factory.module(self.start, Plan(), {}).train()
        own = dict(module.named_parameters())
        train(
            module,
            Training(runner.objective, local, RATE, prefix, 1, **options),
            self.examples,
            ClientData(self.share, np.random.default_rng(3), np.random.default_rng(4)),
            lambda _: runner.module_factory.inside(SMALL, Plan(), own, {}),
            self.start,
        )
        return {name: values.detach().clone() for name, values in own.items()}

    def written_out(
        self, prefix: str, proximal: float = 0.0, clip: float | None = None, distill: float = 0.0, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """The same by plain SGD on one explicit loss of the full model's parameters, the prefix cut out of them differentiably."""
        own = {name: values.clone().requires_grad_() for name, values in self.start.items()}
        runner, small_runner = self.prepared.runner(), self.prepared.runner()
        whole, small = (
            runner.module_factory.module(self.start, Plan(), {}),
            small_runner.module_factory.module(self.start, SMALL, {}),
        )
        for indices in batches(self.share, 16, STEPS, np.random.default_rng(3)):
            batch = self.examples.batch(indices)
            logits = functional_call(whole.train(), own, kwargs={"pixel_values": batch["pixel_values"]}).logits
            loss = -logits.log_softmax(-1).gather(1, batch["labels"][:, None]).mean()
            if prefix != "none":
                cut = take_all(own, self.architecture.layout, SMALL)
                mine = functional_call(small.train(), cut, kwargs={"pixel_values": batch["pixel_values"]}).logits
                hard = -mine.log_softmax(-1).gather(1, batch["labels"][:, None]).mean()
                loss = loss + (1 - distill) * hard + distill * soft(mine, logits.detach(), temperature)
            if proximal:
                loss = loss + proximal / 2 * sum((own[name] - self.start[name]).square().sum() for name in own)
            grads = torch.autograd.grad(loss, list(own.values()))
            norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
            scale = min(1.0, clip / (float(norm) + 1e-6)) if clip else 1.0
            own = {
                name: (values - RATE * scale * grad).detach().requires_grad_()
                for (name, values), grad in zip(own.items(), grads, strict=True)
            }
        return {name: values.detach() for name, values in own.items()}


def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 x the mean over rows of sum_i p_i log(p_i / q_i)."""
    q, p = (student / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


def close(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return all(torch.allclose(one[name], two[name], rtol=1e-4, atol=2e-6) for name in two)


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("prefix", ["none", "smallest"])
def test_fedprox_is_the_gradient_of_its_explicit_loss(trained, prefix, clip) -> None:
    got = trained.system(prefix, 2.0, clip)
    assert close(got, trained.written_out(prefix, 2.0, clip))
    assert not close(got, trained.written_out(prefix, 0.0, clip))


@pytest.mark.parametrize(("distill", "temperature"), [(1.0, 1.0), (0.4, 1.0), (1.0, 3.0), (0.7, 2.0)])
def test_distillation_is_the_gradient_of_its_explicit_loss(trained, distill, temperature) -> None:
    got = trained.system("smallest", distill=distill, temperature=temperature)
    assert close(got, trained.written_out("smallest", distill=distill, temperature=temperature))
    assert not close(got, trained.written_out("smallest"))


def test_both_together_with_a_clip(trained) -> None:
    options = {"proximal": 1.0, "clip": 0.3, "distill": 0.5, "temperature": 2.0}
    assert close(trained.system("random", **options), trained.written_out("random", **options))


def test_at_zero_they_leave_the_bits(trained) -> None:
    for prefix in ("none", "smallest", "one"):
        plain = trained.system(prefix)
        for options in ({"proximal": 0.0}, {"distill": 0.0, "temperature": 5.0}):
            other = trained.system(prefix, **options)
            assert all(torch.equal(plain[name], other[name]) for name in plain)
    control = trained.system("smallest", distill=1e-3)
    assert any(not torch.equal(control[name], values) for name, values in trained.system("smallest").items())


def test_fedprox_pulls_also_what_a_step_did_not_reach() -> None:
    reached, missed = (nn.Parameter(torch.tensor([3.0, -1.0])) for _ in range(2))
    reached.grad = torch.tensor([0.5, 0.5])
    pull_back([reached, missed], [torch.tensor([1.0, 1.0])] * 2, 0.1)
    torch.testing.assert_close(reached.grad, torch.tensor([0.7, 0.3]))
    torch.testing.assert_close(missed.grad, torch.tensor([0.2, -0.2]))


def spans(logits: Tensor) -> SimpleNamespace:
    return SimpleNamespace(start_logits=logits[..., 0], end_logits=logits[..., 1])


def classes(logits: Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=logits)


def explicit_spans(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    parts = []
    for example, (_, _, first, last) in enumerate(labels.tolist()):
        real = sorted({0, *range(first, last + 1)})
        parts += [soft(student[example, real, side], teacher[example, real, side], temperature) for side in (0, 1)]
    return torch.stack(parts).mean()


def explicit_tokens(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, ahead: int) -> Tensor:
    parts = [
        soft(student[example, at - ahead], teacher[example, at - ahead], temperature)
        for example in range(len(labels))
        for at in range(ahead, labels.shape[1])
        if labels[example, at] != IGNORED
    ]
    return torch.stack(parts).mean()


Head = tuple[Callable[[Tensor], Any], tuple[int, ...], Tensor, Callable[[Tensor, Tensor, Tensor, float], Tensor]]
WORDS = torch.tensor([[4, 2, IGNORED, 1], [IGNORED, 3, 3, IGNORED], [0, 1, 2, 3]])
HEADS: dict[str, list[Head]] = {
    **{
        head: [
            (classes, (3, 5), torch.tensor([0, 3, 4]), lambda s, t, _, temperature: soft(s, t, temperature)),
            (classes, (3, 1), torch.tensor([0.1, 2.0, -1.0]), lambda s, t, *_: (s - t).square().mean()),
        ]
        for head in ("sequence_classification", "image_classification")
    },
    "question_answering": [(spans, (3, 6, 2), torch.tensor([[2, 3, 2, 4], [0, 0, 1, 5], [5, 5, 3, 5]]), explicit_spans)],
    "causal_language_modelling": [(classes, (3, 4, 5), WORDS, lambda *given: explicit_tokens(*given, 1))],
    "sequence_to_sequence": [(classes, (3, 4, 5), WORDS, lambda *given: explicit_tokens(*given, 0))],
}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("head", sorted(OBJECTIVES))
def test_every_head_distils_what_its_formula_says(head, temperature) -> None:
    distillation = OBJECTIVES[head].distillation
    for wrap, shape, labels, formula in HEADS[head]:
        rng = torch.Generator().manual_seed(0)
        teacher, student = (2 * torch.randn(shape, generator=rng) for _ in range(2))
        teacher.requires_grad_()
        student.requires_grad_()
        loss, wanted = (
            distillation(wrap(student), wrap(teacher), labels, temperature),
            formula(student, teacher, labels, temperature),
        )
        torch.testing.assert_close(loss, wanted)
        loss.backward()
        (expected,) = torch.autograd.grad(wanted, student)
        torch.testing.assert_close(student.grad, expected)
        assert float(student.grad.abs().max()) > 1e-3
        assert teacher.grad is None
        assert float(distillation(wrap(teacher), wrap(teacher), labels, temperature).detach()) == pytest.approx(0, abs=1e-6)


TOKENS = torch.tensor([[2, 7, 9, 4, 3], [2, 8, 3, 1, 1]])
MASK = (TOKENS != 1).long()
TEXT = {"input_ids": TOKENS, "attention_mask": MASK}
MODELS: dict[str, tuple[str, dict[str, Tensor]]] = {
    "sequence_classification": ("bert", {**TEXT, "labels": torch.tensor([1, 4])}),
    "image_classification": ("vit", {"pixel_values": torch.ones(2, 1, 8, 8), "labels": torch.tensor([1, 4])}),
    "question_answering": ("roberta", {**TEXT, "labels": torch.tensor([[1, 2, 1, 3], [0, 0, 1, 1]])}),
    "causal_language_modelling": ("qwen2", {**TEXT, "labels": TOKENS.masked_fill(MASK == 0, IGNORED)}),
    "sequence_to_sequence": (
        "t5",
        {**TEXT, "decoder_input_ids": TOKENS, "decoder_attention_mask": MASK, "labels": TOKENS.masked_fill(MASK == 0, IGNORED)},
    ),
}


@pytest.mark.parametrize("head", sorted(OBJECTIVES))
def test_every_head_s_model_learns_from_another_s_outputs(head) -> None:
    name, batch = MODELS[head]
    teacher, student = (new_model(architecture_case(name, head), seed).eval() for seed in (1, 2))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    _, output = backward(teacher, batch, OBJECTIVES[head])
    for parameter in teacher.parameters():
        parameter.grad = None
    losses = []
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(backward(student, batch, OBJECTIVES[head], distillation=Distillation(output, 1.0))[0])
        optimizer.step()
    assert 0 < losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_round_distils_and_charges_what_it_charged_before() -> None:
    blocks = {}
    for distill, temperature in ((None, 1.0), (0.0, 4.0), (0.5, 1.0), (0.5, 4.0)):
        options = {"prefix": "smallest", "distill": distill, "temperature": temperature}
        prepared = prepare(tiny_experiment(strategy=options, salience={"until": 0}))
        state = state_of(prepared)
        work = begin_round(prepared.setup, state)
        update, part = prepared.runner().block(work.context, state.parameters.numpy(), work.jobs)
        blocks[distill, temperature] = part, {report.client: report.forward_backward for report in update.reports}
    plain, zero, cold, warm = blocks.values()
    assert (plain[0] == zero[0]).all()
    assert (plain[0] != cold[0]).any()
    assert (cold[0] != warm[0]).any()
    assert plain[1] == cold[1] == warm[1]


def test_a_client_is_pulled_back_to_what_it_was_given() -> None:
    moved = {}
    for proximal in (0.0, 40.0):
        local = {"optimizer": "sgd", "learning_rate": 0.02, "clip": None, "steps": 10, "proximal": proximal}
        prepared = prepare(tiny_experiment(local=local, salience={"until": 0}))
        state = state_of(prepared)
        work = begin_round(prepared.setup, state)
        _, part = prepared.runner().block(work.context, state.parameters.numpy(), work.jobs[:1])
        moved[proximal] = float(np.linalg.norm(part))
    assert 0 < moved[40.0] < 0.5 * moved[0.0]


@pytest.mark.parametrize("prefix", ["none", "one"])
def test_distillation_without_a_teacher_is_refused(prefix) -> None:
    with pytest.raises(
        UserError, match=f"strategy.distill: 0.5 needs .* strategy.prefix must be smallest or random, got '{prefix}'"
    ):
        prepare(tiny_experiment(strategy={"prefix": prefix, "distill": 0.5}))
    assert setup_strategy(tiny_experiment(strategy={"prefix": prefix, "distill": 0.0})).distill == 0
    assert setup_strategy(tiny_experiment(strategy={"prefix": "random", "distill": 0.5})).distill == 0.5


@pytest.mark.parametrize("name", sorted(WHOLE))
@pytest.mark.parametrize("weight", ["examples", "equal"])
def test_what_a_client_counts_composes_with_every_strategy(name, weight) -> None:
    prepared = prepare(tiny_experiment(strategy={"name": name, "client_weight": weight}, salience={"metric": "l1"}))
    state = rank_again(prepared.setup, state_of(prepared), None)
    work = begin_round(prepared.setup, state)
    assert [job.weight for job in work.jobs] == [
        prepared.setup.examples[job.client] if weight == "examples" else 1 for job in work.jobs
    ]


def test_equal_clients_are_averaged_equally() -> None:
    whole = {device: {"params": 1.0} for device in tiny_experiment().fleet.budgets}
    changes: dict[str, Any] = {
        "salience": {"metric": "l1"},
        "fleet": {"budgets": whole},
        "pool": {"backend": "in_process", "stack_clients": 1},
    }
    averages = {}
    for weight in ("default", "examples", "equal"):
        prepared = prepare(tiny_experiment(strategy={"prefix": "none", "client_weight": weight}, **changes))
        state = rank_again(prepared.setup, state_of(prepared), None)
        work, runner = begin_round(prepared.setup, state), prepared.runner()
        update, part = runner.block(work.context, state.parameters.numpy(), work.jobs)
        averages[weight] = finish_round(prepared.setup, state, work, torch.from_numpy(part), [update]).parameters
        alone = [runner.block(work.context, state.parameters.numpy(), [replace(job, weight=1.0)])[1] for job in work.jobs]
        counts = np.array([1.0 if weight == "equal" else len(prepared.shares[job.client]) for job in work.jobs])
        mean = torch.from_numpy(np.average(alone, axis=0, weights=counts).astype(np.float32))
        torch.testing.assert_close(averages[weight], state.parameters + mean, rtol=1e-5, atol=1e-7)
    assert torch.equal(averages["default"], averages["examples"])
    assert not torch.allclose(averages["equal"], averages["examples"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stacked", [False, True])
def test_biases_and_norms_do_not_decay(stacked) -> None:
    shapes = [(4, 3), (4,), (2, 3, 3)]
    parameters = [torch.ones((5, *shape) if stacked else shape, requires_grad=True) for shape in shapes]
    for values in parameters:
        values.grad = torch.zeros_like(values)
    OPTIMIZERS["sgd"](decayed_groups(parameters, 0.5, stacked), 0.1).step()
    assert [bool((values < 1).all()) for values in parameters] == [True, False, True]
    for values in parameters:
        values.data.fill_(1.0)
    OPTIMIZERS["sgd"]([{"params": parameters, "weight_decay": 0.5}], 0.1).step()  # control: all in one group
    assert all(bool((values < 1).all()) for values in parameters)
