"""What an experiment asks of the adapters' merging: checked, and as names of parameters."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.models.adapters.lora import factors
from raffm_ray.models.architecture import Architecture
from raffm_ray.server.adapter_rules.rules import ADAPTER_RULES, AdapterRule
from raffm_ray.server.plans.of_adapters import leading_ranks
from raffm_ray.server.strategies import Strategy
from raffm_ray.settings.experiment import Experiment


def with_adapter_settings(strategy: Strategy, experiment: Experiment) -> Strategy:
    """The strategy with the settings' `adapters` and `factors`. Raises UserError for a rule that is not known, without adapters, or with what a rule
    cannot be with."""
    settings = experiment.strategy
    if settings.adapters != "default":
        strategy = replace(strategy, adapters=settings.adapters)
    if settings.factors != "default":
        strategy = replace(strategy, factors=settings.factors)
    rule = look_up(ADAPTER_RULES, strategy.adapters, "strategy.adapters")
    plain = strategy.adapters == "mean" and strategy.factors == "both"
    if experiment.model.adapters is None:
        if CLIENT_UPDATES[experiment.local.client_update].prunes:
            raise UserError(
                f"local.client_update: {experiment.local.client_update!r} is about adapters: model.adapters must be set, such as {{rank: 16}}"
            )
        if strategy.of_adapters:
            raise UserError(
                f"strategy.name: {settings.name!r} is a method for adapters: model.adapters must be set, such as {{rank: 16}}"
            )
        if not plain:
            key, value = ("factors", strategy.factors) if strategy.adapters == "mean" else ("adapters", strategy.adapters)
            raise UserError(f"strategy.{key}: {value!r} is about adapters: model.adapters must be set, such as {{rank: 16}}")
        return strategy
    for problem in _problems(strategy, rule, experiment):
        raise UserError(problem)
    return strategy


def _problems(strategy: Strategy, rule: AdapterRule, experiment: Experiment) -> Iterator[str]:
    settings, update, server = experiment.strategy, experiment.local.client_update, experiment.server
    told = f"strategy.adapters {strategy.adapters!r}"
    if strategy.adapters == "fedsvd" and strategy.factors != "up":
        yield f"strategy.factors: must be up with {told}, whose clients train B beside a common A, got {strategy.factors!r}"
    if strategy.factors != "both" and CLIENT_UPDATES[update].remembers:
        yield (
            f"local.client_update: {update!r} remembers something of every parameter that is trained, and strategy.factors "
            f"{strategy.factors!r} trains only some of them in a round"
        )
    if CLIENT_UPDATES[update].prunes:
        yield from _problems_of_pruning(strategy, experiment)
    if strategy.factors == "alternating" and experiment.clock.late == "accept":
        yield "clock.late: must be drop with strategy.factors 'alternating': a late change may be of the projection that rests"
    norms, measured = strategy.product_norms, experiment.evaluation.aggregation_error
    if rule.products or norms or measured:
        by = told if rule.products else f"strategy.name {settings.name!r}" if norms else "evaluation.aggregation_error"
        if experiment.clock.late == "accept":
            yield f"clock.late: must be drop with {by}: a late product is of older adapters"
        if server.fair_exponent:
            yield (
                f"server.fair_exponent: must be 0 with {by}: it weighs changes of parameters, and products have other weights, got "
                f"{server.fair_exponent:g}"
            )
    if norms and server.agnostic_rate:
        yield (
            f"server.agnostic_rate: must be 0 with strategy.name {settings.name!r}, whose clients weigh by the norms of their products, got "
            f"{server.agnostic_rate:g}"
        )
    if norms and settings.client_weight != "default":
        yield (
            f"strategy.client_weight: must be default with strategy.name {settings.name!r}, whose clients weigh by the norms of their "
            f"products, got {settings.client_weight!r}"
        )
    if rule.base and experiment.model.frozen_precision != "float32":
        yield (
            f"model.frozen_precision: must be float32 with {told}, which adds to the frozen model, got "
            f"{experiment.model.frozen_precision!r}"
        )


def _problems_of_pruning(strategy: Strategy, experiment: Experiment) -> Iterator[str]:
    settings, told = experiment.strategy, f"local.client_update {experiment.local.client_update!r}"
    if strategy.train is not leading_ranks:
        yield f"strategy.name: must be one that sends leading ranks with {told}, which drops the last ones, such as hetlora, got {settings.name!r}"
    if strategy.aggregation != "all_clients":
        yield f"strategy.aggregation: must be all_clients with {told}, whose dropped ranks count as zeros, got {strategy.aggregation!r}"
    if strategy.factors != "both":
        yield f"strategy.factors: must be both with {told}, which drops ranks of both projections, got {strategy.factors!r}"
    if settings.personal:
        yield f"strategy.personal: must be empty with {told}, whose clients send all that they keep, got {', '.join(settings.personal)}"


def check_projections(architecture: Architecture, strategy: Strategy, experiment: Experiment, personal: Sequence[str]) -> None:
    """Raises UserError where the clients' adapters are not all there to be merged. `personal`: names of parameters that stay with their clients.

    A rule makes a new A and a new B of what both were, so neither can be frozen alone, and neither can be unknown to the server.
    """
    settings = experiment.strategy
    for module in architecture.adapters.modules if architecture.adapters else ():
        both = factors(module)
        frozen = [name for name in both if architecture.layout.parameters[name].frozen]
        if strategy.adapters != "mean" and len(frozen) == 1:
            raise UserError(
                f"model.freeze: {frozen[0]}: strategy.adapters {strategy.adapters!r} merges both projections of an adapter: freeze both, or "
                "neither"
            )
        for name in set(both) & set(personal):
            for key, value, plain in (
                ("adapters", strategy.adapters, strategy.adapters == "mean"),
                ("factors", strategy.factors, strategy.factors == "both"),
                ("name", settings.name, not strategy.product_norms),
            ):
                if not plain:
                    raise UserError(
                        f"strategy.personal: {name} stays with the clients, and strategy.{key} {value!r} needs what they all have of it"
                    )
            if experiment.evaluation.aggregation_error:
                raise UserError(
                    f"evaluation.aggregation_error: must be false where adapters stay with the clients (strategy.personal: {name})"
                )


def held_names(architecture: Architecture, trained: str, round_number: int) -> tuple[str, ...]:
    """The projections of adapters that a round does not train. `trained`: as `strategy.factors`; alternating ones train B in odd rounds (RoLoRA: Chen et
    al. 2025, section 3)."""
    if architecture.adapters is None or trained == "both":
        return ()
    position = 0 if trained == "up" or round_number % 2 else 1
    names = (factors(module)[position] for module in architecture.adapters.modules)
    return tuple(name for name in names if not architecture.layout.parameters[name].frozen)


def model_context(architecture: Architecture, strategy: Strategy, round_number: int) -> dict[str, Any]:
    """What a client's model depends on besides its plan, as fields of a `RoundContext`: what adapters count, and what the round does not train."""
    return {"sketched": strategy.sketched, "held": held_names(architecture, strategy.factors, round_number)}


def adapter_context(
    architecture: Architecture,
    strategy: Strategy,
    experiment: Experiment,
    base_change: Tensor,
    stack_bytes: int,
    round_number: int,
) -> dict[str, Any]:
    """What the clients of a round are told about adapters, and their devices charged for: fields of a `RoundContext`. `base_change`, `stack_bytes`: of
    the state before it."""
    if architecture.adapters is None:
        return {}
    rule = ADAPTER_RULES.chosen(strategy.adapters, experiment.plugin_settings)
    measured = "sum" if experiment.evaluation.aggregation_error else ""
    changed = len(base_change) > 0
    return {
        **model_context(architecture, strategy, round_number),
        "products": ("by_rank" if rule.by_rank else "sum") if rule.products else measured,
        "product_norms": strategy.product_norms,
        "lasting": strategy.factors == "up" and strategy.adapters == "mean",
        "resent": tuple(f"{module}.weight" for module in architecture.adapters.modules)
        if changed and rule.base == "dense"
        else (),
        "stack_bytes": stack_bytes if rule.base == "stacks" else 0,
    }
