"""Strategies by what they are for."""

from raffm_ray.server.strategies import STRATEGIES

ADAPTED = [name for name, row in STRATEGIES.items() if row.of_adapters]
"""Methods for adapters, which run where a model has adapters."""
WHOLE = [name for name in STRATEGIES if name not in ADAPTED]
"""All others."""
