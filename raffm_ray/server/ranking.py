"""When parameters are ranked, and by what: weights, clients' statistics, or public examples."""

from dataclasses import replace
from math import ceil

import numpy as np
import torch

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.seeding import generator
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.freezing import frozen_length, frozen_views
from raffm_ray.server.device_type_plans import device_type_plans, holds_full_model
from raffm_ray.server.residual_pace import with_ruled_pace
from raffm_ray.server.round_schedule import schedule_round
from raffm_ray.server.state import Round, ServerState, Setup, parameters_of, state_of_parts
from raffm_ray.settings.experiment import Experiment
from raffm_ray.subnetworks.calibration import Statistics, rankable
from raffm_ray.subnetworks.norm_correction import norm_part
from raffm_ray.subnetworks.salience import METRICS, Scores


def _statistic(setup: Setup) -> str | None:
    settings = setup.experiment.salience
    calibrated = setup.strategy.salience and settings.source == "clients"
    return METRICS.chosen(settings.metric, setup.experiment.plugin_settings).statistic if calibrated else None


def cuts_residual(setup: Setup, state: ServerState) -> bool:
    """Whether some device type's subnetwork narrows the residual stream, so that norms want correcting."""
    return any("residual" in plan for plan in device_type_plans(setup, state).values())


class NotCalibratedError(UserError):
    """No client can calibrate the first ranking."""


def begin_calibration(setup: Setup, state: ServerState) -> Round | None:
    """Before round 1: clients that can hold the full model report statistics of it; None where no ranking needs them.

    Raises NotCalibratedError when no client can.
    """
    statistic = _statistic(setup)
    if statistic is None:
        return None
    experiment = setup.experiment
    holding = {name for name in setup.budgets if holds_full_model(setup, name)}
    able = [client for client, name in enumerate(setup.device_types) if setup.examples[client] and name in holding]
    if not able and not setup.strategy.budgeted:
        able = [client for client, count in enumerate(setup.examples) if count]
    if not able:
        raise NotCalibratedError(
            f"salience.metric {experiment.salience.metric!r} is calibrated by clients that hold the full model, and no client with data "
            "has a device of this fleet that can: set salience.source to public, or a metric of the weights (l1, l2, random)"
        )
    rng = generator(experiment.seed, "calibration clients")
    chosen = sorted(rng.permutation(able)[: experiment.salience.clients].tolist())
    examples, cut = experiment.salience.examples, "residual" in experiment.extraction.steps
    context = RoundContext(
        seed=experiment.seed,
        round=0,
        plans=(Plan(),),
        local=experiment.local,
        learning_rate=0.0,
        statistic=statistic,
        calibration_examples=examples,
        measure_norms=cut,
    )
    return schedule_round(
        setup, context, [Job(client, None, calibrate=True) for client in chosen], state.clock.seconds, state.held
    )


def plain_scores(architecture: Architecture) -> Scores:
    """Scores that rank every axis in its own order: of strategies without salience, and before there is a ranking."""
    layout = architecture.layout
    parents = {name: layout.axes[name].parent for name in rankable(layout)}
    return {
        name: np.tile(-np.arange(layout.axes[name].size, dtype=float), (layout.axes[parent].size, 1) if parent else 1)
        for name, parent in parents.items()
    }


def plain_state(architecture: Architecture) -> ServerState:
    """A stand-in before there is a model: a plain ranking, and zeros that take no memory for the parameters."""
    trained = sum(torch.Size(shape).numel() for shape in architecture.trained_shapes.values())
    none = torch.zeros(1)
    frozen = none.expand(frozen_length(architecture))
    return ServerState(0, none.expand(trained), plain_scores(architecture), frozen=frozen)


DRAWN = 1 << 20
"""Random numbers that are drawn for a model; a larger tensor repeats them."""
DEVIATION = 0.02
"""Their standard deviation."""


def random_state(setup: Setup, rng: torch.Generator) -> ServerState:
    """`starting_state` of random parameters with a plain ranking, for what is only timed. They are never all there in float32, which would
    be what takes most memory of a model whose frozen part is in another type."""
    architecture, drawn = setup.architecture, torch.randn(DRAWN, generator=rng).mul_(DEVIATION)
    trained = torch.empty(sum(torch.Size(shape).numel() for shape in architecture.trained_shapes.values()))
    frozen = torch.zeros(frozen_length(architecture), dtype=architecture.frozen_dtype)
    for values in (trained, *frozen_views(frozen, architecture).values()):
        for part in values.view(-1).split(DRAWN):
            part.copy_(drawn[: len(part)])
    first = state_of_parts(setup, trained, frozen)
    return with_ruled_pace(setup, replace(first, scores=plain_scores(architecture)))


def rank_again(setup: Setup, state: ServerState, statistics: Statistics | None) -> ServerState:
    """The state with scores computed from the current parameters and these statistics, and the pace of `with_ruled_pace`."""
    metric = METRICS.chosen(setup.experiment.salience.metric, setup.experiment.plugin_settings)
    if not setup.strategy.salience:
        scores = plain_scores(setup.architecture)
    else:
        named = parameters_of(setup, state)
        rng = generator(setup.experiment.seed, "salience", state.round)
        scores = metric.score(setup.architecture.layout, named, statistics or {}, rng)
    norms = norm_part(statistics) or state.norms
    return with_ruled_pace(setup, replace(state, scores=scores, pending=None, norms=norms, ranked_at=state.round))


def next_ranking(experiment: Experiment, round_number: int, ranked_at: int) -> int | None:
    """After which round the ranking is renewed next, if somebody has reported by then; None for never.

    `ranked_at`: the round after which it was last renewed; `round_number`: the last one that is done.
    """
    settings = experiment.salience
    due = max(round_number, ranked_at + settings.every)
    return due if due <= settings.until * experiment.rounds else None


def _next_ranking(setup: Setup, state: ServerState) -> int | None:
    return next_ranking(setup.experiment, state.round, state.ranked_at) if setup.strategy.salience else None


def ranking_is_due(setup: Setup, state: ServerState) -> bool:
    """Whether the ranking is renewed before the next round; a calibrated one waits until somebody has reported."""
    return _next_ranking(setup, state) == state.round and (state.pending is not None or _statistic(setup) is None)


def wanted_statistic(setup: Setup, state: ServerState) -> str | None:
    """What clients of the next round that hold the full model report: nothing for a ranking that never comes or is rounds away, nor
    beyond as many examples as the first calibration may use.

    Statistics of several models are added up, so that a ranking rests on the last models before it, on as few as there are clients for.
    """
    settings, due = setup.experiment.salience, _next_ranking(setup, state)
    enough = state.pending is not None and float(state.pending["examples"]) >= settings.clients * settings.examples
    early = due is None or state.round + 1 <= due - _collecting_rounds(setup)
    return None if enough or early else _statistic(setup)


def _collecting_rounds(setup: Setup) -> int:
    """In how many rounds as many clients that hold the full model are to be expected as a ranking asks for."""
    owners = setup.owners_by_device_type
    holding = {name for name in setup.budgets if not setup.strategy.budgeted or holds_full_model(setup, name)}
    holders = sum(count for name, count in owners.items() if name in holding)
    expected = setup.experiment.clients.per_round * holders / max(1, sum(owners.values()))
    return ceil(setup.experiment.salience.clients / expected) if expected else 1
