"""What every client gets, and who took part, as parts of the page of one run.

Used inside `reports` only:

- `picture`: how the clients' metrics are spread, and by device type
- `participation`: who took part: a picture, a table
- `aggregation`: how far merged adapters are from what clients sent
- `section`: the part of the page: pictures with captions, and tables

Start reading at `section`.
"""

__all__ = ["aggregation", "participation", "picture", "section"]
