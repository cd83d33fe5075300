"""What a study calls best is what a person would choose; controls: the rule of distance alone, and other shares."""

import pytest

from raffm_ray.studies.best_trial import choose, front_of, keeps, nearest
from raffm_ray.studies.checked_study import Goal

FULL, BYTES, JOULES, LOSS = (
    Goal("full_model", True),
    Goal("bytes", False),
    Goal("energy_joules", False),
    Goal("full_model", False),
)
SEEN = {0: [0.699, 45.5e6], 1: [0.882, 49.4e6]}
"""A front that was seen: accuracy and bytes."""


def test_the_front_and_the_nearest() -> None:
    values = {0: [0.9, 10.0], 1: [0.8, 5.0], 2: [0.8, 6.0], 3: [0.95, 30.0], 4: [0.9, 10.0], 5: [0.7, 5.0]}
    assert front_of(values, [True, False]) == [0, 1, 3, 4]
    assert front_of(values, [False, False]) == [5]
    assert nearest({number: values[number] for number in (0, 1, 3)}, [True, False]) == 0


def test_a_third_of_the_accuracy_is_not_given_away_for_a_few_bytes() -> None:
    choice = choose(SEEN, [FULL, BYTES], 0.99)
    assert choice.best == 1
    assert choice.enough == [1]
    assert choice.rule == "of the front's trials with at least 0.99 of the best full_model, the one with the best bytes"
    assert choose({number: own[::-1] for number, own in SEEN.items()}, [BYTES, FULL], 0.99).best == 1


def test_control_the_distance_alone_gives_it_away() -> None:
    assert nearest(SEEN, [True, False]) == 0


def test_bytes_are_saved_where_the_accuracy_stays() -> None:
    front = {**SEEN, 2: [0.885, 92e6]}
    assert choose(front, [FULL, BYTES], 0.99)[:1] == (1,)
    assert choose(front, [FULL, BYTES], 0.99).enough == [1, 2]
    assert choose(front, [FULL, BYTES], 1.0).best == 2
    assert choose(front, [FULL, BYTES], 0.75).best == 0


def test_several_other_objectives_are_weighed_and_none_that_is_a_metric_too() -> None:
    front = {0: [0.90, 100.0, 1.0], 1: [0.899, 60.0, 1.2], 2: [0.899, 59.0, 9.0], 3: [0.5, 1.0, 0.1]}
    choice = choose(front, [FULL, BYTES, JOULES], 0.99)
    assert (choice.best, choice.enough) == (1, [0, 1, 2])
    costs = {0: [100.0, 1.0], 1: [60.0, 1.2], 2: [59.0, 9.0]}
    choice = choose(costs, [BYTES, JOULES], 0.99)
    assert (choice.best, choice.enough) == (1, [0, 1, 2])
    assert "nearest to the best value of every objective" in choice.rule


def test_one_objective_is_its_best_value_and_the_first_of_equals() -> None:
    assert choose({3: [0.5], 1: [0.5]}, [FULL], 0.99).best == 1
    assert choose({3: [7.0], 1: [9.0]}, [BYTES], 0.99)[:2] == (3, "the trial with the best value")


@pytest.mark.parametrize(
    ("value", "best", "higher", "kept"),
    [
        (0.9, 1.0, True, True),
        (0.89, 1.0, True, False),
        (1.1, 1.0, False, True),
        (1.2, 1.0, False, False),
        (-0.1, -0.1, True, True),
    ],
)
def test_a_share_of_the_best_goes_the_way_of_the_metric(value, best, higher, kept) -> None:
    assert keeps(value, best, higher, 0.9) is kept
    assert choose({0: [2.0, 10.0], 1: [1.05, 20.0], 2: [1.0, 30.0]}, [LOSS, BYTES], 0.9).best == 1
