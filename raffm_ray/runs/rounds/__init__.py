"""One round: its blocks on a pool, its rows, and what they add up to.

- `rows`: the rows of the records
- `client_totals`: sums over clients, whose rows nobody keeps
- `run_round`: runs a round's blocks and adds their sums

Start reading at `run_round`.
"""

__all__ = ["client_totals", "rows", "run_round"]
