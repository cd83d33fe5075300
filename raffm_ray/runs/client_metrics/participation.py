"""Who took part in a run: how often each device type's clients were chosen, arrived and were dropped. Read from the records, column by column."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raffm_ray.runs.client_metrics.statistics import jain_index
from raffm_ray.runs.records.record_tables import tables
from raffm_ray.server.state import Setup

COUNTED = {"used": "arrived", "stale": "late", "late": "late", "dropped": "dropped"}
"""Outcome of a client's round -> what it is counted as."""
CHOSEN = ("arrived", "late", "dropped")
"""Their sum is how often clients were chosen."""


def _counts(folder: Path, clients: int, upto: int) -> dict[str, NDArray[np.int64]]:
    """[clients] by what they are counted as, over the rounds of training."""
    counts = {name: np.zeros(clients, dtype=np.int64) for name in CHOSEN}
    for table in tables(folder, "clients", ["client", "outcome"], after=0, upto=upto):
        numbers, outcomes = table["client"].to_numpy(), np.array(table["outcome"].to_pylist(), dtype=str)
        for outcome, name in COUNTED.items():
            np.add.at(counts[name], numbers[outcomes == outcome], 1)
    return counts


def participation(setup: Setup, folder: Path, upto: int) -> dict[str, Any]:
    """The content of the summary's `participation`, over the rounds of a run's folder from 1 to `upto`, of clients that have examples to train on."""
    owners, types = setup.owners, np.array(setup.device_types)
    counts = _counts(folder, len(types), upto)
    arrived = counts["arrived"][owners]
    times, clients = np.unique(arrived, return_counts=True)
    by_type = {}
    for name in setup.budgets:
        mine = (types == name) & owners
        found = {what: int(values[mine].sum()) for what, values in counts.items()}
        by_type[name] = {"clients": int(mine.sum()), "chosen": sum(found.values()), **found}
    return {
        "device_types": by_type,
        "jain_index": jain_index(arrived.astype(np.float64)),
        "never_arrived": int((arrived == 0).sum()),
        "clients_by_times_arrived": {str(time): count for time, count in zip(times.tolist(), clients.tolist(), strict=True)},
    }
