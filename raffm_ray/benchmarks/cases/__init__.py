"""Cases of the speed suite that measure one thing each.

- `startup`: from the command to the end of round 1
- `records`: records of many rounds: written, gone on from, read for a report
- `large`: a model that is much larger than what is trained of it
- `lengths`: texts of like length in a step beside shuffled ones

Start reading at `records`.
"""

__all__ = ["large", "lengths", "records", "startup"]
