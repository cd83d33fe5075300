"""Sums over the clients of all rounds up to one. A packed file holds those up to its last round, so that nobody adds up all rows again."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raffm_ray.runs.records.record_files import RecordFile, record_files
from raffm_ray.runs.records.record_tables import tables
from raffm_ray.runs.rounds.client_totals import COUNTED, ClientTotals, DeviceTotals

TOTALS = b"raffm_ray_totals"
"""The key of a packed file's metadata under which they are. Who was seen is not in them: that is read from one column."""


def as_metadata(totals: ClientTotals) -> bytes:
    """Sums as a packed file holds them; floats come back to the bit."""
    types = {name: vars(one) for name, one in totals.device_types.items()}
    return json.dumps({"device_types": types, "rejected": totals.rejected, "any_refused": totals.any_refused}).encode()


def _stored(one: RecordFile) -> ClientTotals | None:
    try:
        content = json.loads((pq.read_schema(one.path).metadata or {})[TOTALS])
        types = {name: DeviceTotals(**sums) for name, sums in content["device_types"].items()}
        return ClientTotals(types, rejected=content["rejected"], any_refused=content["any_refused"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException):
        return None


def totals_upto(folder: Path, upto: int, with_seen: bool = True) -> ClientTotals:
    """What clients did up to a round. `with_seen`: whether it is wanted who was given work, in rounds that are packed too. Raises UserError,
    KeyError or ArrowException for records that are damaged."""
    found, after = ClientTotals(), -1
    for one in reversed(record_files(folder, "clients")):
        if one.digest and one.last <= upto and (stored := _stored(one)) is not None:
            found, after = stored, one.last
            break
    if with_seen and after >= 0:
        chunks = [chunk for table in tables(folder, "clients", ["client"], upto=after) for chunk in table["client"].chunks]
        found.seen.update(pc.unique(pa.chunked_array(chunks, pa.int64())).to_pylist())
    for table in tables(folder, "clients", COUNTED, after=after, upto=upto):
        found.add_columns(table)
    return found
