"""What every client gets: subnetworks and the full model, measured on each client's own held-out examples.

Used inside `runs` only:

- `request`: the calls that measure clients, and the table of their answers
- `participation`: how often clients were chosen, arrived and were dropped
- `statistics`: means, spread, worst clients and fairness of such a table

Start reading at `request`.
"""

__all__ = ["participation", "request", "statistics"]
