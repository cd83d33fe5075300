"""Random parameters for what is only timed: a state like any before round 1."""

from math import prod

import pytest
import torch
from conftest import tiny_experiment

from raffm_ray.preparation.prepare import prepare
from raffm_ray.server import ranking
from raffm_ray.server.ranking import random_state
from raffm_ray.server.state import parameters_of, starting_state


@pytest.mark.parametrize("freeze", [(), ("*attention*",)], ids=["all trained", "some frozen"])
def test_a_random_state_is_like_one_before_round_1(freeze, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "DRAWN", 100)  # fewer than a matrix has
    precision = {"frozen_precision": "bfloat16"} if freeze else {}
    setup = prepare(tiny_experiment(model={"freeze": freeze, **precision}, strategy={"own": ["norms"]})).setup
    one, again, other = (random_state(setup, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    like = starting_state(setup, torch.zeros(sum(map(prod, setup.architecture.shapes.values()))))
    for found, wanted in ((one.parameters, like.parameters), (one.frozen, like.frozen)):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert set(one.scores)
    assert all(values.any() for values in parameters_of(setup, one).values())
    assert not any(values.any() for values in parameters_of(setup, like).values())  # control
    assert torch.equal(one.parameters, again.parameters)
    assert not torch.equal(one.parameters, other.parameters)
