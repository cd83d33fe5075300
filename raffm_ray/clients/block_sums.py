"""The sum of a block's updates, flat, of the full model's trained parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan, Selections, scatter_add_selected, selected_shape
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.clients.module_factory import ModuleFactory
from raffm_ray.clients.training_result import TrainingResult
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.norm_correction import norm_factors, undo_correction


@dataclass
class BlockSums:
    """What the clients of a block add up to. By plan: `changes`: flat weighted sums of changes, `variates`: of changes of the server's control
    variate, `weights`: that they carry; `states`: by client, what it keeps."""

    changes: dict[int, Tensor] = field(default_factory=dict)
    variates: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    states: dict[int, ClientState] = field(default_factory=dict)

    def add(self, job: Job, trained: TrainingResult) -> None:
        """Adds what came of a client's training, whose memory is taken for the sum."""
        assert job.plan is not None
        _add_weighted(self.changes, job.plan, trained.change, job.weight)
        self.weights[job.plan] = self.weights.get(job.plan, 0.0) + job.weight
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


def _named(summed: Tensor, plan: Plan, architecture: Architecture, factory: ModuleFactory) -> dict[str, Tensor]:
    """A flat sum of a plan's trained parameters by name."""
    shapes, chosen = architecture.trained_shapes, factory.selections(plan)
    return views(summed, {name: selected_shape(shapes[name], selected) for name, selected in chosen.items() if name in shapes})


def _add(named: Mapping[str, Tensor], changes: Mapping[str, Tensor], chosen: Selections) -> None:
    for name, values in changes.items():
        scatter_add_selected(named[name], values, chosen[name])
