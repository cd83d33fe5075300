"""Settings of low-rank adapters."""

from typing import Literal

from pydantic import Field

from raffm_ray.settings.base import FILE, Settings


class AdapterSettings(Settings):
    """Low-rank adapters beside projections of the model, which is frozen but for its task head."""

    kind: Literal["lora"] = Field(default="lora", description="which adapters: `lora`")
    pretrained: str | None = Field(
        default=None,
        json_schema_extra=FILE,
        description="folder that the library `peft` saved: adapters to begin with, of its ranks, alphas and targets, and its task head; default: new ones",
    )
    rank: int = Field(default=16, ge=1, description="ranks of every adapter; a device may keep fewer, as its budget says")
    alpha: float = Field(
        default=32.0, gt=0, description="what an adapter adds is scaled by alpha / rank, whatever a device keeps"
    )
    targets: tuple[str, ...] = Field(
        default=("all",),
        min_length=1,
        description="which projections have one: kinds (`query`, `key`, `value`, `output`, `gate`, `up`, `down`), `all` of them, or patterns "
        "of names of modules such as *.attention.self.query",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="fraction of what an adapter reads that is left out in training")
    scaling: Literal["lora", "rslora"] = Field(default="lora", description="`lora`: alpha / rank; `rslora`: alpha / sqrt(rank)")
