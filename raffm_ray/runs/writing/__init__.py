"""How a run's files are written beside its next round.

- `background`: one action at a time on a thread
- `hashed_arrays`: arrays as a safetensors file, hashed as they are written

Start reading at `background`.
"""

__all__ = ["background", "hashed_arrays"]
