"""Settings of where a run is computed and what it goes on from when it is interrupted: not what it computes."""

from typing import Literal

from pydantic import Field, model_validator

from raffm_ray.settings.base import Settings


def check_share(share: float) -> float:
    """What a worker has of GPUs. Raises ValueError unless it is 0, 1/k or whole."""
    if 0 < share < 1 and abs(1 / share - round(1 / share)) > 1e-6:
        raise ValueError(f"gpus_per_worker {share} must be 1/k, such as 0.5, 0.3333333 or 0.25: other shares never fill a GPU")
    if share < 0 or (share > 1 and share != int(share)):
        raise ValueError(f"gpus_per_worker {share} must be {'0 or more' if share < 0 else 'whole above 1'}")
    return share


class PlacementSettings(Settings):
    """Workers that device classes have of their own, on the nodes that the user chooses for them."""

    labels: dict[str, str] = Field({}, description="labels of their nodes in Ray, such as ray.io/accelerator-type: H100")
    gpus_per_worker: float = Field(0.0, description="1/k of a GPU, or whole GPUs; 0: they compute on a core")
    workers: int | None = Field(None, ge=1, description="default: as many as their nodes have room for")

    @model_validator(mode="after")
    def _share(self) -> "PlacementSettings":
        check_share(self.gpus_per_worker)
        return self


class PoolSettings(Settings):
    """Where clients run. None of these changes a result except `block_clients` and `stack_clients`, which change how it is rounded."""

    backend: Literal["ray", "in_process"] = "ray"
    workers: int | None = Field(None, ge=1, description="actors; default: one a core, or a GPU share")
    gpus_per_worker: float | Literal["auto"] = Field(
        0.0, description="1/k of a GPU, or whole GPUs; auto: the largest k for which the largest plan fits k times"
    )
    gpu_memory_bytes: float | None = Field(None, gt=0, description="of a GPU, for auto; default: what torch says of one")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where workers compute; auto: on the GPU if they have a share of one"
    )
    block_clients: int | None = Field(None, ge=1, description="clients a block; default: a 64th of the round")
    stack_clients: int | None = Field(
        None, ge=1, description="clients of one plan trained at once, as one stacked module; default: 16 of small models, else 1"
    )
    attempts: int = Field(3, ge=1, description="how often a block is tried when its worker dies or hangs")
    patience_seconds: float = Field(
        300.0, gt=0, description="a block hangs that takes so much longer than ten times what its cost predicts"
    )

    metrics: bool | None = Field(
        None,
        description="whether rounds are exported as metrics of Ray, for Prometheus; default: on a cluster that the run joins",
    )
    placement: dict[str, PlacementSettings] = Field(
        {}, description="device class -> the hardware that trains its clients: labels of nodes, GPU share, workers; default: any"
    )

    @model_validator(mode="after")
    def _share(self) -> "PoolSettings":
        if self.gpus_per_worker != "auto":
            check_share(self.gpus_per_worker)
        if self.metrics and self.backend != "ray":
            raise ValueError(f"metrics: are Ray's, and backend is {self.backend}")
        return self


class CheckpointSettings(Settings):
    """What an interrupted run goes on from. Nothing here changes a result."""

    every: int = Field(1, ge=0, description="rounds between checkpoints; 0: none, an interrupted run begins again")
    keep: int = Field(2, ge=1, description="how many are kept, the newest ones; none of a run that is finished")
