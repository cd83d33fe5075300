"""Who is chosen for a round: one function and one row of `SELECTIONS` each. Pure functions of arrays; nothing is drawn but from the generator."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raffm_ray.basics.errors import look_up
from raffm_ray.basics.registry import Table
from raffm_ray.server.selection.draws import divided, drawn_by_weight, lowest
from raffm_ray.server.selection.known import Known
from raffm_ray.server.selection.oort import oort
from raffm_ray.server.selection.records import Clients, Records, no_records
from raffm_ray.settings.experiment import Experiment


@dataclass(frozen=True)
class Selection:
    """A row of `SELECTIONS`. `choose(known, wanted, rng)`: `wanted` of `known.able`, or all where they are fewer, each once, in any order; `records`: whether the
    server keeps `known.records` for it."""

    choose: Callable[[Known, int, np.random.Generator], Clients]
    records: bool = False


def uniform(known: Known, wanted: int, rng: np.random.Generator) -> Clients:
    """Every client with the same probability (McMahan et al. 2017, algorithm 1)."""
    return rng.choice(known.able, size=min(wanted, len(known.able)), replace=False)


def by_examples(known: Known, wanted: int, rng: np.random.Generator) -> Clients:
    """With a probability in proportion to its number of examples (scheme I of Li et al. 2020, arXiv 1907.02189, without replacement).

    The mean over examples is then that of clients of equal weight: `strategy.client_weight: equal` belongs to it.
    """
    return known.able[drawn_by_weight(known.examples[known.able].astype(np.float64), wanted, rng)]


def stratified(known: Known, wanted: int, rng: np.random.Generator) -> Clients:
    """Of every device type its part of the round, by `shares`; within a type, every client with the same probability.

    A part that is no whole number is rounded at random, so that it is exact on average; what a type has too few clients for goes to the others.
    """
    types = known.device_types[known.able]
    capacity = np.bincount(types, minlength=len(known.names))
    fleet = np.bincount(known.device_types[known.owners], minlength=len(known.names)).astype(np.float64)
    shares = fleet if known.settings.shares == "fleet" else (fleet > 0).astype(np.float64)
    counts = divided(shares, capacity, min(wanted, len(known.able)), rng)
    drawn = [
        rng.choice(known.able[types == number], size=count, replace=False)
        for number, count in enumerate(counts.tolist())
        if count
    ]
    return np.concatenate(drawn)


def round_robin(known: Known, wanted: int, rng: np.random.Generator) -> Clients:
    """Whose turn is longest ago, in the order of clients: everybody once before anybody twice, where everybody is available."""
    return known.able[lowest(known.remembered.last_round[known.able].astype(np.float64), wanted)]


def power_of_choice(known: Known, wanted: int, rng: np.random.Generator) -> Clients:
    """Of `candidates` that are drawn with a probability in proportion to their examples, those with the largest losses.

    Cho et al. 2020 (arXiv 2010.01243), section 3, in the form that asks clients for nothing more than they send anyway (rpow-d): the loss is
    the mean of a client's last round, infinity before its first. Of equal losses, which one counts is random.
    """
    d = max(known.settings.candidates or 2 * wanted, wanted)
    drawn = rng.permutation(known.able[drawn_by_weight(known.examples[known.able].astype(np.float64), d, rng)])
    losses = known.remembered.loss[drawn]
    return drawn[lowest(np.where(np.isnan(losses), -np.inf, -losses), wanted)]


SELECTIONS: Table[Selection] = Table(
    "selection",
    {
        "uniform": Selection(uniform),
        "by_examples": Selection(by_examples),
        "stratified": Selection(stratified),
        "round_robin": Selection(round_robin, records=True),
        "power_of_choice": Selection(power_of_choice, records=True),
        "oort": Selection(oort, records=True),
    },
)


def check_selection(experiment: Experiment) -> None:
    """Raises UserError for a selection that is not known."""
    look_up(SELECTIONS, experiment.clients.selection.name, "clients.selection")


def first_records(experiment: Experiment) -> Records | None:
    """What is remembered before round 1; None where the experiment's selection remembers nothing."""
    row = SELECTIONS.chosen(experiment.clients.selection.name, experiment.plugin_settings, "clients.selection")
    return no_records(experiment.clients.count) if row.records else None
