"""The virtual clock: when a round ends, which updates arrived by then, and the weight of late updates. Pure functions."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.axes.indexing import Plan
from raffm_ray.clients.messages import Job, Report
from raffm_ray.devices.round_costs import DeviceCost
from raffm_ray.settings.experiment import ClockSettings

Times = NDArray[np.float64]


def close_round(needs: Times, stops: Times, wanted: int, deadline_seconds: float) -> tuple[float, NDArray[np.bool_]]:
    """(when the round ends, [clients] whose updates have arrived by then), in seconds from its start.

    `needs`: [clients], how long each takes; `stops`: [clients], when it would drop out (infinity for never). The round ends as soon
    as `wanted` updates are there (over-selection: Bonawitz et al. 2019, who draw 130% of them), when nobody is left who could send
    one (a lost connection is noticed at once), or at the deadline. Who arrives at the same time is taken in client order.
    """
    arrives = needs <= stops
    order = np.argsort(np.where(arrives, needs, np.inf), kind="stable")[: min(wanted, int(arrives.sum()))]
    enough = len(order) == wanted
    end = needs[order].max(initial=0.0) if enough else np.minimum(needs, stops).max(initial=0.0)
    end = min(float(end), deadline_seconds)
    arrived = np.zeros(len(needs), dtype=bool)
    arrived[order] = True
    return end, arrived & (needs <= end)


def drop(settings: ClockSettings, rounds_late: int) -> float:
    """Nothing that comes after its round's end counts."""
    return 0.0


def accept(settings: ClockSettings, rounds_late: int) -> float:
    """(1 + s)^-a for an update s rounds late (FedAsync's polynomial staleness: Xie et al. 2019), 0 beyond `late_rounds`.

    FedAsync weighs a whole update against the model by it; here, it weighs a client against the others of the round.
    """
    return float((1 + rounds_late) ** -settings.staleness) if rounds_late <= settings.late_rounds else 0.0


LATE_POLICIES: dict[str, Callable[[ClockSettings, int], float]] = {"drop": drop, "accept": accept}
"""(settings, rounds late) -> by how much an update's weight is multiplied; 0: nobody waits for it."""


OUTCOMES = ("used", "stale", "late", "dropped")
"""Of a client's round: its update was used; is used late; came too late, so it was told to stop; the client dropped out."""


@dataclass(frozen=True)
class Visit:
    """One client in one round, known before anybody trains. `report`: what it will say, but for its loss; `cost`: what its device
    has spent when it is done or stopped."""

    job: Job
    report: Report
    cost: DeviceCost
    outcome: str

    @property
    def wasted(self) -> bool:
        """Whether nobody ever uses what it did."""
        return self.outcome in ("late", "dropped")


@dataclass(frozen=True)
class LateUpdate:
    """An update on its way, of the parameters of `round`. `summed`: [parameters], flat, its weight times its change: one such array
    for every update on its way is the server's memory for them. `copy`: which one of the size-specific parameters its plan used; `loss`: as its client reported it."""

    round: int
    arrival_seconds: float
    visit: Visit
    plan: Plan
    weight: float
    summed: Tensor
    copy: int = 0
    loss: float = float("nan")


@dataclass(frozen=True)
class VirtualClock:
    """Virtual time since the run's start, the updates that are on their way, and what was spent on updates that were never used."""

    seconds: float = 0.0
    late: tuple[LateUpdate, ...] = ()
    wasted_bytes: int = 0
    wasted_joules: float = 0.0


def sort_late_updates(
    settings: ClockSettings, late: tuple[LateUpdate, ...], number: int, end_seconds: float
) -> tuple[list[tuple[LateUpdate, float]], tuple[LateUpdate, ...], list[LateUpdate]]:
    """Sorts the updates on their way at the end of a round: (those that arrived, with the factors of their weights), those still
    waited for, and those that nobody waits for any longer."""
    policy = LATE_POLICIES[settings.late]
    arrived = [(one, policy(settings, number - one.round)) for one in late if one.arrival_seconds <= end_seconds]
    rest = [one for one in late if one.arrival_seconds > end_seconds]
    waiting = tuple(one for one in rest if policy(settings, number + 1 - one.round) > 0)
    return arrived, waiting, [one for one in rest if policy(settings, number + 1 - one.round) <= 0]
