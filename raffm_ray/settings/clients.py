"""Settings of the clients: who there is, what they own, and who is chosen for a round."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raffm_ray.settings.base import Settings


class SelectionSettings(Settings):
    """Who is chosen for a round; written as its name where nothing else is set, such as `selection: oort`."""

    name: str = Field(
        default="uniform", description="how clients are chosen: a selection of raffm_ray.server.selection.table.SELECTIONS"
    )
    candidates: int | None = Field(
        default=None,
        ge=1,
        description="for `power_of_choice`: how many clients are drawn, of which those with the largest losses are chosen; default: twice as many as are chosen",
    )
    shares: Literal["fleet", "equal"] = Field(
        default="fleet",
        description="for `stratified`: a device type's part of every round: `fleet`, as of the clients with data, or `equal`, the same for all",
    )
    exploration: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="for `oort`: part of round 1 that is kept for clients whose loss is not known; see also `exploration_decay`",
    )
    exploration_decay: float = Field(
        default=0.98, gt=0, le=1, description="for `oort`: by what that part is multiplied after every round"
    )
    least_exploration: float = Field(default=0.2, ge=0, le=1, description="for `oort`: the least that it becomes")
    slowness: float = Field(
        default=2.0,
        ge=0,
        description="for `oort`: the exponent alpha; a client that takes k times the preferred time has k^-alpha of its utility; 0: time does not count",
    )
    preferred_percentile: float = Field(
        default=30.0,
        gt=0,
        le=100,
        description="for `oort`: the preferred time of a round in its beginning, as a percentile of the times of the clients that were heard of",
    )
    pacer_rounds: int = Field(
        default=20,
        ge=1,
        description="for `oort`: after how many rounds it is decided whether slower clients are preferred as well",
    )
    pacer_step: float = Field(
        default=5.0, ge=0, le=100, description="for `oort`: by how much the percentile then grows, if less was gained than before"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return self.name if self == SelectionSettings(name=self.name) else serialize(self)


class ClientSettings(Settings):
    """Who there is and what they own."""

    count: int = Field(default=100, ge=1, description="number of registered clients")
    per_round: int = Field(default=10, ge=1, description="number of clients drawn for a round")
    partition: str | None = Field(
        default=None,
        description="how examples are divided over clients: `iid`, `dirichlet_by_class`, `dirichlet_by_client`, `shards`, `quantity_skew`, "
        "`k_shot` or `natural`, where a client owns the examples with one value of the column `task.columns.group`; default: "
        "`dirichlet_by_class` for tasks with classes, else `iid`",
    )
    alpha: float = Field(
        default=0.5,
        ge=1e-4,
        description="concentration of the two Dirichlet partitions and of `quantity_skew`; a smaller value is more unequal",
    )
    shards: int = Field(
        default=2,
        ge=1,
        description="for the partition `shards`: how many pieces of the examples, sorted by class, each client owns",
    )
    shots: int = Field(
        default=1, ge=1, description="for the partition `k_shot`: how many examples of every class each client owns"
    )

    missing_group: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="for the partition `natural`: what happens where examples have no value in the column `task.columns.group`: `refuse` ends with "
        "their number, `drop` gives them to nobody",
    )
    held_out: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="part of every client's examples that measures this client and is never trained on: at least one example of a client with two or "
        "more, each class in proportion; with the column `task.columns.time`, the latest ones; 0: none",
    )
    unseen: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="part of every device type's clients that never train; all their examples measure them; 0: none",
    )

    selection: SelectionSettings = SelectionSettings()

    @model_validator(mode="after")
    def _enough(self) -> "ClientSettings":
        if self.per_round > self.count:
            raise ValueError(f"per_round {self.per_round} must not exceed count {self.count}")
        candidates = self.selection.candidates
        if candidates is not None and not self.per_round <= candidates <= self.count:
            raise ValueError(f"selection.candidates {candidates} must be from per_round {self.per_round} to count {self.count}")
        return self
