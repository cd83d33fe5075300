"""Which rows of the table of words clients' devices hold, and how much weight reads each.

Submodels of those rows alone are averaged over who reads a row, as in FedSubAvg (Ding et al. 2022, Federated submodel optimization for hot and
cold data features, algorithm 1): a word that few clients use moves as far as they say, not as far as their part of all clients.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.reach.own_words import OwnWords
from raffm_ray.server.strategies import Strategy
from raffm_ray.settings.experiment import Experiment


def against_own_words(experiment: Experiment, strategy: Strategy) -> Iterator[str]:
    """Why clients cannot have the rows of their own words alone, whatever the model."""
    told, update = "strategy.vocabulary: must be whole with", experiment.local.client_update
    if not CLIENT_UPDATES[update].stacks:
        yield f"{told} local.client_update {update!r}, which may keep or move rows that a client's texts do not read, got own"
    if experiment.strategy.personal:
        yield f"{told} strategy.personal, whose parameters clients keep whole, got own"
    if strategy.aggregation == "all_clients":
        yield f"{told} strategy.aggregation all_clients, whose divisor shrinks rows that few clients read, got own"


def has_own_words(experiment: Experiment, strategy: Strategy) -> bool:
    """Whether clients have the rows of their own words alone, if the model has a table of them."""
    return experiment.strategy.vocabulary == "own"


def word_weights(words: OwnWords | None, counted: Iterable[tuple[int, int, float]]) -> dict[int, Tensor] | None:
    """By plan, the weight of the clients that read each word, [words], float64; None where all have all. `counted`: (plan, client, weight)."""
    if words is None:
        return None
    found: dict[int, Tensor] = {}
    for plan, client, weight in counted:
        sums = found.setdefault(plan, torch.zeros(words.vocabulary, dtype=torch.float64))
        sums[torch.from_numpy(words.rows(client))] += weight
    return found
