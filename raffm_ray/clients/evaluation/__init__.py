"""How a client is measured with what is its own.

Used inside `clients` only:

- `own_model`: the subnetwork with the client's own parameters, and tuned on its own examples

Start reading at `own_model`.
"""

__all__ = ["own_model"]
