"""When devices are awake: one function and one row of `AVAILABILITY` a model. Pure functions of time; nothing is stepped through."""

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raffm_ray.basics.errors import UserError, in_short, near_miss
from raffm_ray.basics.files import read_whole
from raffm_ray.basics.registry import Table
from raffm_ray.basics.seeding import generator
from raffm_ray.settings.experiment import ClockSettings

Times = NDArray[np.float64]
Availability = Callable[[float], tuple[NDArray[np.bool_], Times]]
"""A time in seconds -> ([clients] who is awake then, [clients] when each next falls asleep or wakes; infinity for never)."""


def always(settings: ClockSettings, seed: int, clients: int) -> Availability:
    """Everybody, at any time."""
    awake, never = np.ones(clients, dtype=bool), np.full(clients, np.inf)
    return lambda now: (awake, never)


def periodic(settings: ClockSettings, seed: int, clients: int) -> Availability:
    """Day and night: every client is awake for the first `awake` of each period, which begins at a phase of its own, drawn uniformly."""
    period, day = settings.period_seconds, settings.awake * settings.period_seconds
    if day >= period:
        return always(settings, seed, clients)
    phases = period * generator(seed, "phases").random(clients)

    def at(now: float) -> tuple[NDArray[np.bool_], Times]:
        into = (now + phases) % period
        awake = into < day
        return awake, now + np.where(awake, day, period) - into

    return at


CELL_EVENTS = 8.0
"""How many events of a Poisson process are expected in the cell of time that is drawn at once."""
PAST_CELLS = 64
"""Cells before time 0. A process without an event in all of them has probability exp(-512)."""


def _around(seed: int, purpose: str, clients: int, mean_seconds: float, now: float) -> tuple[Times, Times]:
    """([clients], [clients]): the last event by `now` of a Poisson process of every client's own, and the next one after it.

    Cells of time have generators of their own, so that any time is reached without the events before it.
    """
    length = CELL_EVENTS * mean_seconds
    here = PAST_CELLS + int(now // length)

    def events(cell: int) -> Times:
        rng = generator(seed, purpose, cell)
        counts = rng.poisson(CELL_EVENTS, clients)
        times = (cell - PAST_CELLS + rng.random((clients, counts.max(initial=0)))) * length
        return np.where(np.arange(times.shape[1]) < counts[:, None], times, np.nan)

    times = events(here)
    last = np.where(times <= now, times, -np.inf).max(axis=1, initial=-np.inf)
    following = np.where(times > now, times, np.inf).min(axis=1, initial=np.inf)
    back = forth = here
    while back > 0 and np.isinf(last).any():
        back -= 1
        last = np.where(np.isinf(last), np.fmax.reduce(events(back), axis=1, initial=-np.inf), last)
    while np.isinf(following).any():
        forth += 1
        following = np.where(np.isinf(following), np.fmin.reduce(events(forth), axis=1, initial=np.inf), following)
    return last, following


def markov(settings: ClockSettings, seed: int, clients: int) -> Availability:
    """A two-state Markov chain in continuous time: awake for `mean_on_seconds` and asleep for `mean_off_seconds` on average, both
    exponential, stationary from time 0 on.

    Wake-up calls and calls to sleep come as independent Poisson processes of rates 1/off and 1/on; a call that finds the client in
    its state already changes nothing. So the state is the kind of the last call, exactly, and no chain has to be followed to it.
    """

    @lru_cache(maxsize=1)
    def at(now: float) -> tuple[NDArray[np.bool_], Times]:
        woken, wakes = _around(seed, "wake-ups", clients, settings.mean_off_seconds, now)
        slept, sleeps = _around(seed, "sleeps", clients, settings.mean_on_seconds, now)
        awake = woken > slept
        return awake, np.where(awake, sleeps, wakes)

    return at


TRACE_COLUMNS = ("client", "start_seconds", "end_seconds")


def _read_trace(path: Path, name: str) -> dict[str, NDArray[Any]]:
    try:
        table = pq.ParquetFile(BytesIO(read_whole(path))).read()
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{name}: not a Parquet file: {in_short(error)}") from None
    columns = {}
    for column in TRACE_COLUMNS:
        if column not in table.column_names:
            raise UserError(f"{name}: column {column!r} is missing{near_miss(column, table.column_names)}")
        if table.column_names.count(column) > 1:
            raise UserError(f"{name}: column {column!r} is there twice")
        kind = table.schema.field(column).type
        if not (pa.types.is_integer(kind) or (pa.types.is_floating(kind) and column != "client")):
            raise UserError(f"{name}: column {column!r} must hold {'integers' if column == 'client' else 'numbers'}, got {kind}")
        if table[column].null_count:
            row = table[column].combine_chunks().is_null().to_pylist().index(True)
            raise UserError(f"{name}: row {row}: {column} is empty")
        columns[column] = table[column].to_numpy()
    return columns


def _check_trace(columns: dict[str, NDArray[Any]], clients: int, name: str) -> None:
    """Raises UserError for the first row that breaks a rule, or the first client that has none."""
    client, start, end = (columns[column] for column in TRACE_COLUMNS)
    same = client[1:] == client[:-1]
    rules: tuple[tuple[str, int, NDArray[np.bool_]], ...] = (
        ("client must not be negative", 0, client < 0),
        ("start_seconds must be finite and not negative", 0, ~np.isfinite(start) | (start < 0)),
        ("end_seconds must be finite and after start_seconds", 0, ~np.isfinite(end) | (end <= start)),
        (
            "rows must be sorted by client, then by start_seconds",
            1,
            (client[1:] < client[:-1]) | (same & (start[1:] < start[:-1])),
        ),
        ("must start after the client's row before it has ended", 1, same & (start[1:] <= end[:-1])),
    )
    for rule, first, broken in rules:
        if broken.any():
            row = first + int(np.argmax(broken))
            raise UserError(f"{name}: row {row}: {rule}, got client {client[row]}, {start[row]:g} to {end[row]:g} s")
    missing = np.setdiff1d(np.arange(clients), client)
    if len(missing):
        raise UserError(
            f"{name}: client {missing[0]} is never available ({len(missing)} of {clients} clients have no row: 0 to {clients - 1} need one)"
        )


def trace(settings: ClockSettings, seed: int, clients: int) -> Availability:
    """What a Parquet file recorded: rows (client, start_seconds, end_seconds), sorted, the client awake from start to end.

    The whole trace repeats after its latest end, as FedScale (Lai et al. 2022) replays its devices'; clients from `clients` on are
    not used. Raises UserError for a file that breaks a rule.
    """
    name = f"clock.trace {settings.trace}"
    columns = _read_trace(Path(settings.trace or ""), name)
    _check_trace(columns, clients, name)
    client, start, end = (columns[column] for column in TRACE_COLUMNS)
    horizon, used = float(end.max()), client < clients
    starts, ends = start[used].astype(np.float64), end[used].astype(np.float64)
    edges = np.searchsorted(client[used], np.arange(clients + 1))
    first, count = edges[:-1], np.diff(edges)
    seamless = (starts[first] == 0) & (ends[edges[1:] - 1] == horizon)  # awake through the repetition

    def at(now: float) -> tuple[NDArray[np.bool_], Times]:
        into = now % horizon
        opened, closed = (np.add.reduceat(edge <= into, first, dtype=np.int64) for edge in (starts, ends))
        awake = opened > closed
        last = closed == count - 1
        sleeps = np.where(last & seamless, horizon + ends[first], ends[first + np.minimum(closed, count - 1)])
        wakes = np.where(opened == count, horizon + starts[first], starts[first + np.minimum(opened, count - 1)])
        changes = now - into + np.where(awake, sleeps, wakes)
        return awake, np.where(seamless & (count == 1), np.inf, changes)

    return at


AVAILABILITY: Table[Callable[[ClockSettings, int, int], Availability]] = Table(
    "availability", {"always": always, "periodic": periodic, "markov": markov, "trace": trace}
)
"""(settings, seed, clients) -> who is awake when."""
