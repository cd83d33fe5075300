"""Device types and fleets, from files of profiles. Everything here is simulated: no such device is attached."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError

from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.devices.correlation import correlated_ranks
from raffm_ray.settings.base import Settings
from raffm_ray.settings.loading import one_line, read_mapping

LEAST = 1e-9
"""Of a rate, a size or a share: a smaller number is a mistake, and what is divided by it is infinite."""


def _not_tiny(value: float) -> float:
    if value < LEAST:
        raise ValueError(f"must be at least {LEAST:g}")
    return value


Positive = Annotated[float, Field(gt=0, strict=True), AfterValidator(_not_tiny)]
AtLeastZero = Annotated[float, Field(ge=0, strict=True)]


class Host(Settings):
    """What a device takes besides to run the simulation itself, as a core of a cluster's node."""

    stacked_dispatch_seconds: AtLeastZero = Field(
        0.0, description="of a step of several clients trained at once, per parameter tensor, in place of dispatch_seconds"
    )
    round_seconds: AtLeastZero = Field(0.0, description="of a round's planning, records and checkpoint, whatever the model")
    round_bytes_per_second: Positive = Field(
        1e12, description="how fast the driver averages, and writes down, the bytes of the full model"
    )


class Device(Settings):
    """A device type: the rates of one whole device, and where its figures are from. profiles.yaml says what each field means."""

    memory_bytes: Positive
    flops_per_second: Positive = Field(description="float32")
    memory_bytes_per_second: Positive
    down_bytes_per_second: Positive
    up_bytes_per_second: Positive
    latency_seconds: AtLeastZero = Field(0.0, description="before the first byte of a transfer")
    dispatch_seconds: AtLeastZero = Field(0.0, description="of a training step, per parameter tensor, whatever its size")
    overlap: Annotated[float, Field(ge=0, le=1, strict=True)] = Field(
        1.0, description="how much of the shorter of computing and moving to and from memory is hidden behind the longer"
    )
    power_watts: Positive = Field(description="while it computes")
    radio_watts: AtLeastZero = Field(description="of its network interface while it sends or receives")
    sustained: Annotated[float, Field(gt=0, le=1, strict=True), AfterValidator(_not_tiny)] = Field(
        0.3, description="fraction of every rate that is reached"
    )
    host: Host | None = Field(None, description="of one that runs the simulation")
    source: str = Field(min_length=1)


@dataclass(frozen=True)
class Profiles:
    """Device types, weakest first, and named fleets: device type -> share of the clients."""

    devices: Mapping[str, Device]
    mixes: Mapping[str, Mapping[str, float]]


class _File(Settings):
    devices: dict[str, Device] = Field(default_factory=dict)
    mixes: dict[str, dict[str, Positive]] = Field(default_factory=dict)


def load_profiles(path: Path, base: Profiles | None = None) -> Profiles:
    """The profiles of a YAML file, added to those of `base`; a name that is there already is replaced.

    Raises UserError that names the file, the device or mix, and the field.
    """
    try:
        file = _File.model_validate(read_mapping(path))
    except ValidationError as error:
        raise UserError(f"{path}: {one_line(error, _File)}") from None
    devices = {**base.devices, **file.devices} if base else file.devices
    for mix, shares in file.mixes.items():
        try:
            for name in shares:
                look_up(devices, name, "device type")
        except UserError as error:
            raise UserError(f"{path}: mixes.{mix}: {error}") from None
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise UserError(f"{path}: mixes.{mix}: shares must add up to 1, got {sum(shares.values()):g}")
    ordered = sorted(devices.items(), key=lambda named: named[1].flops_per_second)
    return Profiles(dict(ordered), {**base.mixes, **file.mixes} if base else file.mixes)


PACKAGED = load_profiles(Path(__file__).with_name("profiles.yaml"))
"""The profiles that come with the package; `source` says where the figures are from."""
DEVICES, MIXES = PACKAGED.devices, PACKAGED.mixes


def known_profiles(path: str | None) -> Profiles:
    """The packaged profiles and those of the file that `fleet.profiles` names. Raises UserError as `load_profiles`."""
    if path is None:
        return PACKAGED
    try:
        return load_profiles(Path(path).expanduser(), PACKAGED)
    except UserError as error:
        raise UserError(f"fleet.profiles: {error}") from None


def fleet_shares(mix: str, shares: Mapping[str, float], profiles: Profiles = PACKAGED) -> dict[str, float]:
    """The share of every device type: what `shares` says, and the named mix scaled to what remains; weakest first.

    Raises UserError for unknown names, negative shares, or shares above 1.
    """
    base = look_up(profiles.mixes, mix, "fleet mix")
    for name, share in shares.items():
        look_up(profiles.devices, name, "device type")
        if share < 0:
            raise UserError(f"fleet share of {name} must not be negative, got {share}")
    rest = {name: share for name, share in base.items() if name not in shares}
    left = 1 - sum(shares.values())
    if left < -1e-9 or (left > 1e-9 and not rest):
        raise UserError(f"fleet shares must add up to 1, got {sum(shares.values()):g}")
    scale = left / sum(rest.values()) if rest else 0.0
    result = {name: shares.get(name, rest.get(name, 0.0) * scale) for name in profiles.devices}
    return {name: share for name, share in result.items() if share > 1e-9}


def assign_devices(
    shares: Mapping[str, float],
    clients: int,
    rng: np.random.Generator,
    values: NDArray[np.int64] | None = None,
    correlation: float = 0.0,
) -> list[str]:
    """A device type for every client: exact shares (largest remainders), in random order.

    `shares`: weakest device type first. `values`: [clients]; with a rank correlation above 0, clients with high ones get strong devices, and
    below 0 weak ones (`correlated_ranks`).
    """
    exact = np.array(list(shares.values())) * clients
    counts = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(-(exact - counts), kind="stable")[: clients - counts.sum()]:
        counts[index] += 1
    names = np.repeat(np.array(list(shares)), counts)
    ranks = correlated_ranks(np.zeros(clients) if values is None else values, correlation, rng)
    return [str(name) for name in names[ranks]]
