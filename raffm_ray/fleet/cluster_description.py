"""A cluster as it is described in a file: so many nodes of each kind, with what cores, GPUs and links."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.devices.profiles import Device, Positive, known_profiles
from raffm_ray.settings.base import Settings
from raffm_ray.settings.loading import one_line, read_mapping


class NodeGroup(Settings):
    """Nodes that are alike. Devices are those of raffm_ray/devices/profiles.yaml, or of the file that `profiles` names."""

    count: int = Field(1, ge=1, description="nodes")
    cpus: int = Field(ge=0, description="cores that Ray may give to workers; 0 keeps a head for the driver")
    cpu: str = Field("server_core", description="device type of one core")
    gpus: int = Field(0, ge=0, description="GPUs of a node")
    gpu: str | None = Field(None, description="device type of a GPU")
    labels: dict[str, str] = Field({}, description="of the nodes in Ray, which pool.placement chooses by")
    network_bytes_per_second: Positive = Field(1.25e9, description="of a node's link, each way; default: 10 Gb/s")

    @model_validator(mode="after")
    def _kind(self) -> "NodeGroup":
        if bool(self.gpus) != (self.gpu is not None):
            raise ValueError(f"gpus and gpu go together: gpus {self.gpus}, gpu {self.gpu}")
        return self


class _File(Settings):
    profiles: str | None = Field(None, description="a file of profiles, such as fleet calibrate writes")
    nodes: list[NodeGroup] = Field(min_length=1, description="the driver is on the first one")


@dataclass(frozen=True)
class Cluster:
    """Nodes by kind, the driver's first, and the device types that they name."""

    groups: tuple[NodeGroup, ...]
    devices: Mapping[str, Device]

    @property
    def cpus(self) -> int:
        """Cores for workers."""
        return sum(group.count * group.cpus for group in self.groups)

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return sum(group.count * group.gpus for group in self.groups)


def load_cluster(path: Path) -> Cluster:
    """The cluster of a YAML file. Raises UserError that names the file, the field, and the device type where one is not known."""
    try:
        file = _File.model_validate(read_mapping(path))
    except ValidationError as error:
        raise UserError(f"--cluster {path}: {one_line(error, _File)}") from None
    except UserError as error:
        raise UserError(f"--cluster {error}") from None
    beside = None if file.profiles is None else str(path.parent / Path(file.profiles).expanduser())
    try:
        devices = known_profiles(beside).devices
        for number, group in enumerate(file.nodes):
            for key in ("cpu", "gpu"):
                if (name := getattr(group, key)) is not None:
                    look_up(devices, name, f"nodes.{number}.{key}: device type")
    except UserError as error:
        raise UserError(f"--cluster {path}: {str(error).removeprefix('fleet.')}") from None
    return Cluster(tuple(file.nodes), devices)
