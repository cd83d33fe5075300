"""What clients and their devices keep between rounds, as the server knows it.

- `client_memory`: personal parameters, when each client last trained, and the control variate that all share
- `held_parameters`: which frozen parameters a device has already
- `held_words`: which rows of the table of words devices hold, and how much weight reads each
- `holders`: how much weight the clients have that hold an entry
- `memory_checks`: what does not go together with what clients remember

Start reading at `client_memory`.
"""

__all__ = ["client_memory", "held_parameters", "held_words", "holders", "memory_checks"]
