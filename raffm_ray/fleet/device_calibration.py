"""Measures this machine: writes its device profile, and compares estimates made with it with measured times.

Everything runs with one thread on the CPU, as a worker does, and what counts is the time of that CPU: on a machine with nothing else
to do it is the time that passes, and what else a busy one does is left out (but not that it takes caches and memory away).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import yaml

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.machine import memory_bytes, processor, usable_cores
from raffm_ray.clients.client_updates import train
from raffm_ray.clients.local_training import ClientData, Training, one_thread
from raffm_ray.data.examples import Examples
from raffm_ray.devices.profiles import Device, Host
from raffm_ray.fleet.reference_models import REFERENCES, Row, driver, fitted, others_busy, references, seconds_in_turns
from raffm_ray.models.architecture import Architecture, build
from raffm_ray.models.freezing import for_training
from raffm_ray.models.objectives import objective_of
from raffm_ray.pool.worker import keep_freed_memory
from raffm_ray.settings.experiment import LocalSettings

STEPS = 4
"""Training steps that are timed together."""
LINK_BYTES_PER_SECOND, RADIO_WATTS, WATTS = 12.5e6, 1.0, 15.0
"""What is not measured: a link of 100 Mb/s each way, its interface's power, and the machine's, of the order of a laptop's core."""

Progress = Callable[[str], None]


def step_seconds(
    architecture: Architecture, parameters: torch.Tensor, plan: Plan, examples: Examples, local: LocalSettings, seconds: float
) -> float:
    """The median CPU time of a step of local training of a plan's subnetwork; `parameters`: the full model's, flat."""
    tensors = take_all(views(parameters, architecture.shapes), architecture.layout, plan)
    module = build(architecture, {name: values.clone() for name, values in tensors.items()}, plan)
    for_training(module, architecture.layout)
    share = np.arange(min(len(examples), STEPS * local.batch_size))
    timed = local.model_copy(update={"steps": STEPS})
    training = Training(objective_of(architecture), timed, local.learning_rate or 0.0)

    def run() -> None:
        train(module, training, examples, ClientData(share, np.random.default_rng(0), np.random.default_rng(0)))

    with torch.random.fork_rng(devices=[]), one_thread():
        return seconds_in_turns([run], seconds)[0] / STEPS


def measure(
    watts: float | None,
    progress: Progress,
    seconds: float = 0.6,
    rows: Sequence[Row] = REFERENCES,
    others: int | None = None,
    host_of: Callable[[], Host] = driver,
) -> Device:
    """This machine as a device: one core of it while all others are busy too, as workers are. `seconds`: for each of the references;
    `others`: how many cores are kept busy meanwhile; `host_of`: what the driver takes; `progress` is told what comes next."""
    beside = usable_cores() - 1 if others is None else others
    with one_thread(), torch.random.fork_rng(devices=[]):
        progress("training reference models")
        keep_freed_memory()
        with others_busy(beside):
            blocks = list(references(rows))
            taken = seconds_in_turns([block for _, block in blocks], seconds)
            rates = fitted([(work, each) for (work, _), each in zip(blocks, taken, strict=True)])
        progress("a driver's rounds")
        host = host_of()
    total, free = memory_bytes()
    assumed = [f"link 100 Mb/s each way and {RADIO_WATTS:g} W"] + ([] if watts else [f"power {WATTS:g} W (--watts)"])
    return Device(
        memory_bytes=float(total),
        flops_per_second=_rounded(rates.flops_per_second),
        memory_bytes_per_second=_rounded(rates.memory_bytes_per_second),
        down_bytes_per_second=LINK_BYTES_PER_SECOND,
        up_bytes_per_second=LINK_BYTES_PER_SECOND,
        dispatch_seconds=_rounded(rates.dispatch_seconds),
        overlap=0.0,
        power_watts=watts or WATTS,
        radio_watts=RADIO_WATTS,
        sustained=1.0,
        host=Host(
            stacked_dispatch_seconds=_rounded(rates.stacked_dispatch_seconds),
            round_seconds=_rounded(host.round_seconds),
            round_bytes_per_second=_rounded(host.round_bytes_per_second),
        ),
        source=f"measured with one thread of {processor()}, {beside} other cores busy, {free / 2**30:.1f} GiB of memory free; "
        f"assumed: {', '.join(assumed)}",
    )


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def profile_text(name: str, device: Device) -> str:
    """A device as a file for `fleet.profiles`."""
    heading = (
        "# Measured by raffm-ray fleet calibrate: rates that fit training steps of reference models best; one thread, as a worker uses, with\n"
        "# the other cores busy. They are what is reached, so `sustained` is 1. The link and its power are not measured,\n"
        "# nor is power_watts unless --watts gave it: set them to what this machine has.\n"
    )
    return heading + yaml.safe_dump({"devices": {name: device.model_dump()}}, sort_keys=False, width=1000)
