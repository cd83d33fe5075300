"""Chooses a round's clients, and remembers what came of them."""

from collections.abc import Sequence

import numpy as np

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.seeding import generator
from raffm_ray.clients.messages import Update
from raffm_ray.devices.round_costs import device_cost
from raffm_ray.server.clock import LateUpdate
from raffm_ray.server.plans.view import StrategyView
from raffm_ray.server.selection.known import Known
from raffm_ray.server.selection.records import Clients, Records, Values
from raffm_ray.server.selection.table import SELECTIONS
from raffm_ray.server.state import Round, ServerState, Setup
from raffm_ray.server.workload import expected_work


def _type_seconds(setup: Setup, view: StrategyView, nested: Sequence[Plan]) -> Values:
    """As `Known.type_seconds`."""
    extract = setup.strategy.deploy if setup.strategy.per_client else setup.strategy.train
    found, smaller = [], sorted(nested, key=lambda plan: setup.costs(plan).params)
    mean = max(1, round(float(setup.example_counts[setup.owners].mean())))
    for name, budget in setup.budgets.items():
        plan = extract(view, budget, -1) if name in setup.owners_by_device_type else None
        if plan is None:
            found.append(np.inf)
            continue
        costs = setup.costs(plan)
        inside = [one for one in smaller if setup.costs(one).params < costs.params]
        work = expected_work(setup, plan, inside, mean)
        found.append(device_cost(setup.devices[name], work, costs.bytes_up, costs.bytes_up).seconds)
    return np.array(found)


def choose_clients(
    setup: Setup, state: ServerState, able: Clients, wanted: int, training: tuple[StrategyView, Sequence[Plan]]
) -> list[int]:
    """The next round's clients, of those that are able, ascending. `training`: as of `training_view`. Raises UserError where a selection returns others.

    Pure: the same state gives the same clients.
    """
    experiment, number = setup.experiment, state.round + 1
    name = experiment.clients.selection.name
    known = Known(
        settings=experiment.clients.selection,
        round=number,
        able=able,
        examples=setup.example_counts,
        device_types=setup.device_type_numbers,
        names=tuple(setup.budgets),
        owners=setup.owners,
        expect=lambda: _type_seconds(setup, *training),
        records=state.records,
    )
    row = SELECTIONS.chosen(name, experiment.plugin_settings, "clients.selection")
    chosen = np.sort(np.asarray(row.choose(known, wanted, generator(experiment.seed, "clients", number))))
    count = min(wanted, len(able))
    there = chosen.shape == (count,) and np.array_equal(able[np.searchsorted(able, chosen).clip(max=len(able) - 1)], chosen)
    if not there or (np.diff(chosen) == 0).any():
        raise UserError(
            f"clients.selection {name!r}: round {number}: expected {count} of the clients that can be chosen, each once, got {chosen.tolist()[:20]}"
        )
    return [int(client) for client in chosen.tolist()]


def remembered(
    setup: Setup, state: ServerState, work: Round, updates: Sequence[Update], arrived: Sequence[LateUpdate]
) -> Records | None:
    """What is remembered after a round. `updates`: of the clients that were back in time; `arrived`: late ones that came in it. Nobody is heard of
    in a first calibration."""
    records = state.records
    if records is None or work.context.round == 0:
        return records
    seconds = {visit.job.client: visit.cost.seconds for visit in work.visits}
    reports = [report for update in updates for report in update.reports if not report.refused]
    heard = [(report.client, report.loss, seconds[report.client]) for report in reports]
    heard += [(one.visit.job.client, one.loss, one.visit.cost.seconds) for one in arrived]
    clients, losses, took = (np.array([one[at] for one in heard], dtype=np.float64) for at in range(3))
    return records.chosen(np.array(work.chosen, dtype=np.int64), work.context.round).heard(
        clients.astype(np.int64), losses, took, setup.example_counts
    )
