"""What every client gets, as a part of the page of one run.

Used inside `reports` only:

- `picture`: how the clients' metrics are spread, and by device type
- `section`: the part of the page: pictures with captions, and tables

Start reading at `section`.
"""

__all__ = ["picture", "section"]
