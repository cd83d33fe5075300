"""The plan of every device type in round 1 and what a round costs it, without training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from raffm_ray.axes.flat_parameters import flatten
from raffm_ray.axes.indexing import Plan, dim_axes, kept_size
from raffm_ray.axes.layout import is_kept
from raffm_ray.basics.formatting import human_bytes
from raffm_ray.devices.round_costs import DeviceCost, device_cost
from raffm_ray.models.architecture import Architecture
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.preparation.pretraining import starting_model
from raffm_ray.server.device_type_plans import training_view
from raffm_ray.server.ranking import rank_again
from raffm_ray.server.state import ServerState, Setup, starting_state
from raffm_ray.server.workload import expected_work
from raffm_ray.settings.experiment import Experiment
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.costs import Costs
from raffm_ray.subnetworks.extraction import AXIS_KINDS, kind_of
from raffm_ray.subnetworks.salience import METRICS

STAND_IN = "l1"
"""The metric of the weights that ranks before there is a ranking."""


@dataclass(frozen=True)
class DeviceTypeRow:
    """A device type in round 1: the plan it trains and what that costs a client; both None where it takes no part."""

    name: str
    clients: int
    budget: str
    plan: Plan | None
    costs: Costs | None
    cost: DeviceCost | None


def provisional_ranking(prepared: Prepared) -> ServerState:
    """A state ranked by the weights before any training, by the experiment's own metric if that needs no statistics.

    A ranking decides which units stay and how a budget is divided; the cost of a plan hardly depends on it.
    """
    setup, experiment = prepared.setup, prepared.setup.experiment
    model = starting_model(setup.architecture, prepared.foundation.source, experiment.model_seed)
    state = starting_state(setup, flatten(dict(model.named_parameters()), setup.architecture.shapes))
    return rank_again(replace(setup, experiment=_ranked_by(experiment, provisional_metric(experiment))), state, None)


def provisional_metric(experiment: Experiment) -> str:
    """The metric of `provisional_ranking`."""
    own = experiment.salience.metric
    return own if METRICS[own].statistic is None else STAND_IN


def _ranked_by(experiment: Experiment, metric: str) -> Experiment:
    return experiment.model_copy(update={"salience": experiment.salience.model_copy(update={"metric": metric})})


def device_type_rows(setup: Setup, state: ServerState, examples: int) -> list[DeviceTypeRow]:
    """Every device type of the fleet, weakest first, with the costs of a round for a client that owns `examples`, and holds what is frozen."""
    view, nested = training_view(setup, state, 1)
    rows = []
    for name, budget in setup.budgets.items():
        clients = [client for client, one in enumerate(setup.device_types) if one == name]
        plan = setup.strategy.train(view, budget, clients[0] if clients else -1)
        costs, cost = None, None
        if plan is not None:
            costs = view.costs(plan)
            smaller = sorted(
                {one for one in nested if setup.costs(one).params < costs.params},
                key=lambda one: setup.costs(one).params,
            )
            work = expected_work(setup, plan, smaller, examples)
            down = costs.bytes_up if setup.experiment.fleet.keeps_frozen else costs.bytes
            cost = device_cost(setup.devices[name], work, down, costs.bytes_up)
        rows.append(
            DeviceTypeRow(
                name=name,
                clients=len(clients),
                budget=budget_in_words(budget, setup.costs(Plan())),
                plan=plan,
                costs=costs,
                cost=cost,
            )
        )
    return rows


def budget_in_words(budget: Budget, full: Costs) -> str:
    """`params <= 50,000 (25%)`: of the full model, by line."""
    lines = []
    for name, limit in vars(budget).items():
        if limit is not None:
            shown = human_bytes(limit) if name.endswith("bytes") else f"{limit:,.0f}"
            share = limit / getattr(full, name)
            lines.append(f"{name} <= {shown}" + (f" ({share:.0%})" if share <= 1 else " (all fits)"))
    return "\n".join(lines) or "none"


def widths(architecture: Architecture, plan: Plan) -> dict[str, str]:
    """How much a plan keeps of every axis, by kind, in the order of layers: `4x3 2` is 4 in three layers and 2 in the next."""
    layout = architecture.layout
    owners: dict[str, set[object]] = {name: set() for name in layout.axes}
    layers = {}
    for spec in layout.parameters.values():
        for name in {name for dim in spec.dims for name in dim_axes(dim)}:
            owners[name].add(spec.layer)
            layers[name] = spec.layer
    kept: dict[str, list[int]] = {}
    for name in layout.axes:
        dropped = len(owners[name]) == 1 and not is_kept(layers[name], plan)
        if not dropped and (name in layout.layer_axes or kind_of(name) in AXIS_KINDS):
            kept.setdefault(kind_of(name), []).append(kept_size(name, layout.axes, plan))
    return {kind: in_runs(sizes) for kind, sizes in kept.items()}


def in_runs(sizes: Sequence[int]) -> str:
    """`[4, 4, 4, 2]` -> `4x3 2`; one number where all are equal."""
    runs = [(size, len(list(group))) for size, group in groupby(sizes)]
    return str(sizes[0]) if len(runs) == 1 else " ".join(f"{size}x{count}" if count > 1 else str(size) for size, count in runs)
