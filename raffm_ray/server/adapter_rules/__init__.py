"""How a round's adapters become the next ones, where that is more than a mean of their entries.

- `rules`: the table `ADAPTER_RULES`, one function a method
- `decomposition`: the leading singular vectors of a product that is kept as factors
- `chosen`: what an experiment asks for, checked
- `apply`: rules over all adapters of a model, and how far off an aggregation is
- `round_end`: what a round makes of adapters

Start reading at `rules`.
"""

__all__ = ["apply", "chosen", "rules"]
