"""Settings of how much each device may train, and of how the parameters that it trains are ranked and cut."""

from typing import Literal

from pydantic import Field

from raffm_ray.settings.base import FILE, Settings


class FleetSettings(Settings):
    """The devices. A device type's budget is `memory_fraction` of its memory, unless `budgets` names one."""

    mix: str = Field(
        default="medium",
        description="a mix of device types that raffm_ray/devices/profiles.yaml or the file of `profiles` defines",
    )
    profiles: str | None = Field(
        default=None,
        json_schema_extra=FILE,
        description="a YAML file like raffm_ray/devices/profiles.yaml that adds devices and mixes",
    )
    shares: dict[str, float] = Field(
        default={},
        description="mapping from a device type to its share of the clients; the mix is scaled to the remaining clients",
    )
    budgets: dict[str, dict[str, float]] = Field(
        default={},
        description="mapping from a device type to its limits, by kind: `params`, `layer_params`, `adapter_params`, `bytes`, `training_flops`, `memory_bytes`, `macs`, "
        "`inference_bytes`; a value of at most 1 is a fraction of the full model's",
    )
    memory_fraction: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="fraction of a device's memory that training may use, where `budgets` has no limit for its type",
    )
    correlation: float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="rank correlation between a client's data and the strength of its device; 1: the client with the most examples has the strongest device",
    )
    correlated_with: Literal["examples", "classes"] = Field(
        default="examples",
        description="what is correlated: the number of `examples`, or `classes`; with `classes` and a correlation of 1, the lower the number of a client's most "
        "frequent class, the stronger its device",
    )
    keeps_frozen: bool = Field(
        default=True,
        description="whether a device keeps the parameters that `model.freeze` names from round to round, and is sent only those of its plan that it "
        "lacks; false: it is sent all of them every round",
    )


class SalienceSettings(Settings):
    """How parameters are ranked, and when."""

    metric: str = Field(
        default="outputs", description="how parameters are scored: a metric of raffm_ray.subnetworks.salience.METRICS"
    )
    source: Literal["clients", "public"] = Field(
        default="clients",
        description="whose examples calibrate the scores: those of `clients` that hold the full model, or the `public` ones of the server",
    )
    every: int = Field(default=10, ge=1, description="rounds between two rankings")
    until: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="fraction of the rounds after which the ranking no longer changes, so that the chosen subnetworks can converge",
    )
    clients: int = Field(default=8, ge=1, description="clients that calibrate the first ranking, before round 1")
    examples: int = Field(default=64, ge=1, description="most examples with which a client calibrates")
    rotation: Literal["none", "weights", "calibrated"] = Field(
        default="none",
        description="rotation of attention heads into their SVD basis before round 1: none, by their `weights`, or `calibrated` with public examples",
    )
    rotation_examples: int = Field(default=64, ge=1, description="public examples that calibrate the rotation")


class ExtractionSettings(Settings):
    """How a budget becomes a plan."""

    kind: Literal["ranked_list", "common_rate"] = Field(
        default="ranked_list",
        description="`ranked_list`: the longest prefix of one ranked list of all units that fits; `common_rate`: the same fraction of every axis",
    )
    steps: dict[str, int] = Field(
        default={"groups": 1, "heads": 1, "qk": 4, "vo": 4, "ffn": 16, "residual": 16},
        description="mapping from a kind of axis to the number of units that are cut together; a kind that is left out is never cut, and one that the model "
        "lacks is ignored; default with `model.adapters`: {rank: 1}, which leaves the frozen model whole",
    )
    floors: dict[str, float] = Field(
        default={"residual": 0.5}, description="mapping from a kind of axis to the fraction of its units that is always kept"
    )
    reserves: dict[str, float] = Field(
        default={"groups": 0.25, "heads": 0.25, "qk": 0.25, "vo": 0.25, "ffn": 0.125},
        description="mapping from a kind of axis of layers to the fraction of its units that is kept until the residual stream is at its floor, where `pace` is not 0",
    )
    pace: float | None = Field(
        default=None,
        ge=0,
        description="how fast the ranked list gives up the residual stream: 0: only when all layers are at their floors, 1: beside the layers, so that both "
        "arrive at what they keep together, 2: twice as fast; default: 0 where it leaves enough of every device type's layers, else chosen with each ranking, "
        "by the loss on public examples",
    )
