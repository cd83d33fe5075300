"""Settings of the strategy, and of those that it is compared with."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raffm_ray.settings.base import Settings


class StrategySettings(Settings):
    """Who trains which plan."""

    name: str = Field(default="raffm", description="a strategy of raffm_ray.server.strategies.STRATEGIES")
    prefix: Literal["default", "none", "smallest", "random", "one"] = Field(
        default="default",
        description="which smaller prefix of its subnetwork a client also trains in each step; `default`: what the strategy says",
    )
    aggregation: str = Field(
        default="default",
        description="how the sum of updates becomes an average: a rule of raffm_ray.server.aggregation.AGGREGATION_RULES; `default`: what the strategy says",
    )
    client_weight: Literal["default", "examples", "equal"] = Field(
        default="default",
        description="weight of a client in the average: its number of `examples`, or `equal`; `default`: what the strategy says",
    )
    distill: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="fraction of a prefix's loss that compares it with the soft outputs of the client's whole subnetwork, instead of the labels; default: what the strategy says",
    )
    temperature: float = Field(default=1.0, gt=0, description="temperature of the soft outputs")
    own: tuple[str, ...] = Field(
        default=(),
        description="parameters of which every device type's size has its own copy: kinds of raffm_ray.subnetworks.size_specific.SIZE_SPECIFIC",
    )
    adapters: str = Field(
        default="default",
        description="how the clients' adapters become the next ones: a rule of raffm_ray.server.adapter_rules.rules.ADAPTER_RULES, `mean` for what "
        "`aggregation` says of every other parameter; `default`: what the strategy says",
    )
    factors: Literal["default", "both", "up", "alternating"] = Field(
        default="default",
        description="which projections of adapters are trained: `both`, the second (`up`), or one in every round, `alternating`; `default`: what the "
        "strategy says",
    )
    personal: tuple[str, ...] = Field(
        default=(),
        description="trained parameters that stay with each client and are not averaged: `classifier`, `norms`, or patterns of names such as encoder.layer.5.*",
    )
    vocabulary: Literal["default", "whole", "own"] = Field(
        default="default",
        description="which rows of the table of words a client has: the `whole` table, or those of its `own` texts, over whose readers they are averaged; weight decay "
        "then shrinks these alone; `default`: whole",
    )


LATER = ("server", "personal", "adapters", "factors", "vocabulary")
"""Settings of a baseline that are written only where they are set, as in files from before there were these."""


class BaselineSettings(StrategySettings):
    """A strategy that the experiment's own is compared with; written as its name where nothing else is set.

    The protocol (client weights, local training, server optimizer) is the experiment's, unless `client_weight`, `local` or `server` says
    otherwise.
    """

    label: str | None = Field(
        default=None,
        pattern=r"^\w[\w .+-]*$",
        max_length=60,
        description="name in tables, pictures and folders; default: the strategy's name",
    )
    rounds: int | None = Field(default=None, ge=1, description="rounds of its training; default: the experiment's")
    local: dict[str, Any] = Field(
        default={}, description="settings of `local` that are this one's own, such as {learning_rate: 0.01}"
    )
    server: dict[str, Any] = Field(
        default={}, description="settings of `server` that are this one's own, such as {optimizer: momentum}"
    )

    @property
    def shown(self) -> str:
        """What it is called in tables, pictures and folders."""
        return self.label or self.name

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, serialize: SerializerFunctionWrapHandler) -> Any:
        if self == BaselineSettings(name=self.name):
            return self.name
        values = serialize(self)
        unset = {key for key in LATER if values.get(key) in (None, (), [], {}, "default")}
        return {key: value for key, value in values.items() if key not in unset}
