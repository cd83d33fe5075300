"""The parameters that a run starts from: pretrained, trained on the public part, rotated if the experiment asks for it."""

from collections.abc import Callable
from math import isnan

from torch import Tensor

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.formatting import counted
from raffm_ray.data.tasks import is_packed
from raffm_ray.models.architecture import build
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.preparation.pretraining import MEASURED_EXAMPLES, Pretraining, Progress, pretrained
from raffm_ray.settings.task_and_model import PretrainSettings
from raffm_ray.subnetworks.rotation import collect_moments, rotatable, rotate

Note = Callable[[str], None]


def pretraining_of(prepared: Prepared) -> Pretraining:
    """What is trained on the public part before round 1."""
    experiment = prepared.setup.experiment
    return Pretraining(
        architecture=prepared.setup.architecture,
        source=prepared.foundation.source,
        public=prepared.task.public,
        held_out=prepared.task.held_out,
        settings=experiment.model.pretrain,
        seed=experiment.model_seed,
        code=tuple(one.sha256 or "" for one in experiment.plugins),
        texts=experiment.task.public if is_packed(experiment.task) else None,
    )


def worse_warning(settings: PretrainSettings) -> str:
    """What a user is told whose pretraining raised the loss: of the settings of what was trained."""
    trained = [prefix for prefix, epochs in (("head_", settings.head_epochs), ("", settings.epochs)) if epochs]
    none = " and ".join(f"model.pretrain.{prefix}epochs 0" for prefix in trained)
    lower = " or ".join(f"model.pretrain.{prefix}learning_rate" for prefix in trained)
    return f"warning: pretraining made the model worse: a lower {lower}, or {none}, may serve better; the rounds may still improve it"


def trained(prepared: Prepared, progress: Progress, note: Note) -> Tensor:
    """The full model trained on the public part, flat. Raises UserError when that diverges or its cache cannot be written to."""
    work = pretraining_of(prepared)
    try:
        made = pretrained(work, progress)
    except KeyboardInterrupt:
        told = "; the pretraining that was not finished begins anew" if sum(work.steps()) else ""
        raise KeyboardInterrupt(told) from None
    if not isnan(made.after):
        place = " (from the cache)" if made.cached else ""
        count = min(MEASURED_EXAMPLES, len(work.held_out))
        chosen = work.settings.head_epochs == "auto" and made.head_epochs
        passes = f": {counted(made.head_epochs, 'epoch')} of the head, by cross-validation" if chosen else ""
        note(f"{work.described()}{place}{passes}: loss on {count} held-out examples {made.before:.3f} -> {made.after:.3f}")
        if made.after > made.before:
            note(worse_warning(work.settings))
    return made.flat


def starting_parameters(prepared: Prepared, progress: Progress, note: Note) -> Tensor:
    """The flat parameters before round 1; `note` is told what the user should know. Raises UserError as `trained`."""
    flat = trained(prepared, progress, note)
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
