"""Class weights in the loss: the formula, where they count and where they do not."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from round_states import state_of
from sklearn.utils.class_weight import compute_class_weight

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.central_training import CentralTraining, train_centrally
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.deployment.model_folder import tuned
from raffm_ray.deployment.trained_model import TrainedModel
from raffm_ray.models.architecture import build
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.models.objectives import weighted as weighted_objective
from raffm_ray.preparation.model_for_task import class_weights
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.pretraining import pretrain, pretrained
from raffm_ray.preparation.starting_parameters import pretraining_of
from raffm_ray.settings.loading import parse

HEAD, GIVEN = "image_classification", {"1": 5.0, "3": 0.2}


def weighted(asked: Any = GIVEN, **changes: Any) -> Prepared:
    return prepare(tiny_experiment(task={"class_weights": asked}, **changes))


def test_the_loss_is_torch_s_weighted_cross_entropy() -> None:
    rng = torch.Generator().manual_seed(0)
    weights = (0.5, 2.0, 1.0, 4.0)
    output, labels = SimpleNamespace(logits=torch.randn(9, 4, generator=rng)), torch.tensor([0, 1, 2, 3, 3, 3, 0, 1, 1])
    objective = weighted_objective(OBJECTIVES[HEAD], weights)
    for reduction in ("mean", "sum"):
        wanted = torch.nn.functional.cross_entropy(output.logits, labels, torch.tensor(weights), reduction=reduction)
        torch.testing.assert_close(objective.loss(output, labels, reduction), wanted)
        assert abs(float(OBJECTIVES[HEAD].loss(output, labels, reduction) - wanted)) > 0.01
    summed, counted = objective.each(output, labels).sum(0)
    torch.testing.assert_close(summed / counted, objective.loss(output, labels, "mean"))
    assert weighted_objective(OBJECTIVES[HEAD], ()) is OBJECTIVES[HEAD]


def test_balanced_is_scikit_learn_s_over_the_clients_examples() -> None:
    prepared = weighted("balanced")
    labels = prepared.task.clients.labels
    wanted = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    assert prepared.setup.architecture.class_weights == pytest.approx(wanted)
    assert not np.allclose(wanted, 1.0)
    few = labels < 3
    task = SimpleNamespace(name="some", clients=SimpleNamespace(labels=labels[few]), class_names=())
    found = class_weights("balanced", task, 5)
    assert found[:3] == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels[few]))
    assert found[3:] == (1.0, 1.0)
    assert sum(np.array(found)[labels[few]]) == pytest.approx(few.sum())


def test_weights_go_by_the_names_of_classes() -> None:
    task = SimpleNamespace(name="some", clients=SimpleNamespace(labels=np.array([0, 1, 2])), class_names=("bad", "fine", "good"))
    assert class_weights({"good": 3.0, "bad": 2}, task, 4) == (2.0, 1.0, 3.0, 1.0)
    assert class_weights("none", task, 3) == ()
    with pytest.raises(UserError, match=r"task.class_weights: the data has no class 'god' \(did you mean 'good'\?"):
        class_weights({"god": 3.0}, task, 3)
    task.clients.labels = np.array([0.5, 1.5])
    with pytest.raises(UserError, match="task.class_weights: 'balanced' is for classes, and task 'some' has none"):
        class_weights("balanced", task, 1)


@pytest.mark.parametrize("value", ["balancd", {"a": 0}, {"a": -1.0}, {"b": 1, "a": "x"}, {"a": True}, 3, ["a"]])
def test_what_is_no_weight_is_one_line(value) -> None:
    told = "^task.class_weights: must be none, balanced, or a mapping from classes to weights above 0, got"
    with pytest.raises(UserError, match=told) as error:
        parse({"model": {"config": {"model_type": "vit"}}, "task": {"class_weights": value}})
    assert str(error.value).count("got") == 1
    assert parse({"model": {"config": {"model_type": "vit"}}, "task": {"class_weights": {0: 2}}}).task.class_weights == {"0": 2.0}


def test_clients_train_with_them_alone_and_stacked_and_evaluation_does_not_count_them() -> None:
    def outcome(asked: Any, stack: tuple[int, ...] = ()):
        prepared = weighted(asked, local={"steps": 2, "optimizer": "sgd"})
        runner, flat = prepared.runner(), state_of(weighted("none")).parameters.numpy()
        context = RoundContext(
            seed=0, round=1, plans=(Plan(),), local=prepared.setup.experiment.local, learning_rate=0.05, stack=stack
        )
        jobs = [Job(client, 0) for client, share in enumerate(prepared.shares) if len(share)]
        update, change = runner.block(context, flat, jobs)
        return (
            change,
            [report.loss for report in sorted(update.reports, key=lambda one: one.client)],
            runner.evaluate(context, flat, 0, 0, 64)[0][1],
        )

    (plain, _, loss), (alone, losses, same), (together, both, _) = outcome("none"), outcome(GIVEN), outcome(GIVEN, (4,))
    step = np.abs(alone).max()
    assert np.abs(alone - together).max() < 1e-4 * step
    assert losses == pytest.approx(both, rel=1e-4)
    assert np.abs(alone - plain).max() > 1e-2 * step
    assert loss == same


def test_central_training_counts_them_too() -> None:
    """Pretraining follows the weighted gradient, and its cache tells weights apart."""
    prepared, plain = weighted(), weighted("none")
    one, other = (pretrained(pretraining_of(each), lambda *_: None).flat for each in (prepared, plain))
    assert not torch.equal(one, other)
    assert torch.equal(one, pretrain(pretraining_of(prepared), lambda *_: None).flat)

    architecture = prepared.setup.architecture
    moved = {}
    for weights in ((), architecture.class_weights):
        module = build(architecture, {name: values.clone() for name, values in views(other, architecture.shapes).items()}, Plan())
        before = [values.detach().clone() for values in module.parameters()]
        training = CentralTraining(
            weighted_objective(OBJECTIVES[HEAD], weights),
            lambda parameters: torch.optim.SGD(parameters, lr=1.0),
            lambda _: 1.0,
            None,
        )
        indices = np.arange(24)
        train_centrally(module, training, prepared.task.public, [indices])
        batch = prepared.task.public.batch(indices)
        again = build(architecture, dict(zip(architecture.shapes, before, strict=True)), Plan())
        logits = again(pixel_values=batch["pixel_values"]).logits
        given = torch.tensor(architecture.class_weights) if weights else None
        torch.nn.functional.cross_entropy(logits, batch["labels"], given).backward()
        moved[weights] = [old - new.detach() for old, new in zip(before, module.parameters(), strict=True)]
        for step, parameter in zip(moved[weights], again.parameters(), strict=True):
            torch.testing.assert_close(step, parameter.grad, atol=1e-5, rtol=1e-3)
    assert max(float((a - b).abs().max()) for a, b in zip(*moved.values(), strict=True)) > 1e-2


def test_tuning_a_deployed_size_counts_them_but_not_on_another_model_s_answers() -> None:
    found = {}
    for asked in ("none", "balanced"):
        prepared = weighted(asked)
        trained = TrainedModel(prepared, state_of(prepared), "a test")
        for distill in (False, True):
            tensors = tuned(trained, Plan(), trained.cut(Plan()), 2, distill)
            found[asked, distill] = torch.cat([values.flatten() for values in tensors.values()])
    assert not torch.equal(found["none", False], found["balanced", False])
    assert torch.equal(found["none", True], found["balanced", True])
