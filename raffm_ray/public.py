"""What the server measures on its own public examples."""

from raffm_ray.architectures import build
from raffm_ray.axes import Plan
from raffm_ray.calibration import Statistics, collect
from raffm_ray.messages import views
from raffm_ray.norms import norm_statistics
from raffm_ray.objectives import OBJECTIVES
from raffm_ray.prepare import Prepared
from raffm_ray.state import ServerState


def public_statistics(prepared: Prepared, state: ServerState, statistic: str) -> Statistics:
    """The full model's statistics on the public part, for `salience.source: public`."""
    architecture, public = prepared.setup.architecture, prepared.task.public
    model = build(
        architecture, {name: values.clone() for name, values in views(state.parameters, architecture.shapes).items()}, Plan()
    )
    asked = [public.batch(slice(start, start + 32)) for start in range(0, len(public), 32)]
    objective = OBJECTIVES[architecture.head]
    return {
        **collect(model, architecture.layout, asked, statistic, objective),
        **norm_statistics(model, architecture.layout, asked),
    }
