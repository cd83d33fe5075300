"""What clients' changes add up to besides weighted sums. A fold has a start, adds one client's change, and merges what two groups of clients add up
to; how clients are divided into groups changes nothing but rounding.

- `products`: weighted products of the two projections of adapters, kept as factors

Weighted sums are the first fold: `block_sums`, one module up.

Start reading at `products`.
"""

__all__ = ["products"]
