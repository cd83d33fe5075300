"""What the server remembers of every client from round to round. It is part of the server's state, of those runs whose selection reads it."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Numbers = NDArray[np.int32]
Clients = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """All arrays are [clients], but for `gained`.

    `loss`: as last reported, the mean over a round's steps, NaN before; `seconds`: simulated, of the last round that it finished, NaN before; `last_round`: the last in
    which it was chosen, 0 before; `times`: how often it was; `gained`: [rounds], the sum of examples x loss over those heard of in each.
    """

    loss: Values
    seconds: Values
    last_round: Numbers
    times: Numbers
    gained: Values

    def chosen(self, clients: Clients, round_number: int) -> "Records":
        """The same once these clients were chosen for a round."""
        last_round, times = self.last_round.copy(), self.times.copy()
        last_round[clients] = round_number
        times[clients] += 1
        return replace(self, last_round=last_round, times=times)

    def heard(self, clients: Clients, losses: Values, seconds: Values, examples: Clients) -> "Records":
        """The same after a round in which these clients reported these losses. A loss that is not finite is not remembered."""
        finite = np.isfinite(losses)
        clients, losses, seconds = clients[finite], losses[finite], seconds[finite]
        loss, took = self.loss.copy(), self.seconds.copy()
        loss[clients], took[clients] = losses, seconds
        gained = np.append(self.gained, (examples[clients] * losses).sum())
        return replace(self, loss=loss, seconds=took, gained=gained)


def no_records(clients: int) -> Records:
    """Those of so many clients before round 1."""
    return Records(
        loss=np.full(clients, np.nan),
        seconds=np.full(clients, np.nan),
        last_round=np.zeros(clients, dtype=np.int32),
        times=np.zeros(clients, dtype=np.int32),
        gained=np.empty(0),
    )
