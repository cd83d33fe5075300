"""The clients' learning rate over the rounds."""

from math import cos, pi

import pytest
from conftest import tiny_experiment

from raffm_ray.server.rounds import learning_rate


def rates(rounds: int = 10, **local) -> list[float]:
    experiment = tiny_experiment(rounds=rounds, local={"learning_rate": 0.2, "warmup_rounds": 0, **local})
    return [learning_rate(experiment, number) for number in range(1, rounds + 1)]


def test_it_is_constant_or_falls_as_half_a_cosine() -> None:
    assert rates() == [0.2] * 10
    assert rates(schedule="cosine") == pytest.approx([0.2 * 0.5 * (1 + cos(pi * done / 10)) for done in range(10)], rel=1e-15)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_rises_linearly_to_the_schedule_and_leaves_the_rest(schedule) -> None:
    warm, plain = rates(schedule=schedule, warmup_rounds=4), rates(schedule=schedule)
    assert [one / other for one, other in zip(warm, plain, strict=True)] == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 6])
    assert warm[4:] == plain[4:]
    assert rates(schedule=schedule, warmup_rounds=0) == plain
