"""The records of a run as Parquet files: a file for each round, and for many rounds together once they are old.

- `record_files`: which files hold which rounds, and their digests
- `record_tables`: reads them in the order of rounds
- `totals`: sums over clients up to a round
- `packing`: makes one file of many

Start reading at `record_files`.
"""

__all__ = ["packing", "record_files", "record_tables", "totals"]
