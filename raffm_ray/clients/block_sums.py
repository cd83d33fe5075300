"""The sum of a block's updates, flat, of the trained parameters that it can reach, and what each client counts in it.

A client may count by its loss F at the parameters that it received, as in q-FedAvg (Li et al. 2020, arXiv 1905.10497, algorithm 2). With
p the weight of a client, c its change and L = 1 / learning rate, that algorithm's step is

    w + sum p F^q c / sum p (F^q + q F^(q-1) L ||c||^2),

its Delta and h divided by L. So a change counts p F^q in the sum, and what it covers the weight in the divisor: entry by entry, over
the clients that trained an entry, the rule `coverage` is the algorithm. With q = 0 both are p, as in FedAvg.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Indices, Plan, Selections, scatter_add_selected, selected_shape, take_selected
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.folds.products import START, Products, add, compressed, norm_of, of_client
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.clients.module_factory import ModuleFactory
from raffm_ray.clients.reach.block_reach import Reach
from raffm_ray.clients.training_result import TrainingResult
from raffm_ray.models.adapters.lora import factors
from raffm_ray.models.word_rows import word_table
from raffm_ray.subnetworks.norm_correction import norm_factors, undo_correction

LEAST_LOSS = 1e-10
"""A loss of 0 has no negative power; the paper's code adds as much."""


def change_weight(context: RoundContext, weight: float, loss: float | None) -> float:
    """What a client's change counts in the sum. `weight`: its job's; `loss`: at the parameters that it received, where that is asked for."""
    return weight if loss is None else weight * max(loss, LEAST_LOSS) ** context.fair_exponent


def sum_weight(
    context: RoundContext,
    job: Job,
    change: Tensor,
    loss: float | None,
    parameters: Mapping[str, Tensor],
    factory: ModuleFactory,
) -> float:
    """What a client's change counts in the sum: `change_weight`, or where products weigh the norm of its own. `change`, `loss`: as of `fair_weights`;
    `parameters`: by name, those of the round."""
    assert job.plan is not None
    if not context.product_norms:
        return change_weight(context, job.weight, loss)
    return norm_of(_products(change, context.plans[job.plan], parameters, factory, 1.0))


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
    variate, `weights`: that they carry; by client, `states`: what it keeps, `covers`: the weight that it carries; `products`: of adapters. `reach`: what the sum holds."""

    factory: ModuleFactory
    reach: Reach
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
    ) -> None:
        """Adds what came of a client's training, whose memory is taken for the sum. `parameters`: by name, those of the round."""
        assert job.plan is not None
        counts, covers = fair_weights(context, job.weight, received_loss, trained.change)
        if context.products or context.product_norms:
            own = _products(trained.change, context.plans[job.plan], parameters, self.factory, counts)
            if context.product_norms:
                counts = covers = norm_of(own)
                own = {name: one._replace(weights=torch.full_like(one.weights, counts)) for name, one in own.items()}
            if context.products:
                together = add(self.products, own)
                self.products = together if context.products == "by_rank" else compressed(together)
        if trained.words is None:
            _add_weighted(self.changes, job.plan, trained.change, counts)
        else:
            self._add_words(job.plan, context.plans[job.plan], trained.change, trained.words, counts)
        self.weights[job.plan] = self.weights.get(job.plan, 0.0) + covers
        self.covers[job.client] = covers
        if trained.variate is not None:
            _add_weighted(self.variates, job.plan, trained.variate, job.weight)
        if trained.state is not None:
            self.states[job.client] = trained.state

    def _add_words(self, number: int, plan: Plan, change: Tensor, words: Indices, weight: float) -> None:
        """Adds a change that has these rows of the table of words alone to a sum that has those of the block."""
        shapes, table = self.shapes_of(plan), str(word_table(self.factory.architecture))
        if number not in self.changes:
            self.changes[number] = change.new_zeros(sum(map(prod, shapes.values())))
        total, (rows, *width) = self.changes[number], shapes[table]
        before = sum(prod(shapes[name]) for name in list(shapes)[: list(shapes).index(table)])
        size, own = prod(width), before + len(words) * prod(width)
        total[:before].add_(change[:before], alpha=weight)
        total[before + rows * size :].add_(change[own:], alpha=weight)
        places = torch.from_numpy(words if self.reach.words is None else np.searchsorted(self.reach.words, words)).to(
            total.device
        )
        there = total[before : before + rows * size].view(rows, size)
        read = there.index_select(0, places).add_(change[before:own].view(-1, size), alpha=weight)
        there.index_copy_(0, places, read)

    def shapes_of(self, plan: Plan) -> dict[str, tuple[int, ...]]:
        """Of a plan's trained parameters, the table of words with the rows of the block."""
        shapes, chosen, words = self.factory.architecture.trained_shapes, self.factory.selections(plan), self.reach.words
        found = {name: selected_shape(shapes[name], selected) for name, selected in chosen.items() if name in shapes}
        if words is not None and (table := word_table(self.factory.architecture)):
            found[table] = (len(words), *found[table][1:])
        return found

    def total(self, length: int, context: RoundContext) -> Tensor:
        """The sum of the block, flat, as its reach has it. `length`: of the round's array.

        Weighted sums of updates are added in the order of their plans, with corrections of norms undone; those of changes of the control variate
        are of parameters as modules have them, so norms stay as they are.
        """
        variate = CLIENT_UPDATES[context.local.client_update].variate
        model, copies, behind = self.reach.lengths(length, variate)
        total = torch.zeros(model + copies + behind, device=self.factory.device)
        for number, summed in sorted(self.changes.items()):
            plan, copy = context.plans[number], context.copy_of(number)
            chosen, named = self._within(plan), views(total, self.reach.shapes)
            if copy:
                full = {name: self.factory.architecture.shapes[name] for name in context.size_specific}
                named |= views(total[model + (copy - 1) * sum(map(prod, full.values())) :], full)
                chosen = {**chosen, **{name: one for name, one in self.factory.selections(plan).items() if name in full}}
            changes = views(summed, self.shapes_of(plan))
            undo_correction(changes, norm_factors(plan, self.factory.architecture.layout, context.norms))
            _add(named, changes, chosen)
        for number, summed in sorted(self.variates.items()):
            plan = context.plans[number]
            _add(views(total[model + copies :], self.reach.shapes), views(summed, self.shapes_of(plan)), self._within(plan))
        return total

    def _within(self, plan: Plan) -> Selections:
        """What a plan keeps of every parameter that the sum has."""
        outer = self.reach.plan
        if outer == plan:
            return {name: (None,) * len(shape) for name, shape in self.reach.shapes.items()}
        return self.factory.selections_within(plan, outer) if outer else self.factory.selections(plan)


def _add_weighted(sums: dict[int, Tensor], plan: int, change: Tensor, weight: float) -> None:
    sums[plan] = sums[plan].add_(change, alpha=weight) if plan in sums else change.mul_(weight)


def _products(change: Tensor, plan: Plan, parameters: Mapping[str, Tensor], factory: ModuleFactory, weight: float) -> Products:
    """Of one client's adapters as it sends them."""
    adapters, chosen = factory.asked.adapters, factory.selections(plan)
    architecture = factory.architecture
    assert adapters is not None
    moved = _named(change, plan, factory)
    adapted = [name for name in moved if architecture.layout.parameters[name].adapts]
    sent = {name: take_selected(parameters[name], chosen[name]) + moved[name] for name in adapted}
    for module in adapters.modules:  # one of two that is frozen is as it was given
        for name in factors(module):
            if name in chosen and name not in sent:
                sent[name] = take_selected(parameters[name], chosen[name])
    return of_client(sent, chosen, architecture.shapes, adapters, weight)


def _named(summed: Tensor, plan: Plan, factory: ModuleFactory) -> dict[str, Tensor]:
    """A flat change of a plan's trained parameters by name."""
    shapes, chosen = factory.architecture.trained_shapes, factory.selections(plan)
    return views(summed, {name: selected_shape(shapes[name], selected) for name, selected in chosen.items() if name in shapes})


def _add(named: Mapping[str, Tensor], changes: Mapping[str, Tensor], chosen: Selections) -> None:
    for name, values in changes.items():
        scatter_add_selected(named[name], values, chosen[name])
