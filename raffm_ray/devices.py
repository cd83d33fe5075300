"""Device classes, fleets, and what a plan costs on a device. Everything here is simulated: no such device is attached.

The figures are peaks of data sheets; `sustained` says what fraction of them the estimates assume.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raffm_ray.correlation import correlated_ranks
from raffm_ray.errors import UserError, look_up

GIB = 1024**3


@dataclass(frozen=True)
class Device:
    """A device class. `flops_per_second`: float32 peak; `link_bytes_per_second`: of its network link, each way."""

    name: str
    memory_bytes: int
    flops_per_second: float
    link_bytes_per_second: float
    power_watts: float
    source: str
    sustained: float = 0.3

    def compute_seconds(self, flops: float) -> float:
        """Estimate: FLOPs over the sustained rate (the compute roof of Williams et al. 2009; the bandwidth roof is left out)."""
        return flops / (self.flops_per_second * self.sustained)

    def transfer_seconds(self, transferred_bytes: float) -> float:
        """Estimate: bytes over the sustained link rate; latency is left out."""
        return transferred_bytes / (self.link_bytes_per_second * self.sustained)

    def energy_joules(self, compute_seconds: float) -> float:
        """Estimate: rated power times computing time, as in Qiu et al. 2023 (CO2 of FL, eq. 1); the radio is left out."""
        return self.power_watts * compute_seconds


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("raspberry_pi_4", 4 * GIB, 48e9, 54e6, 15, "Raspberry Pi 4 product brief: 4x A72 1.5 GHz (8 FLOP/cycle), 4 GB, 433 Mb/s 802.11ac, 5 V 3 A"),
        Device("raspberry_pi_5", 8 * GIB, 154e9, 54e6, 25, "Raspberry Pi 5 product brief: 4x A76 2.4 GHz (16 FLOP/cycle), 8 GB, 433 Mb/s 802.11ac, 5 V 5 A"),
        Device("laptop", 16 * GIB, 358e9, 150e6, 28, "Intel Core i7-1165G7: 4 cores 2.8 GHz (32 FLOP/cycle), 28 W; 16 GB; Wi-Fi 6 AX201, 1.2 Gb/s at 80 MHz"),
        Device("jetson_agx_orin", 32 * GIB, 5.3e12, 1.25e9, 60, "NVIDIA Jetson AGX Orin data sheet: 2048 CUDA cores 1.3 GHz, 32 GB, 10 GbE, 15-60 W"),
        Device("v100", 32 * GIB, 15.7e12, 1.25e9, 300, "NVIDIA V100 SXM2 data sheet: 15.7 TFLOPS float32, 32 GB, 300 W; host with 10 GbE"),
    )
}  # fmt: skip
"""The device classes, weakest first; `source` says where the figures are from."""

MIXES: dict[str, dict[str, float]] = {
    "xsmall": {"raspberry_pi_4": 0.8, "raspberry_pi_5": 0.2},
    "small": {"raspberry_pi_4": 0.4, "raspberry_pi_5": 0.4, "laptop": 0.2},
    "medium": {"raspberry_pi_5": 0.3, "laptop": 0.4, "jetson_agx_orin": 0.3},
    "large": {"laptop": 0.2, "jetson_agx_orin": 0.4, "v100": 0.4},
    "xlarge": {"jetson_agx_orin": 0.1, "v100": 0.9},
}
"""Named fleets: device class -> share of the clients."""


def fleet_shares(mix: str, shares: Mapping[str, float]) -> dict[str, float]:
    """The share of every device class: what `shares` says, and the named mix scaled to what remains; weakest class first.

    Raises UserError for unknown names, negative shares, or shares above 1.
    """
    base = look_up(MIXES, mix, "fleet mix")
    for name, share in shares.items():
        look_up(DEVICES, name, "device class")
        if share < 0:
            raise UserError(f"fleet share of {name} must not be negative, got {share}")
    rest = {name: share for name, share in base.items() if name not in shares}
    left = 1 - sum(shares.values())
    if left < -1e-9 or (left > 1e-9 and not rest):
        raise UserError(f"fleet shares must add up to 1, got {sum(shares.values()):g}")
    scale = left / sum(rest.values()) if rest else 0.0
    result = {name: shares.get(name, rest.get(name, 0.0) * scale) for name in DEVICES}
    return {name: share for name, share in result.items() if share > 1e-9}


def assign_devices(
    shares: Mapping[str, float],
    clients: int,
    rng: np.random.Generator,
    values: NDArray[np.int64] | None = None,
    correlation: float = 0.0,
) -> list[str]:
    """A device class for every client: exact shares (largest remainders), in random order.

    `shares`: weakest class first. `values`: [clients]; with a rank correlation above 0, clients with high ones get strong devices, and
    below 0 weak ones (`correlated_ranks`).
    """
    exact = np.array(list(shares.values())) * clients
    counts = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(-(exact - counts), kind="stable")[: clients - counts.sum()]:
        counts[index] += 1
    names = np.repeat(np.array(list(shares)), counts)
    ranks = correlated_ranks(np.zeros(clients) if values is None else values, correlation, rng)
    return [str(name) for name in names[ranks]]
