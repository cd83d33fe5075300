"""Sums over all clients of all rounds, so that nobody keeps their rows: what a summary says of clients does not need more."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raffm_ray.runs.rounds.rows import ClientRow

AVERAGED = ("bytes_down", "bytes_up", "round_seconds", "energy_joules", "training_flops", "flops_per_example")
"""Fields of a client's row whose means a summary has by device type."""
COUNTED = (
    "round",
    "client",
    "device",
    "accepted",
    "refused",
    "statistics_refused",
    "over_budget",
    "peak_memory_bytes",
    *AVERAGED,
)
"""Columns of the records that are read for it."""


def _said(table: pa.Table, name: str) -> pa.ChunkedArray | pa.Array:
    """By row, whether a text is there and not empty. Earlier versions lack some of the columns."""
    if name not in table.column_names:
        return pa.array(np.zeros(len(table), dtype=bool))
    return pc.fill_null(pc.not_equal(table[name], ""), False)


@dataclass
class DeviceTotals:
    """Of the training rounds of one device type's clients. `sums`, `counts`: by field of `AVERAGED`, of the rows that have a value; `over_budget`: in
    how many a budget was exceeded; `peak_memory_bytes`: the most, None before the first."""

    client_rounds: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    over_budget: int = 0
    peak_memory_bytes: int | None = None

    def add(self, row: ClientRow) -> None:
        """Counts a row."""
        self.client_rounds += 1
        self.over_budget += bool(row.over_budget)
        self.peak_memory_bytes = max(row.peak_memory_bytes, self.peak_memory_bytes or 0)
        for name in AVERAGED:
            if (value := getattr(row, name)) is not None:
                self.sums[name] = self.sums.get(name, 0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def add_columns(self, table: pa.Table) -> None:
        """Counts the rows of a table of records, to the bit as one by one: numbers are added in their order."""
        self.client_rounds += len(table)
        self.over_budget += pc.sum(pc.cast(_said(table, "over_budget"), "int64")).as_py() or 0
        self.peak_memory_bytes = max(pc.max(table["peak_memory_bytes"]).as_py(), self.peak_memory_bytes or 0)
        for name in AVERAGED:
            values = table[name].drop_null().to_numpy() if name in table.column_names else np.empty(0)
            if len(values):
                before = self.sums.get(name, 0)
                whole = values.dtype.kind == "i"
                self.sums[name] = (
                    before + int(values.sum()) if whole else float(np.add.accumulate(np.concatenate([[before], values]))[-1])
                )
                self.counts[name] = self.counts.get(name, 0) + len(values)

    def mean(self, name: str, otherwise: float | None) -> float | None:
        """Of a field, `otherwise` where no row has it."""
        return self.sums[name] / self.counts[name] if name in self.sums else otherwise


@dataclass
class ClientTotals:
    """`device_types`: what their clients did in training rounds, in the order of rounds and clients; `seen`: clients that were ever given work;
    `rejected`: how many updates were not accepted; `any_refused`: whether anything that a client sent was not used."""

    device_types: dict[str, DeviceTotals] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    rejected: int = 0
    any_refused: bool = False

    def add(self, rows: Iterable[ClientRow]) -> None:
        """Counts the rows of a round."""
        for row in rows:
            self.seen.add(row.client)
            self.rejected += not row.accepted
            self.any_refused |= bool(row.refused or row.statistics_refused)
            if row.round > 0:
                self.device_types.setdefault(row.device, DeviceTotals()).add(row)

    def add_columns(self, table: pa.Table) -> None:
        """Counts the rows of a table of records with the columns `COUNTED`, as `add` does, to the bit. Raises KeyError for a missing one."""
        self.seen.update(pc.unique(table["client"]).to_pylist())
        self.rejected += len(table) - (pc.sum(pc.cast(table["accepted"], "int64")).as_py() or 0)
        refused = pc.or_(_said(table, "refused"), _said(table, "statistics_refused"))
        self.any_refused |= bool(pc.any(refused).as_py())
        trained = table.filter(pc.greater(table["round"], 0))
        for device in pc.unique(trained["device"]).to_pylist():
            mine = trained.filter(pc.equal(trained["device"], device))
            self.device_types.setdefault(device, DeviceTotals()).add_columns(mine)
