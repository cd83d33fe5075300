"""Random crops and flips: what they do to pixels, whom they reach, and that they are the same however clients are trained."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from round_states import state_of
from torch import Tensor

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.augmentation import IMAGES, check_augmentation, moved, moves_of
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.data.examples import Examples
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.pretraining import pretrained
from raffm_ray.preparation.starting_parameters import pretraining_of
from raffm_ray.settings.experiment import LocalSettings

LOCAL = {"crop_padding": 2, "flip": True}
PLANS = (Plan({"0/ffn": np.arange(0, 40, 5), "1/heads": [0, 2]}), Plan())


def test_moves_are_crops_of_the_padded_image_mirrored() -> None:
    images = torch.randn(40, 3, 6, 5)
    moves = moves_of(LocalSettings(**LOCAL), np.random.default_rng(0), 40)
    assert moves is not None
    assert {tuple(one) for one in moves[:, :2].tolist()} <= {(down, right) for down in range(5) for right in range(5)}
    assert [set(column) for column in moves.T.tolist()] == [set(range(5)), set(range(5)), {0, 1}]
    found = moved({IMAGES: images, "labels": torch.arange(40)}, moves, 2)
    padded = torch.zeros(40, 3, 10, 9)
    padded[:, :, 2:8, 2:7] = images
    for at, (down, right, flip) in enumerate(moves.tolist()):
        crop = padded[at, :, down : down + 6, right : right + 5]
        assert torch.equal(found[IMAGES][at], crop.flip(-1) if flip else crop)
    assert torch.equal(found["labels"], torch.arange(40))


def test_each_alone_and_none_at_all() -> None:
    images = {IMAGES: torch.randn(20, 1, 8, 8)}
    rng = np.random.default_rng(0)
    flips = moved(images, moves_of(LocalSettings(flip=True), rng, 20), 0)[IMAGES]
    mirrored = [torch.equal(one, image.flip(-1)) for one, image in zip(flips, images[IMAGES], strict=True)]
    same = [torch.equal(one, image) for one, image in zip(flips, images[IMAGES], strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert any(mirrored) and any(same)  # noqa: PT018
    crops = moves_of(LocalSettings(crop_padding=1), rng, 20)
    assert crops is not None
    assert not crops[:, 2].any()
    before = rng.bit_generator.state
    assert moves_of(LocalSettings(), rng, 20) is None
    assert rng.bit_generator.state == before


class Seen:
    """The images that examples are asked for, by part, and those that a model is trained on."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.flat = state_of(prepared).parameters.numpy()
        self.context = RoundContext(seed=0, round=1, plans=PLANS, local=prepared.setup.experiment.local, learning_rate=0.01)
        self.jobs = [
            Job(client=client, plan=1, prefixes=(0,), prefix="smallest", weight=float(len(share)))
            for client, share in enumerate(prepared.shares)
            if len(share)
        ]

    def change(self, stack: tuple[int, ...] = (), **context) -> np.ndarray:
        return self.prepared.runner().block(replace(self.context, stack=stack, **context), self.flat, self.jobs)[1]


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen(prepare(tiny_experiment(local={**LOCAL, "steps": 2, "batch_size": 8, "optimizer": "sgd"})))


def off(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(one).max())


def test_stacked_clients_see_the_images_that_they_see_alone(seen) -> None:
    """Control: without the changes, and with those of another round, they learn something else."""
    alone = seen.change()
    assert off(alone, seen.change((4, 4))) < 1e-4
    plain = seen.context.local.model_copy(update={"crop_padding": 0, "flip": False})
    assert off(alone, seen.change(local=plain)) > 1e-2
    assert (alone == seen.change()).all()
    assert off(alone, seen.change(round=2)) > 1e-2


def test_a_client_s_changes_do_not_depend_on_its_block(seen) -> None:
    whole, runner = seen.change(), seen.prepared.runner()
    parts = [runner.block(seen.context, seen.flat, [job])[1] for job in reversed(seen.jobs)]
    assert off(whole, np.sum(parts, axis=0)) < 1e-5


def test_nobody_but_clients_in_training_sees_changed_images(seen, monkeypatch) -> None:
    """Evaluation, calibration and pretraining draw nothing; control: training does."""
    drawn: list[int] = []

    def noted(local: LocalSettings, rng: np.random.Generator | None, count: int) -> np.ndarray | None:
        drawn.append(count)
        return moves_of(local, rng, count)

    monkeypatch.setattr("raffm_ray.clients.updates.row.moves_of", noted)
    prepared, runner = seen.prepared, seen.prepared.runner()
    context = replace(seen.context, statistic="square", calibration_examples=8)
    runner.evaluate(context, seen.flat, 0, 0, 32)
    runner.block(context, seen.flat, [Job(seen.jobs[0].client, None, calibrate=True)])
    pretrained(replace(pretraining_of(prepared), seed=9), lambda *_: None)
    assert not drawn
    runner.block(context, seen.flat, seen.jobs[:1])
    assert drawn == [min(8, len(prepared.shares[seen.jobs[0].client]))] * 2


def test_a_prefix_trains_on_the_images_of_its_step(seen, monkeypatch) -> None:
    batches: list[Tensor] = []
    from raffm_ray.clients.updates import standard

    real = standard.backward

    def noted(module, batch, *others):
        batches.append(batch[IMAGES])
        return real(module, batch, *others)

    monkeypatch.setattr(standard, "backward", noted)
    seen.prepared.runner().block(seen.context, seen.flat, seen.jobs[:1])
    own, prefix, later, _ = batches
    assert own is prefix
    assert later is not own
    plain: Examples = seen.prepared.task.clients
    assert not any(torch.equal(own[0], torch.from_numpy(image)) for image in plain.inputs[IMAGES])


def test_images_are_needed_and_may_not_be_moved_out_of_sight() -> None:
    with pytest.raises(UserError, match=r"local.crop_padding: must be less than the 8 pixels of an image's side, got 8"):
        prepare(tiny_experiment(local={"crop_padding": 8}))
    for local, told in (({"flip": True}, "local.flip: True"), ({"crop_padding": 1, "flip": True}, "local.crop_padding: 1")):
        task = SimpleNamespace(name="texts", clients=SimpleNamespace(inputs={"input_ids": None}))
        with pytest.raises(UserError, match=f"{told} is for images, and task 'texts' has none"):
            check_augmentation(LocalSettings(**local), task)
        check_augmentation(LocalSettings(), task)
