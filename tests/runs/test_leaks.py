"""That `make leaks` would see what grows."""

import leaks
import numpy as np
import pytest


def test_growth_is_found_with_its_error_and_what_comes_first_does_not_count() -> None:
    rounds = list(range(0, 400, 4))
    rng = np.random.default_rng(0)
    starting = [1e6 * (round < 100) for round in rounds]
    for growth in (0.0, 7.0):
        noise = rng.normal(0, 50, len(rounds))
        found, error = leaks.slope(
            rounds, [start + growth * at + one for start, at, one in zip(starting, rounds, noise, strict=True)]
        )
        assert abs(found - growth) < 4 * error
        assert 0 < error < 0.5


def test_a_record_takes_what_its_numbers_take() -> None:
    one, two = ({"a": 1.5, "b": 2.5}, {"a": 1.5, "b": 2.5, "c": 3.5})
    assert leaks.record_bytes(two) - leaks.record_bytes(one) == pytest.approx(24, abs=1)
    assert leaks.record_bytes("a text") == leaks.record_bytes(3) == leaks.record_bytes(None) == 0
