"""Makes one file of many: the records of a long run do not become tens of thousands of files."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import file_digest, sha256
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import read_whole, sync
from raffm_ray.basics.machine import trim_heap
from raffm_ray.runs.records.record_files import DIGESTS, PARTS, RecordFile, every_file, packed_name
from raffm_ray.runs.records.totals import TOTALS, as_metadata, totals_upto
from raffm_ray.runs.rounds.client_totals import ClientTotals

ROUNDS = 500
"""Of a packed file."""
GROUP_ROWS = 5_000
"""About how many rows are read, and held in memory, at once."""


def pack(folder: Path, upto: int) -> None:
    """Packs the records of all whole hundreds of rounds (`ROUNDS`) up to one, which no run may go back before any more.

    At every moment a reader finds each round once: the packed file has its name when it is whole and on the disk, and only then are those
    that it was made from removed. Files whose columns differ, as a newer version leaves them, and damaged ones stay. Raises OSError.
    """
    for part in PARTS:
        counted, held = every_file(folder, part)
        singles = {one.first: one for one in counted if not one.digest}
        for start in range(0, upto + 2 - ROUNDS, ROUNDS):
            chosen = [singles[number] for number in range(start, start + ROUNDS) if number in singles]
            if len(chosen) == ROUNDS or (part == "evaluations" and len(chosen) > 1):
                held += chosen if _packed(chosen, start, start + ROUNDS - 1) else []
        for one in held:
            one.path.unlink()
    pa.default_memory_pool().release_unused()
    trim_heap()


def _packed(files: Sequence[RecordFile], first: int, last: int) -> bool:
    """Whether a file of these rounds is there now."""
    place = files[0].path.parent
    temporary = place / ".packed.tmp"
    digests, schemas = dict[int, str](), list[pa.Schema]()
    try:
        totals = _totals_before(place.parent, first) if place.name == "clients" else None
        for one in files:
            content = read_whole(one.path)
            digests[one.first] = sha256(content).hexdigest()
            schemas.append(pq.read_schema(BytesIO(content)))
            if totals is not None:
                totals.add_columns(pq.read_table(BytesIO(content)))
        if not all(one.equals(schemas[0]) for one in schemas):
            return False
        metadata = {DIGESTS: json.dumps(digests).encode(), **({TOTALS: as_metadata(totals)} if totals is not None else {})}
        _write(temporary, files, schemas[0].with_metadata(metadata))
    except (ValueError, KeyError, pa.ArrowException):
        temporary.unlink(missing_ok=True)
        return False
    with temporary.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    sync([temporary])
    os.replace(temporary, place / packed_name(first, last, digest))
    sync([place])
    return True


def _totals_before(folder: Path, number: int) -> ClientTotals | None:
    """Of all rounds before one; None where a file of them is damaged."""
    with suppress(UserError, ValueError, KeyError, pa.ArrowException):
        return totals_upto(folder, number - 1, with_seen=False)
    return None


def _write(path: Path, files: Sequence[RecordFile], schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        held = list[pa.Table]()
        for one in files:
            held.append(pq.ParquetFile(BytesIO(read_whole(one.path)), page_checksum_verification=True).read())
            if sum(map(len, held)) >= GROUP_ROWS or one is files[-1]:
                writer.write_table(pa.concat_tables(held).replace_schema_metadata(schema.metadata))
                held = []
