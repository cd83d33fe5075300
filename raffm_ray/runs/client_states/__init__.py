"""What clients keep from round to round, as files of a run's folder.

- `disk_forecast`: how much disk they will take
- `store`: reads, writes and removes the states of clients

Start reading at `store`.
"""

__all__ = ["disk_forecast", "store"]
