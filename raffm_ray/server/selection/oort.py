"""Oort (Lai et al. 2021, arXiv 2010.06081, algorithm 1): clients that are worth most, of what they teach and how fast they are.

It deviates where the server has less, or the published code does otherwise: a client's statistical utility is its examples x its mean loss
(the paper has the root of its mean squared loss, which no client of this project reports); utilities are scaled to [0, 1] before the
bonus for waiting is added, as FedScale's code does, since the paper's sum compares losses with a number near 0; nobody is
barred after many rounds.
"""

import numpy as np

from raffm_ray.server.selection.draws import drawn_by_weight
from raffm_ray.server.selection.known import Known
from raffm_ray.server.selection.records import Clients, Values
from raffm_ray.settings.clients import SelectionSettings

CAP = 0.95
"""The quantile of utilities that none is counted beyond (section 4.4: robust exploitation under outliers)."""
CUT_OFF = 0.95
"""c: clients count as of the best with at least so much of the utility of the last of them."""
WAITING = 0.1
"""Of the bonus of clients that were not chosen for long."""


def exploration_of(settings: SelectionSettings, round_number: int) -> float:
    """The part of a round, from 1, that goes to clients whose loss is not known."""
    return max(settings.least_exploration, settings.exploration * settings.exploration_decay ** (round_number - 1))


def percentile_of(settings: SelectionSettings, gained: Values) -> float:
    """The percentile that the preferred time is: the pacer's. It grows by a step after every window of rounds that gained less than the one before."""
    windows = gained[: len(gained) // settings.pacer_rounds * settings.pacer_rounds].reshape(-1, settings.pacer_rounds).sum(1)
    falls = int((np.diff(windows) < 0).sum())
    return min(100.0, settings.preferred_percentile + falls * settings.pacer_step)


def utilities(known: Known, clients: Clients) -> Values:
    """[clients]: the utility of clients whose loss is known, one or more."""
    records, settings = known.remembered, known.settings
    gain = known.examples[clients] * records.loss[clients]
    gain = np.minimum(gain, np.quantile(gain, CAP, method="lower"))
    spread = float(np.ptp(gain))
    scaled = (gain - gain.min()) / spread if spread else np.ones(len(gain))
    scaled += np.sqrt(WAITING * np.log(known.round) / records.last_round[clients])
    seconds: Values = records.seconds[clients]
    preferred = np.quantile(seconds, percentile_of(settings, records.gained) / 100, method="lower")
    slowed: Values = np.where(seconds > preferred, preferred / seconds, 1.0)
    worth: Values = scaled * slowed**settings.slowness
    return worth


def oort(known: Known, wanted: int, rng: np.random.Generator) -> Clients:
    """Some whose last loss, examples and speed promise most, and some that were never heard of, the faster device types first (Lai et al. 2021).

    Both are draws: of the best, in proportion to utility; of the unknown, to the speed that is expected of their device type.
    """
    heard = ~np.isnan(known.remembered.loss[known.able])
    explored, unknown = known.able[heard], known.able[~heard]
    wanted = min(wanted, len(known.able))
    fresh = min(len(unknown), int(exploration_of(known.settings, known.round) * wanted))
    known_count = min(len(explored), wanted - fresh)
    fresh = wanted - known_count
    chosen = [np.empty(0, dtype=np.int64)]
    if known_count:
        worth = utilities(known, explored)
        last = np.partition(worth, len(worth) - known_count)[len(worth) - known_count]
        best = worth >= CUT_OFF * last
        chosen.append(explored[best][drawn_by_weight(worth[best], known_count, rng)])
    if fresh:
        chosen.append(unknown[drawn_by_weight(1 / known.type_seconds[known.device_types[unknown]], fresh, rng)])
    return np.concatenate(chosen)
