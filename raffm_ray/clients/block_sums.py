"""The sum of a block's updates, flat, of the full model's trained parameters."""

from collections.abc import Mapping

from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import scatter_add_selected, selected_shape
from raffm_ray.clients.messages import RoundContext
from raffm_ray.clients.module_factory import ModuleFactory
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.norm_correction import norm_factors, undo_correction


def add_updates(
    total: Tensor, sums: Mapping[int, Tensor], context: RoundContext, architecture: Architecture, factory: ModuleFactory
) -> None:
    """Adds the weighted sums of updates to `total`, in place, in the order of their plans, with corrections of norms undone.

    `sums`: number of a plan -> flat, in the order of its trained parameters; `total`: flat, of the full model's trained parameters and their copies.
    """
    layout = architecture.layout
    for number, summed in sorted(sums.items()):
        named = views(total, architecture.trained_shapes, context.size_specific, context.copy_of(number))
        chosen = factory.selections(context.plans[number])
        shapes = {
            name: selected_shape(architecture.shapes[name], selected)
            for name, selected in chosen.items()
            if name in architecture.trained_shapes
        }
        changes = views(summed, shapes)
        undo_correction(changes, norm_factors(context.plans[number], layout, context.norms))
        for name, values in changes.items():
            scatter_add_selected(named[name], values, chosen[name])
