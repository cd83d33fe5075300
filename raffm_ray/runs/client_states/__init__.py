"""What clients keep from round to round, as files of a run's folder.

Used inside `runs` and by `deployment`:

- `store`: reads, writes and removes the states of clients

Start reading at `store`.
"""

__all__ = ["store"]
