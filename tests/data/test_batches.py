"""Batches of a client's examples, and what cached columns depend on."""

import numpy as np
from conftest import small_tokenizer

from raffm_ray.data.encoding import Words
from raffm_ray.data.examples import batches


def test_every_pass_is_a_shuffle_of_its_own() -> None:
    share = np.arange(100, 140)
    found = [*batches(share, 8, 10, np.random.default_rng(0))]
    first, second = np.concatenate(found[:5]), np.concatenate(found[5:])
    assert sorted(first) == sorted(second) == share.tolist()
    assert not np.array_equal(first, share)
    assert not np.array_equal(first, second)


def test_cached_texts_depend_on_how_long_they_may_be() -> None:
    tokenizer = small_tokenizer(["a", "film"])
    assert Words(tokenizer, 0, 6).key == Words(tokenizer, 0, 6).key
    assert Words(tokenizer, 0, 6).key != Words(tokenizer, 0, 12).key
