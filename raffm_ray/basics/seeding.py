"""(seed, purpose, round, client) -> a generator. Nothing else in the project makes randomness.

Every random choice is named by what it is for, so that adding one never shifts another, and so that a client's choices do
not depend on which worker, node or attempt makes them.
"""

from zlib import crc32

import numpy as np


def _entropy(seed: int, purpose: str, *where: int) -> np.random.SeedSequence:
    # The length is part of it because a SeedSequence does not tell trailing zeros from nothing.
    return np.random.SeedSequence([seed, crc32(purpose.encode()), len(where), *where])


def generator(seed: int, purpose: str, *where: int) -> np.random.Generator:
    """A numpy generator for one purpose at one place, for example `generator(seed, "batches", round, client)`."""
    return np.random.default_rng(_entropy(seed, purpose, *where))


def torch_seed(seed: int, purpose: str, *where: int) -> int:
    """A 63-bit seed for `torch.manual_seed`, for what torch itself draws: initial weights and dropout."""
    return int(_entropy(seed, purpose, *where).generate_state(1, np.uint64)[0] >> np.uint64(1))
