"""The pace at which the residual stream is cut, by the loss of subnetworks on the server's public examples."""

from dataclasses import replace
from itertools import chain
from math import inf, isfinite

import numpy as np
import torch

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.clients.local_training import one_thread
from raffm_ray.models.architecture import build
from raffm_ray.models.objectives import objective_of
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.server.device_type_plans import copies
from raffm_ray.server.ranking import rank_again
from raffm_ray.server.residual_pace import PACES, Answers, device_type_answers, ruled_pace, wants_pace
from raffm_ray.server.state import ServerState, parameters_of
from raffm_ray.subnetworks.calibration import Statistics
from raffm_ray.subnetworks.norm_correction import correct_norms, norm_factors

EXAMPLES = 256
"""Public examples that a subnetwork is measured on, at most: a search is at most len(PACES) x EXAMPLES forward passes a budget, of
subnetworks."""


def public_loss(prepared: Prepared, state: ServerState, plan: Plan) -> float:
    """The mean loss of a target over the first `EXAMPLES` public examples, of a plan's subnetwork without further training."""
    setup, public = prepared.setup, prepared.task.public
    (copy,), architecture = copies(setup, state, [plan]), setup.architecture
    named = parameters_of(setup, state, copy)
    layout, objective = architecture.layout, objective_of(architecture)
    tensors = correct_norms(take_all(named, layout, plan), norm_factors(plan, layout, state.norms))
    model = build(architecture, {name: values.clone() for name, values in tensors.items()}, plan).eval()
    summed, targets = 0.0, 0
    with torch.inference_mode():
        for part in np.split(np.arange(shown := min(len(public), EXAMPLES)), range(32, shown, 32)):
            batch = public.batch(part)
            labels = batch.pop("labels")
            summed += float(objective.loss(model(**batch), labels, "sum"))
            targets += objective.targets(labels)
    return summed / max(1, targets)


def with_best_pace(prepared: Prepared, state: ServerState, answers: Answers) -> ServerState:
    """The state with the pace whose plans have the least public loss, on average over the answers, where `wants_pace` (of equal ones the
    slowest); that of `ruled_pace` where there are no public examples; else as it is."""
    if not wants_pace(prepared.setup, state, answers):
        return state
    if not len(prepared.task.public):
        return replace(state, pace=ruled_pace(prepared.setup, state, answers))
    asked = {pace: [plan for _, plan in answers(replace(state, pace=pace))] for pace in PACES}
    if all(plans == asked[0.0] for plans in asked.values()):  # plans of another kind, such as whole layers
        return state
    with one_thread():
        found = {plan: public_loss(prepared, state, plan) for plan in dict.fromkeys(chain(*asked.values()))}

    def total_loss(pace: float) -> float:
        total = sum(found[plan] for plan in asked[pace])
        return total if isfinite(total) else inf

    return replace(state, pace=min(PACES, key=total_loss))


def rank_with_pace(prepared: Prepared, state: ServerState, statistics: Statistics | None) -> ServerState:
    """`rank_again`, and the best pace for the run's device types where the rule has changed it."""
    ranked = rank_again(prepared.setup, state, statistics)
    if prepared.setup.experiment.extraction.pace is not None or not ranked.pace:
        return ranked
    return with_best_pace(prepared, replace(ranked, pace=0.0), device_type_answers(prepared.setup))
