"""What a client's round costs its device in seconds and joules, before the round or after it."""

from dataclasses import dataclass
from typing import NamedTuple

from raffm_ray.devices.profiles import Device
from raffm_ray.subnetworks.costs import Costs


class Workload(NamedTuple):
    """What is computed: floating-point operations, bytes read from and written to main memory, operators started (see `Costs`)."""

    flops: float = 0.0
    traffic_bytes: float = 0.0
    dispatches: float = 0.0

    def plus(self, other: "Workload") -> "Workload":
        """Both, one after the other."""
        return Workload(self.flops + other.flops, self.traffic_bytes + other.traffic_bytes, self.dispatches + other.dispatches)


@dataclass(frozen=True)
class DeviceCost:
    """One client's round on its device: receiving, computing and sending, one after the other.

    `phase_seconds`, `phase_joules`: of the three phases; `frozen_bytes_down`: of `bytes_down`, those of parameters that nobody trains.
    """

    bytes_down: int
    flops: float
    bytes_up: int
    phase_seconds: tuple[float, float, float]
    phase_joules: tuple[float, float, float]
    frozen_bytes_down: int = 0

    @property
    def compute_seconds(self) -> float:
        """Of computing."""
        return self.phase_seconds[1]

    @property
    def transfer_seconds(self) -> float:
        """Of receiving and sending."""
        return self.phase_seconds[0] + self.phase_seconds[2]

    @property
    def seconds(self) -> float:
        """From the first byte received to the last one sent."""
        return sum(self.phase_seconds)

    @property
    def energy_joules(self) -> float:
        """Of all phases."""
        return sum(self.phase_joules)

    def until(self, stop_seconds: float) -> "DeviceCost":
        """What has been spent when the client stops; a phase's bytes, FLOPs and joules are spread evenly over it."""
        if stop_seconds >= self.seconds:
            return self
        left, spent = stop_seconds, []
        for phase in self.phase_seconds:
            spent.append(min(phase, left))
            left -= spent[-1]
        down, computing, up = (part / phase if phase else 0.0 for part, phase in zip(spent, self.phase_seconds, strict=True))
        joules = self.phase_joules
        return DeviceCost(
            bytes_down=int(down * self.bytes_down),
            flops=computing * self.flops,
            bytes_up=int(up * self.bytes_up),
            phase_seconds=(spent[0], spent[1], spent[2]),
            phase_joules=(down * joules[0], computing * joules[1], up * joules[2]),
            frozen_bytes_down=int(down * self.frozen_bytes_down),
        )


def training_work(costs: Costs, examples: float, batch_size: float) -> Workload:
    """The work of training a plan on `examples` in steps of `batch_size` on average: FLOPs are exact, the rest is `Costs`' estimate."""
    steps = examples / batch_size
    traffic = costs.example_traffic_bytes * examples + costs.step_traffic_bytes * steps
    return Workload(costs.training_flops * examples, traffic, costs.tensors * steps)


def compute_seconds(device: Device, work: Workload) -> float:
    """Estimate by the roofline (Williams et al. 2009): the longer of computing and moving to and from memory, which overlap:

    max(c, m) + (1 - overlap) x min(c, m) + dispatches x dispatch seconds, c = FLOPs / (sustained x FLOP/s), m = bytes / (sustained x memory bytes/s).

    An overlap of 1, the default, is the roofline; one thread that does one operator after the other, each bound by one of the two, has
    0. The last term, of starting operators, is the overhead `o` of LogP (Culler et al. 1993): it does not depend on their size.
    """
    computing = work.flops / (device.flops_per_second * device.sustained)
    moving = work.traffic_bytes / (device.memory_bytes_per_second * device.sustained)
    shorter = (1 - device.overlap) * min(computing, moving)
    return max(computing, moving) + shorter + work.dispatches * device.dispatch_seconds


def transfer_seconds(device: Device, moved_bytes: float, bytes_per_second: float) -> float:
    """Estimate: latency + bytes / (sustained x rate) (Hockney 1994); nothing sent takes no time."""
    return device.latency_seconds + moved_bytes / (bytes_per_second * device.sustained) if moved_bytes else 0.0


def device_cost(device: Device, work: Workload, bytes_down: int, bytes_up: int) -> DeviceCost:
    """What one client's round costs: it downloads, computes, uploads, one after the other.

    Joules are an estimate: rated power x computing seconds, as Qiu et al. 2023 (A first look into the carbon footprint of federated
    learning) do, and the network interface's power x transferring seconds. That power is taken as constant; it grows with throughput
    (Huang et al. 2012, A close examination of performance and power characteristics of 4G LTE networks). Idle power and what routers
    and the server use are left out.
    """
    computing = compute_seconds(device, work)
    down = transfer_seconds(device, bytes_down, device.down_bytes_per_second)
    up = transfer_seconds(device, bytes_up, device.up_bytes_per_second)
    joules = (device.radio_watts * down, device.power_watts * computing, device.radio_watts * up)
    return DeviceCost(
        bytes_down=bytes_down, flops=work.flops, bytes_up=bytes_up, phase_seconds=(down, computing, up), phase_joules=joules
    )
