"""Batches with all clients' shares of the classes: who is drawn, how often, and in steps of which size."""

from collections import Counter

import numpy as np
import pytest

from raffm_ray.data.examples import step_sizes
from raffm_ray.data.label_skew.class_batches import balanced_batches, draw_by_class, kept_classes

SHARE = np.arange(100, 137)
CLASSES = np.array([0] * 30 + [2] * 5 + [3] * 2)
SHARES = (0.2, 0.3, 0.3, 0.2)


def test_classes_are_drawn_by_all_clients_shares_among_those_that_are_owned() -> None:
    drawn = draw_by_class(SHARE, CLASSES, SHARES, 16, 2000, np.random.default_rng(0))
    assert len(drawn) == sum(step_sizes(len(SHARE), 16, 2000))
    found = np.bincount(CLASSES[drawn - 100], minlength=4) / len(drawn)
    wanted = np.array([0.2, 0.0, 0.3, 0.2]) / 0.7
    assert np.abs(found - wanted).max() < 0.02
    own = np.bincount(CLASSES, minlength=4) / len(CLASSES)
    assert np.abs(own - wanted).max() > 0.3  # control: its own shares are others


def test_no_example_comes_again_before_all_of_its_class_came() -> None:
    drawn = draw_by_class(SHARE, CLASSES, SHARES, 16, 40, np.random.default_rng(1))
    for label in (0, 2, 3):
        of_class = drawn[CLASSES[drawn - 100] == label]
        mine = set(SHARE[label == CLASSES].tolist())
        for start in range(0, len(of_class) - len(mine), len(mine)):
            assert set(of_class[start : start + len(mine)].tolist()) == mine
        counts = Counter(of_class.tolist())
        assert max(counts.values()) - min(counts.get(one, 0) for one in mine) <= 1


@pytest.mark.parametrize("steps", [1, 3, 7, 150])
def test_steps_are_as_large_as_without_and_texts_of_like_length_stand_together(steps: int) -> None:
    lengths = np.random.default_rng(2).integers(3, 60, size=200)
    drawn = draw_by_class(SHARE, CLASSES, SHARES, 16, steps, np.random.default_rng(3))
    plain = list(balanced_batches(drawn, None, len(SHARE), 16, steps, np.random.default_rng(4)))
    assert np.array_equal(np.concatenate(plain), drawn)
    assert [len(part) for part in plain] == step_sizes(len(SHARE), 16, steps)
    sorted_ones = list(balanced_batches(drawn, lengths, len(SHARE), 16, steps, np.random.default_rng(4)))
    assert sorted(map(len, sorted_ones)) == sorted(step_sizes(len(SHARE), 16, steps))
    assert Counter(np.concatenate(sorted_ones).tolist()) == Counter(drawn.tolist())

    def padded(parts: list[np.ndarray]) -> int:
        return sum(int(len(part) * lengths[part].max()) for part in parts)

    assert (padded(sorted_ones) < 0.9 * padded(plain)) is (steps > 1)


def test_one_class_alone_is_a_plain_pass() -> None:
    drawn = draw_by_class(SHARE[:30], CLASSES[:30], SHARES, 16, 2, np.random.default_rng(5))
    assert sorted(drawn.tolist()) == SHARE[:30].tolist()


def test_a_class_of_which_a_client_has_hardly_any_is_left_out() -> None:
    shares = (0.5, 0.5)
    for few, kept in ((0, False), (4, False), (5, True), (50, True)):
        classes = np.array([0] * few + [1] * (100 - few))
        assert kept_classes(classes, shares).tolist() == [kept, True]
        drawn = draw_by_class(np.arange(100), classes, shares, 10, 30, np.random.default_rng(6))
        assert (0 in classes[drawn]) is kept
        assert max(Counter(drawn.tolist()).values()) < 2 * 10 * 3  # three passes, at most ten times in each, but for chance
    assert kept_classes(np.array([2]), (0.2, 0.7, 0.1)).tolist() == [False, False, True]
