"""Sums over all clients of all rounds, so that nobody keeps their rows: what a summary says of clients does not need more."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from raffm_ray.runs.rounds.rows import ClientRow

AVERAGED = ("bytes_down", "bytes_up", "round_seconds", "energy_joules", "training_flops", "flops_per_example")
"""Fields of a client's row whose means a summary has by device type."""


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
