"""Which files hold which rounds of a run's records, and the digest of all records up to a round.

A packed file says in its name which rounds it holds, and what its own digest begins with; in its metadata are the digests of the files
that it was made from. Where it is there, files of single rounds in its range do not count, whether they are removed yet or not.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raffm_ray.basics.files import read_whole

PARTS = ("rounds", "clients", "evaluations")
"""Folders of records. Every round is in the first two, and in the third where clients were measured after it."""
NAME = re.compile(r"round-(\d{6,})(?:-to-(\d{6,})-([0-9a-f]{32}))?\.parquet")
DIGESTS = b"raffm_ray_digests"
"""The key of a packed file's metadata under which the digests are by round."""


class RecordFile(NamedTuple):
    """A file of the rounds from `first` to `last`; `digest`: the beginning of its own, empty of a single round."""

    path: Path
    first: int
    last: int
    digest: str = ""


def record_name(part: str, number: int) -> str:
    """Where in a run's folder a single round is recorded."""
    return f"{part}/round-{number:06d}.parquet"


def packed_name(first: int, last: int, digest: str) -> str:
    """What a packed file is called. `digest`: its SHA-256."""
    return f"round-{first:06d}-to-{last:06d}-{digest[:32]}.parquet"


def every_file(folder: Path, part: str) -> tuple[list[RecordFile], list[RecordFile]]:
    """The files that hold a part of the records, in the order of rounds, and those of single rounds that a packed one holds too."""
    found = list[RecordFile]()
    for path in (folder / part).glob("round-*.parquet"):
        if named := NAME.fullmatch(path.name):
            first = int(named[1])
            found.append(RecordFile(path, first, int(named[2] or first), named[3] or ""))
    found.sort(key=lambda one: (one.first, -one.last))
    counted, held, last = list[RecordFile](), list[RecordFile](), -1
    for one in found:
        if one.last <= last:
            held.append(one)
        else:
            counted.append(one)
            last = one.last
    return counted, held


def record_files(folder: Path, part: str) -> list[RecordFile]:
    """The files that hold a part of a run's records, every round in one of them, in the order of rounds."""
    return every_file(folder, part)[0]


def remove_packed(folder: Path) -> None:
    """Removes all packed files, of a run that begins again."""
    for part in PARTS:
        for one in record_files(folder, part):
            if one.digest:
                one.path.unlink()


def last_packed(folder: Path) -> int:
    """The last round that is in a packed file; -1 where there is none."""
    return max((one.last for part in PARTS for one in record_files(folder, part) if one.digest), default=-1)


def chained(before: str, digests: Sequence[str]) -> str:
    """Digest of all records up to a round, from that of the rounds before ("" for none) and those of its own files."""
    return sha256("".join([before, *digests]).encode()).hexdigest()


def _digests_in(one: RecordFile) -> Mapping[int, str]:
    """By round. Raises OSError, ValueError, TypeError or ArrowException for a file that is damaged."""
    content = read_whole(one.path)
    digest = sha256(content).hexdigest()
    if not one.digest:
        return {one.first: digest}
    if not digest.startswith(one.digest):
        raise ValueError("its content is not what its name says")
    metadata = pq.read_schema(BytesIO(content)).metadata or {}
    return {int(number): str(own) for number, own in json.loads(metadata.get(DIGESTS, b"{}")).items()}


def _digests(folder: Path, part: str) -> Iterator[tuple[int, str]]:
    """As far as its files are whole."""
    with suppress(OSError, ValueError, TypeError, AttributeError, pa.ArrowException):
        for one in record_files(folder, part):
            if part != "evaluations" or one.path.is_file():
                yield from _digests_in(one).items()


def digests_by_round(folder: Path) -> list[str]:
    """The digest of all records up to each round, as far as there are any."""
    rounds, clients, evaluations = (dict(_digests(folder, part)) for part in PARTS)
    found = [""]
    for number in count():
        if number not in rounds or number not in clients:
            return found[1:]
        measured = [evaluations[number]] if number in evaluations else []
        found.append(chained(found[-1], [rounds[number], clients[number], *measured]))
    raise AssertionError
