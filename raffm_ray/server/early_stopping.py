"""Which rounds are evaluated; early stopping and the best round, decided on validation examples. Pure functions."""

from collections.abc import Sequence
from dataclasses import replace
from math import isnan

from raffm_ray.data.metrics import METRICS, worst
from raffm_ray.server.clock import VirtualClock
from raffm_ray.server.state import Best, ServerState, Setup
from raffm_ray.settings.experiment import Experiment


def is_evaluated(experiment: Experiment, round_number: int) -> bool:
    """Whether a round is evaluated: every so many, and the last."""
    return round_number % experiment.evaluation.every == 0 or round_number == experiment.rounds


def last_common_round(experiment: Experiment) -> int:
    """The last round that a longer run has as well: not the last of all where it is evaluated only because it is that."""
    return experiment.rounds - bool(experiment.rounds % experiment.evaluation.every)


def watched_metric(watch: str, metric: str, full: float, device_types: Sequence[float]) -> float:
    """What `evaluation.watch` names: the full model's metric, the worst device type's subnetwork's, or the mean of the full model's
    and all device types'."""
    if watch == "full_model":
        return full
    values = [full, *device_types]
    return worst(metric, device_types) if watch == "worst" else sum(values) / len(values)


def _better(metric: str, value: float, than: float) -> bool:
    """No number is worse than any."""
    if isnan(value) or isnan(than):
        return isnan(than) and not isnan(value)
    return value > than if METRICS[metric].higher else value < than


def with_best_round(setup: Setup, state: ServerState, metric: str, validation: float | None) -> ServerState:
    """The state with its best round so far, after an evaluation; of equal rounds the first counts. The start is a round too (0)."""
    if validation is None:
        return state
    best = state.best
    if best is not None and not _better(metric, validation, best.validation):
        return replace(state, best=replace(best, since=best.since + 1))
    kept = (
        replace(state, pending=None, moments={}, best=None, clock=VirtualClock(), records=None)
        if setup.experiment.evaluation.keep_best
        else None
    )
    return replace(state, best=Best(round=state.round, validation=validation, since=0, state=kept))


def is_finished(setup: Setup, state: ServerState) -> bool:
    """Whether no round follows: all are done, or `evaluation.patience` is at its end."""
    patience = setup.experiment.evaluation.patience
    tired = patience is not None and state.best is not None and state.best.since >= patience
    return tired or state.round >= setup.experiment.rounds


def chosen_state(setup: Setup, state: ServerState) -> ServerState:
    """The state whose model a run leaves: the best validated one where `evaluation.keep_best`, else the last."""
    best = state.best
    return (
        state
        if best is None or best.state is None or best.round == state.round
        else replace(best.state, best=best, clock=state.clock)
    )
