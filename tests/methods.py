"""Strategies by what they are for."""

from raffm_ray.server.strategies import STRATEGIES, leading_ranks

ADAPTED = [name for name, row in STRATEGIES.items() if row.train is leading_ranks]
"""Methods for adapters of unequal ranks, which run where a model has adapters."""
WHOLE = [name for name in STRATEGIES if name not in ADAPTED]
"""All others."""
