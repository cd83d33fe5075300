"""Settings of evaluation: when what is measured, and what is decided by it."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from raffm_ray.settings.base import Settings
from raffm_ray.settings.former_values import PRESENT_VALUES


class TuneSettings(Settings):
    """Training of a measured client's subnetwork on its own examples, before it is measured once more."""

    steps: int = Field(
        default=0,
        ge=0,
        description="training steps, at the clients' learning rate, after which every measured client is measured once more; needs `evaluation.clients`; "
        "0: it is not",
    )


class EvaluationSettings(Settings):
    """When the full model and every device type's subnetwork are measured on the held-out part, and what the validation part decides."""

    every: int = Field(default=5, ge=1, description="rounds between two evaluations; the last round is always evaluated")
    batch_size: int = Field(
        default=256,
        ge=1,
        description="examples that are evaluated at once; where none is set, fewer if their outputs would take more than 256 MiB",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="evaluations without improvement of the validation value after which the run stops; default: never",
    )
    keep_best: bool = Field(
        default=False,
        description="whether the run keeps the model of the round with the best validation value, instead of the last round",
    )
    watch: Literal["full_model", "worst", "mean"] = Field(
        default="mean",
        description="the validation value: of the full model (`full_model`), of the worst device type's subnetwork (`worst`), or the mean of the full model and all "
        "device types (`mean`)",
    )
    clients: Literal["all"] | Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="which clients are measured on their own held-out examples, in every evaluation: `all`, or how many; needs `clients.held_out` or "
        "`clients.unseen`; default: none",
    )
    tune: TuneSettings = TuneSettings()
    aggregation_error: bool = Field(
        default=False,
        description="whether every round measures how far the merged adapters are from the weighted sum of the products that clients sent",
    )
    sizes: int = Field(
        default=7,
        ge=0,
        description="how many sizes between the smallest device type's subnetwork and the full model are measured at the end, although nobody trained them; 0: none",
    )

    @field_validator("watch", mode="before")
    @classmethod
    def _present(cls, given: Any) -> Any:
        return PRESENT_VALUES["evaluation", "watch"].get(given, given) if isinstance(given, str) else given
