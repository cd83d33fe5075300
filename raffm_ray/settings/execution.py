"""Settings of the pool and of checkpoints. They change where a run is computed, not its results."""

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
    """Workers that device types have of their own, on the nodes that the user chooses for them."""

    labels: dict[str, str] = Field(
        default={}, description="Ray labels that the nodes must have, such as `ray.io/accelerator-type: H100`"
    )
    gpus_per_worker: float = Field(
        default=0.0, description="GPUs of each worker: 1/k, or a whole number; 0: a worker uses a CPU core"
    )
    workers: int | None = Field(default=None, ge=1, description="number of workers; default: as many as the nodes have room for")

    @model_validator(mode="after")
    def _share(self) -> "PlacementSettings":
        check_share(self.gpus_per_worker)
        return self


class PoolSettings(Settings):
    """Where clients run. None of these changes a result except `block_clients` and `stack_clients`, which change how it is rounded."""

    backend: Literal["ray", "in_process"] = Field(
        default="ray", description="`ray`: workers are Ray actors; `in_process`: everything runs in one process"
    )
    workers: int | None = Field(
        default=None, ge=1, description="number of workers; default: one for each core, or for each share of a GPU"
    )
    gpus_per_worker: float | Literal["auto"] = Field(
        default=0.0,
        description="GPUs of each worker: 1/k, or a whole number; `auto`: 1/k with the largest k for which the largest subnetwork fits k times into a GPU",
    )
    gpu_memory_bytes: float | None = Field(
        default=None, gt=0, description="memory of a GPU for `auto`; default: what PyTorch reports"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="where workers compute; `auto`: on the GPU where they have a share of one, otherwise on the CPU",
    )
    deterministic: bool = Field(
        default=True,
        description="whether a GPU may only use kernels that give the same bits every time; false: faster where it has others, and no result can be repeated to the bit",
    )
    block_clients: int | None = Field(
        default=None, ge=1, description="clients that a worker is sent at once; default: a 64th of the round"
    )
    stack_clients: int | None = Field(
        default=None,
        ge=1,
        description="clients with the same subnetwork that are trained at once as one stacked module; default: 16 for small models, otherwise 1",
    )
    attempts: int = Field(default=3, ge=1, description="how often a block of clients is tried when its worker dies or hangs")
    patience_seconds: float = Field(
        default=300.0, gt=0, description="a block counts as hung when it takes this much longer than ten times the predicted time"
    )

    metrics: bool | None = Field(
        default=None,
        description="whether each round is exported as metrics of Ray, for Prometheus; default: only on a cluster that the run joins",
    )
    placement: dict[str, PlacementSettings] = Field(
        default={}, description="mapping from a device type to the hardware that trains its clients; default: any hardware"
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

    every: int = Field(
        default=1, ge=0, description="rounds between two checkpoints; 0: none, and an interrupted run begins again"
    )
    keep: int = Field(default=2, ge=1, description="how many of the newest checkpoints are kept; a finished run keeps one")
