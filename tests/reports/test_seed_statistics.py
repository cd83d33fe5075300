"""What several seeds say of a difference, against scipy, and in words."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from raffm_ray.basics.errors import UserError
from raffm_ray.reports.comparisons.sentences import told_difference, told_of_target
from raffm_ray.reports.run_story import lead
from raffm_ray.reports.seed_statistics import (
    check_target,
    paired_difference,
    standard_error_of_share,
    to_target,
    until_reached,
)


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


def test_seeds_that_differ_by_the_same_do_not_make_a_difference_sure() -> None:
    """Of a coarse metric: an interval without width would say that it is."""
    same = paired_difference([0.938, 0.938], [0.942, 0.942])
    assert (same["mean"], same["low"], same["high"]) == (pytest.approx(-0.004), None, None)
    told = told_difference("accuracy", ("raffm", "full"), "full model", same)
    assert told == (
        "full model, raffm - full: -0.4 points; no difference can be told from 2 seeds that all differ by the same: they have no interval"
    )
    assert paired_difference([0.938, 0.938], [0.942, 0.943])["low"] is not None  # control


def rows(*metrics: float | None) -> list[dict[str, float | None]]:
    """Records of rounds from 0 on, each of which moves 3 bytes, and takes 2 J and half a second."""
    costs = {"bytes_down": 2, "bytes_up": 1, "energy_joules": 2.0, "round_seconds": 0.5}
    return [{"round": number, "metric": metric, **costs} for number, metric in enumerate(metrics)]


def test_what_a_target_took_is_all_that_was_spent_until_it_was_seen() -> None:
    run = rows(0.5, None, 0.7, 0.8, 0.6)
    assert until_reached(run, 0.7, higher=True) == {"rounds": 2.0, "bytes": 9, "energy_joules": 6.0, "simulated_seconds": 1.5}
    assert until_reached(run, 0.75, higher=True)["rounds"] == 3.0
    assert until_reached(run, 0.5, higher=True)["bytes"] == 3  # of round 0, which calibrates
    assert until_reached(run, 0.81, higher=True) is None  # control
    assert until_reached(rows(9.0, 8.0, 7.0), 8.5, higher=False)["rounds"] == 1.0


def test_a_target_that_a_seed_misses_has_no_mean() -> None:
    both, one = (to_target([rows(0.5, 0.7), rows(0.5, 0.6)], target, higher=True) for target in (0.6, 0.7))
    assert (both["rounds"]["mean"], both["bytes"]["mean"]) == (1.0, 6.0)
    assert (one["rounds"]["mean"], one["rounds"]["values"]) == (None, [1.0, None])
    strategies = {"a": {"to_target": both}, "b": {"to_target": one}}
    (line,) = told_of_target({"metric": "accuracy", "target": 0.6, "strategies": strategies})
    assert line == (
        "the full model is first seen at accuracy 60.0% or better by a after 1 rounds (6 B, 4 J, 1 s); b in 1 of 2 runs"
    )
    assert told_of_target({"metric": "accuracy", "target": None, "strategies": strategies}) == []


def test_a_target_that_no_value_can_be_is_refused() -> None:
    for metric, target in (("accuracy", 85.0), ("accuracy", 0.0), ("perplexity", float("nan"))):
        with pytest.raises(UserError, match=f"--target: expected .* for {metric}, got"):
            check_target(metric, target)
    check_target("accuracy", 0.85)
    check_target("perplexity", 85.0)


def test_a_share_s_own_error_is_the_binomial_one() -> None:
    draws = np.random.default_rng(0).binomial(449, 0.9, 20_000) / 449
    assert standard_error_of_share(0.9, 449) == pytest.approx(float(draws.std()), rel=0.02)


def test_a_change_that_may_be_chance_stands_beside_what_may() -> None:
    device_types = {"laptop": {"metric": 0.8, "start": 0.7, "params_fraction": 0.5}}
    costs = {
        "bytes_down": 1,
        "bytes_up": 1,
        "bytes_full_size": 4,
        "simulated_seconds": 1.0,
        "wasted_bytes": 0,
        "wasted_joules": 0,
    }
    summary = {"metric": "accuracy", "start": 0.87, "held_out_examples": 449, "rounds": 1, "clients": 1, "seed": 0, **costs}
    told, *_ = lead({**summary, "full_model": 0.9, "device_types": device_types})
    assert told.startswith("After 1 round with 1 client, the full model has 90.0% accuracy")
    assert told.endswith("The change is 3.0 points; up to 4.3 points could be chance (two standard errors).")
    told, *_ = lead({**summary, "full_model": 0.95, "device_types": device_types})
    assert "chance" not in told  # control
