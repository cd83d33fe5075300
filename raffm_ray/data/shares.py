"""Which client owns which examples: the file and the table, for ten clients or 100,000."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.files import read_whole, write_atomically
from raffm_ray.basics.seeding import generator
from raffm_ray.basics.tables import WordTable
from raffm_ray.data.label_skew.label_distribution import Indices, LabelDistribution


def by_device(device_types: Sequence[str], names: Iterable[str]) -> dict[str, Indices]:
    """Device type -> its clients. `device_types`: [clients]; `names`: weakest first, as they come out."""
    given = np.array(device_types)
    return {name: np.flatnonzero(given == name) for name in names}


def write_shares(path: Path, label_distribution: LabelDistribution, devices: Mapping[str, Indices]) -> None:
    """Who owns what, as Parquet: a row for every client and class that it has, and one for a client without examples.

    The names of the task's classes and of the device types, weakest first, are in the schema's metadata. Raises UserError where it cannot be written.
    """
    empty, own = np.flatnonzero(label_distribution.sizes == 0), np.empty(len(label_distribution.sizes), dtype=np.int64)
    for number, mine in enumerate(devices.values()):
        own[mine] = number
    clients = np.concatenate([label_distribution.clients, empty])
    order = np.argsort(clients, kind="stable")
    labels, counts = (
        np.concatenate([values, np.zeros_like(empty)])[order] for values in (label_distribution.labels, label_distribution.counts)
    )
    columns = {
        "client": pa.array(clients[order]),
        "device": pa.array(np.array(list(devices))[own[clients[order]]]),
        "class": pa.array(labels, mask=(counts == 0) | (len(label_distribution.class_names) == 0)),
        "examples": pa.array(counts),
    }
    about = {"class_names": json.dumps(label_distribution.class_names), "devices": json.dumps(list(devices))}
    sink = BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(about), sink, write_page_checksum=True)
    try:
        write_atomically(path, sink.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def read_shares(path: Path) -> tuple[LabelDistribution, dict[str, Indices]]:
    """What `write_shares` wrote: the label distribution, and the clients of every device type. Raises UserError when it is damaged."""
    try:
        table = pq.ParquetFile(BytesIO(read_whole(path)), page_checksum_verification=True).read()
        about = {name: json.loads(table.schema.metadata[name.encode()]) for name in ("class_names", "devices")}
        clients, counts = (table[name].cast(pa.int64()).to_numpy() for name in ("client", "examples"))
        labels, devices = table["class"].cast(pa.int64()).fill_null(0).to_numpy(), table["device"].to_numpy().astype(str)
        if not len(clients) or not np.array_equal(np.unique(clients), np.arange(clients.max() + 1)) or counts.min() < 0:
            raise ValueError("its clients are not 0 to the last one, or have less than no examples")
        if labels.min() < 0 or labels.max() >= max(len(about["class_names"]), 1):
            raise ValueError("its classes are not those that it names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged or not a record of shares: {in_short(error)}") from None
    sizes = np.bincount(clients, counts).astype(np.int64)
    own = np.empty(len(sizes), dtype=devices.dtype)
    own[clients] = devices
    has = counts > 0
    return LabelDistribution(
        clients=clients[has], labels=labels[has], counts=counts[has], sizes=sizes, class_names=tuple(about["class_names"])
    ), by_device(own.tolist(), about["devices"])


@dataclass(frozen=True)
class ShareRow:
    """A row of the table, of all clients or of a device type. Sizes, classes and distances are of clients with examples.

    `distance`: mean total variation distance from everybody's mix of classes; `at_random`: the same sizes dealt at random.
    """

    name: str
    clients: int
    empty: int
    examples: int
    smallest: int
    median: float
    largest: int
    classes: float
    distance: float
    at_random: float


def share_rows(label_distribution: LabelDistribution, devices: Mapping[str, Indices]) -> list[ShareRow]:
    """All clients, then every device type that somebody owns."""
    classes, distances, at_random = (
        label_distribution.classes(),
        label_distribution.distances(),
        dealt_at_random(label_distribution).distances(),
    )
    rows = []
    for name, clients in {"all clients": np.arange(len(label_distribution.sizes)), **devices}.items():
        own = clients[label_distribution.sizes[clients] > 0]
        sizes = label_distribution.sizes[own]
        means = [float(np.mean(values[own])) if len(own) else 0.0 for values in (distances, at_random)]
        middle = [float(np.median(values)) if len(own) else 0.0 for values in (sizes, classes[own])]
        rows.append(
            ShareRow(
                name,
                len(clients),
                len(clients) - len(own),
                int(sizes.sum()),
                int(sizes.min(initial=sizes.max(initial=0))),
                middle[0],
                int(sizes.max(initial=0)),
                middle[1],
                *means,
            )
        )
    return [row for row in rows if row.clients]


def dealt_at_random(label_distribution: LabelDistribution) -> LabelDistribution:
    """The control beside the shares, the same one in the table and in the picture."""
    return label_distribution.dealt_anew(generator(0, "shares at random"))


def share_table(
    label_distribution: LabelDistribution, devices: Mapping[str, Indices], title: str, note: str | None = None
) -> Table:
    """`share_rows` for a terminal of 80 columns; `note`: what else is to be said below it."""
    table = WordTable(title=title, box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    named = bool(label_distribution.class_names)
    for heading in (
        "clients",
        "empty",
        "examples",
        "min",
        "median",
        "max",
        *(("classes", "unlike", "chance") if named else ()),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for position, row in enumerate(share_rows(label_distribution, devices)):
        cells = [
            f"{row.clients:,}",
            f"{row.empty:,}",
            f"{row.examples:,}",
            f"{row.smallest:,}",
            f"{row.median:,g}",
            f"{row.largest:,}",
        ]
        cells += [f"{row.classes:g}", f"{row.distance:.2f}", f"{row.at_random:.2f}"] if named else []
        table.add_row(row.name, *cells, end_section=position == 0)
    table.caption = "min, median, max: examples of a client that has any"
    if named:
        table.caption += (
            "; classes: median\n"
            "unlike: mean distance of its mix of classes from everybody's (0 to 1)\n"
            "chance: the same, were these sizes dealt at random"
        )
    table.caption += f"\n{escape(note)}" if note else ""
    return table
