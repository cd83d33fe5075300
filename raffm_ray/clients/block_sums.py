"""The sum of a block's updates, flat, of the full model's trained parameters, and what each client counts in it.

A client may count by its loss F at the parameters that it received, as in q-FedAvg (Li et al. 2020, arXiv 1905.10497, algorithm 2). With
p the weight of a client, c its change and L = 1 / learning rate, that algorithm's step is

    w + sum p F^q c / sum p (F^q + q F^(q-1) L ||c||^2),

its Delta and h divided by L. So a change counts p F^q in the sum, and what it covers the weight in the divisor: entry by entry, over
the clients that trained an entry, the rule `coverage` is the algorithm. With q = 0 both are p, as in FedAvg.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan, Selections, scatter_add_selected, selected_shape, take_selected
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.folds.products import START, Products, add, compressed, norm_of, of_client
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.clients.module_factory import ModuleFactory
from raffm_ray.clients.training_result import TrainingResult
from raffm_ray.models.adapters.lora import factors
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.norm_correction import norm_factors, undo_correction

LEAST_LOSS = 1e-10
"""A loss of 0 has no negative power; the paper's code adds as much."""


def change_weight(context: RoundContext, weight: float, loss: float | None) -> float:
    """What a client's change counts in the sum. `weight`: its job's; `loss`: at the parameters that it received, where that is asked for."""
    return weight if loss is None else weight * max(loss, LEAST_LOSS) ** context.fair_exponent


def fair_weights(context: RoundContext, weight: float, loss: float | None, change: Tensor) -> tuple[float, float]:
    """What a client's change counts in the sum, and in the divisor. `change`: flat, of its plan's parameters."""
    counts, q = change_weight(context, weight, loss), context.fair_exponent
    if not q or loss is None:
        return counts, weight
    squares = float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
    return counts, counts + weight * q * max(loss, LEAST_LOSS) ** (q - 1) * squares / context.learning_rate


@dataclass
class BlockSums:
    """What the clients of a block add up to. By plan: `changes`: flat weighted sums of changes, `variates`: of changes of the server's control
    variate, `weights`: that they carry; by client, `states`: what it keeps, `covers`: the weight that it carries; `products`: of adapters."""

    changes: dict[int, Tensor] = field(default_factory=dict)
    variates: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    states: dict[int, ClientState] = field(default_factory=dict)
    products: Products = field(default_factory=lambda: START)
    covers: dict[int, float] = field(default_factory=dict)

    def add(
        self,
        job: Job,
        trained: TrainingResult,
        received_loss: float | None,
        context: RoundContext,
        parameters: Mapping[str, Tensor],
        factory: ModuleFactory,
    ) -> None:
        """Adds what came of a client's training, whose memory is taken for the sum. `parameters`: by name, those of the round."""
        assert job.plan is not None
        counts, covers = fair_weights(context, job.weight, received_loss, trained.change)
        if context.products or context.product_norms:
            own = _products(trained.change, context.plans[job.plan], parameters, factory, counts)
            if context.product_norms:
                counts = covers = norm_of(own)
                own = {name: one._replace(weights=torch.full_like(one.weights, counts)) for name, one in own.items()}
            if context.products:
                together = add(self.products, own)
                self.products = together if context.products == "by_rank" else compressed(together)
        _add_weighted(self.changes, job.plan, trained.change, counts)
        self.weights[job.plan] = self.weights.get(job.plan, 0.0) + covers
        self.covers[job.client] = covers
        if trained.variate is not None:
            _add_weighted(self.variates, job.plan, trained.variate, job.weight)
        if trained.state is not None:
            self.states[job.client] = trained.state


def _add_weighted(sums: dict[int, Tensor], plan: int, change: Tensor, weight: float) -> None:
    sums[plan] = sums[plan].add_(change, alpha=weight) if plan in sums else change.mul_(weight)


def add_updates(
    total: Tensor, sums: Mapping[int, Tensor], context: RoundContext, architecture: Architecture, factory: ModuleFactory
) -> None:
    """Adds the weighted sums of updates to `total`, in place, in the order of their plans, with corrections of norms undone.

    `sums`: number of a plan -> flat, in the order of its trained parameters; `total`: flat, of the full model's trained parameters and their copies.
    """
    for number, summed in sorted(sums.items()):
        named = views(total, architecture.trained_shapes, context.size_specific, context.copy_of(number))
        changes = _named(summed, context.plans[number], architecture, factory)
        undo_correction(changes, norm_factors(context.plans[number], architecture.layout, context.norms))
        _add(named, changes, factory.selections(context.plans[number]))


def add_variates(
    total: Tensor, sums: Mapping[int, Tensor], context: RoundContext, architecture: Architecture, factory: ModuleFactory
) -> None:
    """Adds the weighted sums of changes of the control variate to `total`, in place, in the order of their plans. They are of parameters as modules
    have them, so norms stay as they are. `sums`, `total`: as of `add_updates`, without copies."""
    for number, summed in sorted(sums.items()):
        named, plan = views(total, architecture.trained_shapes), context.plans[number]
        _add(named, _named(summed, plan, architecture, factory), factory.selections(plan))


def _products(change: Tensor, plan: Plan, parameters: Mapping[str, Tensor], factory: ModuleFactory, weight: float) -> Products:
    """Of one client's adapters as it sends them."""
    architecture, chosen = factory.architecture, factory.selections(plan)
    assert architecture.adapters is not None
    moved = _named(change, plan, architecture, factory)
    adapted = [name for name in moved if architecture.layout.parameters[name].adapts]
    sent = {name: take_selected(parameters[name], chosen[name]) + moved[name] for name in adapted}
    for module in architecture.adapters.modules:  # one of two that is frozen is as it was given
        for name in factors(module):
            if name in chosen and name not in sent:
                sent[name] = take_selected(parameters[name], chosen[name])
    return of_client(sent, chosen, architecture.shapes, architecture.adapters, weight)


def _named(summed: Tensor, plan: Plan, architecture: Architecture, factory: ModuleFactory) -> dict[str, Tensor]:
    """A flat sum of a plan's trained parameters by name."""
    shapes, chosen = architecture.trained_shapes, factory.selections(plan)
    return views(summed, {name: selected_shape(shapes[name], selected) for name, selected in chosen.items() if name in shapes})


def _add(named: Mapping[str, Tensor], changes: Mapping[str, Tensor], chosen: Selections) -> None:
    for name, values in changes.items():
        scatter_add_selected(named[name], values, chosen[name])
