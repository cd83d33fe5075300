"""What several seeds say of a difference, against scipy, and in words."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from raffm_ray.reports.seed_statistics import paired_difference, standard_error_of_share, told_difference


def test_an_interval_is_that_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0.9, 0.02, 5)
    second = first - rng.normal(0.01, 0.005, 5)
    found, expected = paired_difference(first, second), ttest_rel(first, second).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(float(np.mean(first - second)))
    assert (found["low"], found["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found["seeds"] == 5
    other = paired_difference(first, second[::-1])  # control: the pairs matter
    assert other["mean"] == pytest.approx(found["mean"])
    assert other["high"] - other["low"] > 1.5 * (found["high"] - found["low"])


def test_what_cannot_be_told_is_said() -> None:
    names = ("raffm", "full")
    sure, unsure, alone = (
        told_difference("accuracy", names, "full model", paired_difference(first, second))
        for first, second in (([0.9, 0.91, 0.92], [0.8, 0.81, 0.821]), ([0.9, 0.8, 0.95], [0.85, 0.9, 0.9]), ([0.9], [0.8]))
    )
    assert sure == "full model, raffm - full: +10.0 points, 95% t-interval +9.8 to +10.1"
    assert unsure.startswith("full model, raffm - full: +0.0 points, 95% t-interval -")
    assert unsure.endswith("; no difference can be told from 3 seeds")
    assert alone == "full model, raffm - full: +10.0 points; no difference can be told from 1 seed"


def test_a_share_s_own_error_is_the_binomial_one() -> None:
    draws = np.random.default_rng(0).binomial(449, 0.9, 20_000) / 449
    assert standard_error_of_share(0.9, 449) == pytest.approx(float(draws.std()), rel=0.02)
