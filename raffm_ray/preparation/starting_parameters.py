"""The parameters that a run starts from: pretrained, trained on the public part, rotated if the experiment asks for it."""

from collections.abc import Callable

from torch import Tensor

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan
from raffm_ray.models.architecture import build
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.preparation.pretraining import Progress, pretrained
from raffm_ray.subnetworks.rotation import collect_moments, rotatable, rotate


def trained(prepared: Prepared, progress: Progress) -> Tensor:
    """The full model trained on the public part, flat. Raises UserError when that diverges or its cache cannot be written to."""
    experiment, source = prepared.setup.experiment, prepared.foundation.source
    public, settings = prepared.task.public, experiment.model.pretrain
    return pretrained(
        architecture=prepared.setup.architecture,
        source=source,
        public=public,
        settings=settings,
        seed=experiment.seed,
        progress=progress,
    )


def starting_parameters(prepared: Prepared, progress: Progress, note: Callable[[str], None]) -> Tensor:
    """The flat parameters before round 1; `note` is told what the user should know. Raises UserError as `trained`."""
    flat = trained(prepared, progress)
    if prepared.setup.experiment.salience.rotation == "none":
        return flat
    for kind, reason in rotatable(prepared.setup.architecture.layout).items():
        if reason:
            note(f"note: salience.rotation leaves {kind} as it is: {reason}")
    return rotated(prepared, flat)


def rotated(prepared: Prepared, flat: Tensor) -> Tensor:
    """The same function in the basis that `salience.rotation` asks for; the server calibrates it on its public examples."""
    architecture, settings, public = prepared.setup.architecture, prepared.setup.experiment.salience, prepared.task.public
    parameters, moments = views(flat, architecture.shapes), None
    if settings.rotation == "calibrated":
        model = build(architecture, {name: values.clone() for name, values in parameters.items()}, Plan())
        shown = min(settings.rotation_examples, len(public))
        asked = [public.batch(slice(start, min(start + 32, shown))) for start in range(0, shown, 32)]
        moments = collect_moments(model, architecture.layout, asked)
    return flatten(rotate(architecture.layout, parameters, moments), architecture.shapes)
