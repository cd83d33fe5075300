"""Salience statistics that the server measures on its public examples."""

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.machine import trim_heap
from raffm_ray.models.architecture import build
from raffm_ray.models.objectives import objective_of
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.server.state import ServerState, parameters_of
from raffm_ray.subnetworks.calibration import Statistics, collect
from raffm_ray.subnetworks.norm_correction import norm_statistics


def public_statistics(prepared: Prepared, state: ServerState, statistic: str) -> Statistics:
    """The full model's statistics on the public part, for `salience.source: public`."""
    trim_heap()  # pieces that the last one left
    architecture, public = prepared.setup.architecture, prepared.task.public
    named = parameters_of(prepared.setup, state)
    model = build(architecture, {name: values.clone() for name, values in named.items()}, Plan())
    asked = [public.batch(slice(start, start + 32)) for start in range(0, len(public), 32)]
    objective = objective_of(architecture)
    found = {
        **collect(model, architecture.layout, asked, statistic, objective),
        **norm_statistics(model, architecture.layout, asked),
    }
    del model, named
    trim_heap()  # else the driver holds this peak besides that of its averages
    return found
