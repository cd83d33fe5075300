"""One round on a pool: its blocks, and what is evaluated beside them.

Used inside `runs` and by `benchmarks`:

- `run_round`: runs a round's blocks and adds their sums

Start reading at `run_round`.
"""

__all__ = ["run_round"]
