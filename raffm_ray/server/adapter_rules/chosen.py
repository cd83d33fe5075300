"""What an experiment asks of the adapters' merging: checked, and as names of parameters."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.models.adapters.lora import factors
from raffm_ray.models.architecture import Architecture
from raffm_ray.server.adapter_rules.rules import ADAPTER_RULES
from raffm_ray.server.strategies import Strategy, leading_ranks
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
        if strategy.train is leading_ranks:
            raise UserError(
                f"strategy.name: {settings.name!r} is a method for adapters: model.adapters must be set, such as {{rank: 16}}"
            )
        if not plain:
            key, value = ("factors", strategy.factors) if strategy.adapters == "mean" else ("adapters", strategy.adapters)
            raise UserError(f"strategy.{key}: {value!r} is about adapters: model.adapters must be set, such as {{rank: 16}}")
        return strategy
    told = f"strategy.adapters {strategy.adapters!r}"
    if strategy.adapters == "fedsvd" and strategy.factors != "up":
        raise UserError(
            f"strategy.factors: must be up with {told}, whose clients train B beside a common A, got {strategy.factors!r}"
        )
    if (rule.products or strategy.product_norms) and experiment.clock.late == "accept":
        raise UserError(
            f"clock.late: must be drop with {told if rule.products else settings.name}: a late product is of older adapters"
        )
    if rule.base and experiment.model.frozen_precision != "float32":
        raise UserError(
            f"model.frozen_precision: must be float32 with {told}, which adds to the frozen model, got {experiment.model.frozen_precision!r}"
        )
    return strategy


def held_names(architecture: Architecture, trained: str, round_number: int) -> tuple[str, ...]:
    """The projections of adapters that a round does not train. `trained`: as `strategy.factors`; alternating ones train B in odd rounds (RoLoRA: Chen et
    al. 2025, section 3)."""
    if architecture.adapters is None or trained == "both":
        return ()
    position = 0 if trained == "up" or round_number % 2 else 1
    names = (factors(module)[position] for module in architecture.adapters.modules)
    return tuple(name for name in names if not architecture.layout.parameters[name].frozen)


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
        "products": ("by_rank" if rule.by_rank else "sum") if rule.products else measured,
        "product_norms": strategy.product_norms,
        "held": held_names(architecture, strategy.factors, round_number),
        "lasting": strategy.factors == "up" and strategy.adapters == "mean",
        "resent": tuple(f"{module}.weight" for module in architecture.adapters.modules)
        if changed and rule.base == "dense"
        else (),
        "stack_bytes": stack_bytes if rule.base == "stacks" else 0,
    }
