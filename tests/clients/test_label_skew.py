"""Clients with other shares of the classes than all: the correction of their losses, where it is added and where it is not, and balanced batches."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from numpy.typing import NDArray
from round_states import state_of

from raffm_ray.axes.indexing import Plan
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.models.objectives import MISSING, OBJECTIVES, adjusted, logit_offsets, weighted
from raffm_ray.preparation.prepare import Prepared, prepare

HEAD, ADJUST, BALANCE = "image_classification", "logit_adjustment", "balanced_batches"


def prepared_with(skew: str | None, **changes: Any) -> Prepared:
    local = {"steps": 2, "optimizer": "sgd", "label_skew": skew, **changes.pop("local", {})}
    return prepare(tiny_experiment(local=local, **changes))


def test_a_client_of_other_shares_needs_exactly_these_offsets_to_agree_with_all() -> None:
    """Of a known p(x, y): the posterior of a client that draws y in its own shares is that of all, with its offsets added."""
    rng = np.random.default_rng(0)
    likelihood, all_clients, own = rng.dirichlet(np.ones(7), 3), np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])

    def posterior(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        joint = shares[:, None] * likelihood
        return joint / joint.sum(0)

    logits = torch.from_numpy(np.log(posterior(all_clients)).T)
    for shares, wanted in ((own, True), (all_clients, False), (own[::-1], False)):
        offsets = logit_offsets(shares, all_clients.tolist())
        found = (logits + torch.from_numpy(offsets)).softmax(-1).numpy().T
        assert np.allclose(found, posterior(own), atol=1e-6) is wanted


def test_a_class_that_a_client_lacks_is_left_out_and_one_that_nobody_has_stays() -> None:
    offsets = logit_offsets(np.array([0.5, 0.0, 0.5, 0.0]), (0.5, 0.25, 0.25, 0.0))
    assert offsets == pytest.approx([0.0, MISSING, np.log(2.0), 0.0])
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 2, 0, 2, 2])
    loss = adjusted(OBJECTIVES[HEAD], torch.from_numpy(offsets)).loss(SimpleNamespace(logits=logits), labels, "mean")
    wanted = torch.nn.functional.cross_entropy(
        torch.cat([logits[:, :1], logits[:, 2:3] + np.log(2.0), logits[:, 3:]], 1), torch.tensor([0, 1, 0, 1, 1])
    )
    torch.testing.assert_close(loss, wanted)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:, 1].any()
    assert gradient[:, [0, 2, 3]].abs().min() > 1e-3


def test_weights_of_classes_count_besides() -> None:
    output, labels = (
        SimpleNamespace(logits=torch.randn(6, 2, generator=torch.Generator().manual_seed(1))),
        torch.tensor([0, 1] * 3),
    )
    offsets, weights = torch.tensor([0.3, -1.0]), (2.0, 0.5)
    found = adjusted(weighted(OBJECTIVES[HEAD], weights), offsets).loss(output, labels, "mean")
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(output.logits + offsets, labels, torch.tensor(weights)))


def changes_of(skew: str, stack: tuple[int, ...] = (), keep: int | None = None, **changes: Any) -> dict[int, NDArray[Any]]:
    """By client, what it changes. `keep`: the class whose examples alone are left to everybody, None for all."""
    prepared = prepared_with(skew, **changes)
    runner, flat = prepared.runner(), state_of(prepared_with("ignore", **changes)).parameters.numpy()
    if keep is not None:
        labels = prepared.task.clients.labels
        assert isinstance(labels, np.ndarray)
        runner.shares = [share[labels[share] == keep] for share in runner.shares]
    context = RoundContext(
        seed=0, round=1, plans=(Plan(),), local=prepared.setup.experiment.local, learning_rate=0.05, stack=stack
    )
    jobs = [Job(client, 0) for client, share in enumerate(runner.shares) if len(share)]
    groups = [jobs] if stack else [[job] for job in jobs]
    return {group[0].client: runner.block(context, flat, group)[1] for group in groups}


def test_clients_trained_together_have_their_own_offsets() -> None:
    alone, together = changes_of(ADJUST), changes_of(ADJUST, stack=(4,))
    summed, (both,) = sum(alone.values()), together.values()
    step = np.abs(summed).max()
    assert np.abs(summed - both).max() < 1e-4 * step
    plain = sum(changes_of("ignore").values())
    assert np.abs(summed - plain).max() > 1e-2 * step


def test_prefixes_are_trained_with_them_too_alone_and_together() -> None:
    """One step of all of the model and of a smaller prefix: both losses are adjusted, so a client of one class changes nothing."""
    for stack in ((), (4, 4)):
        prepared = prepared_with(ADJUST)
        labels, layout = prepared.task.clients.labels, prepared.setup.architecture.layout
        assert isinstance(labels, np.ndarray)
        axis = next(name for name in layout.axes if name.endswith("ffn"))
        smaller = Plan({axis: np.arange(layout.axes[axis].size // 2)})
        flat, found = state_of(prepared).parameters.numpy(), []
        for skew in (ADJUST, "ignore"):
            runner = prepared.runner()
            runner.shares = [share[labels[share] == labels[share[0]]] if len(share) else share for share in runner.shares]
            local = prepared.setup.experiment.local.model_copy(update={"label_skew": skew})
            context = RoundContext(seed=0, round=1, plans=(Plan(), smaller), local=local, learning_rate=0.05, stack=stack)
            jobs = [Job(client, 0, (1,), "smallest") for client, share in enumerate(runner.shares) if len(share)]
            found.append(runner.block(context, flat, jobs)[1])
        assert not found[0].any()
        assert found[1].any()


def test_clients_whose_shares_are_those_of_all_train_as_ever() -> None:
    same = {"clients": {"count": 1, "per_round": 1, "partition": "iid"}}
    (plain,), (with_them,) = changes_of("ignore", **same).values(), changes_of(ADJUST, **same).values()
    assert np.abs(plain - with_them).max() < 1e-5 * np.abs(plain).max()


def test_a_client_of_one_class_has_nothing_to_teach() -> None:
    assert not any(change.any() for change in changes_of(ADJUST, keep=3).values())
    assert all(change.any() for change in changes_of("ignore", keep=3).values())


def test_shares_are_of_what_clients_train_on() -> None:
    """Neither held-out examples of clients nor clients that never train count."""
    clients = {"count": 12, "per_round": 3, "partition": "dirichlet_by_class", "held_out": 0.3, "unseen": 0.3}
    prepared = prepared_with(ADJUST, clients=clients)
    labels = prepared.task.clients.labels
    assert isinstance(labels, np.ndarray)
    trained, everything = labels[np.concatenate(prepared.shares)], np.bincount(labels, minlength=10) / len(labels)
    wanted = np.bincount(trained, minlength=10) / len(trained)
    assert prepared.setup.architecture.class_shares == pytest.approx(wanted)
    assert not np.allclose(wanted, everything, atol=1e-3)
    assert prepared_with("ignore", clients=clients).setup.architecture.class_shares == ()


def test_balanced_batches_are_the_same_alone_and_together_and_leave_out_what_a_client_lacks() -> None:
    alone, together = changes_of(BALANCE), changes_of(BALANCE, stack=(4,))
    summed, (both,) = sum(alone.values()), together.values()
    step = np.abs(summed).max()
    assert np.abs(summed - both).max() < 1e-4 * step
    for other in (ADJUST, "ignore"):
        assert np.abs(summed - sum(changes_of(other).values())).max() > 1e-2 * step
    assert not any(change.any() for change in changes_of(BALANCE, keep=3).values())
