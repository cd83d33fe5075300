"""What a pretraining is remembered by: another seed is another training."""

from dataclasses import replace

import torch
from conftest import tiny_experiment

from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.pretraining import pretrained
from raffm_ray.preparation.starting_parameters import pretraining_of


def test_another_seed_is_not_taken_from_the_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path))
    prepared = prepare(tiny_experiment())
    steps = []

    def made(seed: int) -> torch.Tensor:
        steps.clear()
        work = replace(
            pretraining_of(prepared),
            settings=prepared.setup.experiment.model.pretrain.model_copy(update={"epochs": 1}),
            seed=seed,
        )
        return pretrained(work, lambda *done: steps.append(done)).flat

    first = made(0)
    assert steps
    assert torch.equal(made(0), first)
    assert not steps  # control: the same seed is taken from it
    assert not torch.equal(made(1), first)
    assert steps
