"""What a pretraining is remembered by: another seed is another training."""

import torch
from conftest import tiny_experiment

from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.pretraining import pretrained
from raffm_ray.settings.experiment import PretrainSettings


def test_another_seed_is_not_taken_from_the_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path))
    prepared = prepare(tiny_experiment())
    steps = []

    def made(seed: int) -> torch.Tensor:
        steps.clear()
        return pretrained(
            architecture=prepared.setup.architecture,
            source=None,
            public=prepared.task.public,
            settings=PretrainSettings(epochs=1),
            seed=seed,
            progress=lambda *done: steps.append(done),
        )

    first = made(0)
    assert steps
    assert torch.equal(made(0), first)
    assert not steps  # control: the same seed is taken from it
    assert not torch.equal(made(1), first)
    assert steps
