"""The strategies that an experiment's own is compared with, under the same protocol."""

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.clients.reach.own_words import own_words
from raffm_ray.preparation.model_for_task import as_trained
from raffm_ray.preparation.prepare import Prepared, check_start
from raffm_ray.server.kept.held_words import has_own_words
from raffm_ray.server.state import setup_strategy
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import one_line
from raffm_ray.settings.strategy import BaselineSettings, StrategySettings
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS


def check_baselines(experiment: Experiment) -> None:
    """Raises UserError unless every baseline is a strategy, called otherwise than the experiment's own and than every other."""
    names = {experiment.strategy.name}
    for one in experiment.baselines:
        look_up(STRATEGIES, one.name, "baselines: strategy")
        if one.shown in names:
            raise UserError(
                f"baselines: {one.shown!r} is there already; another variant of a strategy needs a label of its own, such as "
                f"{{name: {one.name}, label: {one.name} 2}}"
            )
        names.add(one.shown)
        with_protocol(experiment, one)


def with_protocol(experiment: Experiment, baseline: BaselineSettings) -> Experiment:
    """The experiment under a baseline's strategy, alone. What the protocol says (client weights, local training, server optimizer)
    holds for it too, where the baseline has nothing of its own; the rest of its strategy is as the baseline sets it, or as that strategy's
    defaults.

    Raises UserError for settings of `local` or `server` that are not valid, and a client's optimizer that is not known.
    """
    strategy = {name: getattr(baseline, name) for name in StrategySettings.model_fields}
    if baseline.client_weight == "default":
        strategy["client_weight"] = experiment.strategy.client_weight
    if baseline.vocabulary == "default":
        strategy["vocabulary"] = experiment.strategy.vocabulary
    changed: dict[str, Any] = {}
    for group, own in (("local", baseline.local), ("server", baseline.server)):
        given: BaseModel = getattr(experiment, group)
        try:
            changed[group] = type(given).model_validate({**given.model_dump(), **own})
        except ValidationError as error:
            raise UserError(f"baselines: {baseline.shown}: {group}.{one_line(error, type(given))}") from None
    look_up(OPTIMIZERS, changed["local"].optimizer, f"baselines: {baseline.shown}: local.optimizer")
    changed |= {
        "strategy": StrategySettings(**strategy),
        "baselines": (),
        "rounds": baseline.rounds or experiment.rounds,
    }
    return experiment.model_copy(update=changed)


def alone(experiment: Experiment, baseline: BaselineSettings | None = None) -> Experiment:
    """The experiment without baselines, under its own strategy or a baseline's."""
    return with_protocol(experiment, baseline) if baseline else experiment.model_copy(update={"baselines": ()})


def with_strategy(prepared: Prepared, baseline: BaselineSettings | None) -> Prepared:
    """The same data, fleet and seed under `alone`'s experiment. Raises UserError as `prepare`."""
    changed = alone(prepared.setup.experiment, baseline)
    strategy = setup_strategy(changed)
    architecture = as_trained(prepared.setup.architecture, changed, strategy.sketched)
    words = own_words(architecture, prepared.task.clients, prepared.shares) if has_own_words(changed, strategy) else None
    setup = replace(prepared.setup, experiment=changed, architecture=architecture, strategy=strategy, words=words)
    check_start(setup)
    return replace(prepared, setup=setup)
