"""Reads the records of a run, whether they are packed or not, also beside who packs them."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.files import read_whole
from raffm_ray.runs.records.record_files import RecordFile, record_files

FORMER_COLUMNS = {
    "class_metrics": "device_type_metrics",
    "class_params": "device_type_params",
    "validation_class_metrics": "validation_device_type_metrics",
}
"""What earlier versions called a column of the records -> what it is called now."""
WHAT = {"rounds": "a round", "clients": "a round", "evaluations": "clients' evaluations"}
"""Of what a part of the records is."""


def _tables_in(one: RecordFile, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    file = pq.ParquetFile(BytesIO(read_whole(one.path)), page_checksum_verification=True)
    present = file.schema_arrow.names
    chosen = None if columns is None else [name for name in columns if name in present]
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, chosen)
        yield table.rename_columns([FORMER_COLUMNS.get(name, name) for name in table.column_names])


def tables(
    folder: Path, part: str, columns: Sequence[str] | None = None, after: int = -1, upto: int | None = None
) -> Iterator[pa.Table]:
    """A part of the records in the order of rounds, of those after a round and up to one, some rows at a time; columns of earlier versions
    are called as they are now. `columns`: those that are wanted, if they are there. Raises UserError for a file that is damaged."""
    wanted = None if columns is None else ["round", *(name for name in columns if name != "round")]
    left, missing = record_files(folder, part), None
    while left:
        one = left.pop(0)
        if one.last <= after or (upto is not None and one.first > upto):
            continue
        try:
            for table in _tables_in(one, wanted):
                if one.digest:
                    inside = pc.greater(table["round"], after)
                    table = table.filter(inside if upto is None else pc.and_(inside, pc.less_equal(table["round"], upto)))
                yield table
        except FileNotFoundError:
            if missing == one.path:
                raise UserError(f"{one.path}: missing") from None
            left, missing = record_files(folder, part), one.path  # it may have been packed meanwhile
            continue
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise UserError(f"{one.path}: damaged or not a record of {WHAT[part]}: {in_short(error)}") from None
        after = one.last
