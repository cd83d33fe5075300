"""What this machine reaches, measured: a device profile of it, and whether the estimates made with that profile hold.

Everything runs with one thread on the CPU, as a worker does, and what counts is the time of that CPU: on a machine with nothing else
to do it is the time that passes, and what else a busy one does is left out (but not that it takes caches and memory away).
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch
import yaml

from raffm_ray.architectures import Architecture, architecture_of, build, new_model, parse_config
from raffm_ray.axes import Plan
from raffm_ray.costs import costs_of
from raffm_ray.devices import Device
from raffm_ray.examples import Examples
from raffm_ray.freezing import for_training
from raffm_ray.layout import take_all
from raffm_ray.messages import views
from raffm_ray.objectives import OBJECTIVES
from raffm_ray.settings import LocalSettings
from raffm_ray.training import one_thread, train

PRODUCTS = ((80, 64, 256), (256, 128, 512), (1040, 192, 768), (1024, 384, 1536))
"""(positions of a batch, width, FFN width): the first matrix product of an FFN, from the digits' model to a MiniLM."""
COPIED_BYTES = 256 * 2**20
"""More than caches hold."""
STEPS = 4
"""Training steps that are timed together."""
LINK_BYTES_PER_SECOND, RADIO_WATTS, WATTS = 12.5e6, 1.0, 15.0
"""What is not measured: a link of 100 Mb/s each way, its interface's power, and the machine's, of the order of a laptop's core."""

Progress = Callable[[str], None]


def median_seconds(action: Callable[[], object], seconds: float, least: int = 3) -> float:
    """The median CPU time of an action that is repeated for so long, at least so often, after one run that does not count."""
    action()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return median(times)


def flops_per_second(products: Sequence[tuple[int, int, int]], seconds: float) -> float:
    """Sustained float32 FLOP/s: the median over matrix products [rows, inner] x [inner, columns], 2 x rows x inner x columns each."""
    rates = []
    for rows, inner, columns in products:
        one, other = torch.ones(rows, inner), torch.ones(inner, columns)
        taken = median_seconds(lambda one=one, other=other: one @ other, seconds / len(products))  # type: ignore[misc]
        rates.append(2 * rows * inner * columns / taken)
    return median(rates)


def memory_bytes_per_second(copied_bytes: int, seconds: float) -> float:
    """Sustained memory traffic of a copy, which reads every byte and writes it (as STREAM counts: McCalpin 1995)."""
    source = torch.ones(copied_bytes, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return 2 * copied_bytes / median_seconds(lambda: target.copy_(source), seconds)


def memory_bytes() -> tuple[int, int]:
    """All of the machine's memory, and what of it is free."""
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")


def step_seconds(architecture: Architecture, parameters: torch.Tensor, plan: Plan, examples: Examples, local: LocalSettings, seconds: float) -> float:  # fmt: skip
    """The median CPU time of a step of local training of a plan's subnetwork; `parameters`: the full model's, flat."""
    tensors = take_all(views(parameters, architecture.shapes), architecture.layout, plan)
    module = build(architecture, {name: values.clone() for name, values in tensors.items()}, plan)
    for_training(module, architecture.layout)
    share = np.arange(min(len(examples), STEPS * local.batch_size))
    timed = local.model_copy(update={"steps": STEPS})
    objective = OBJECTIVES[architecture.head]

    def run() -> None:
        train(module, objective, examples, share, timed, local.learning_rate, np.random.default_rng(0))

    with torch.random.fork_rng(devices=[]), one_thread():
        return median_seconds(run, seconds) / STEPS


def dispatch_seconds(seconds: float) -> float:
    """Seconds of a training step per parameter tensor where nothing is large enough to take time: a ViT of width 8."""
    config = {
        "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": 4, "patch_size": 2, "num_channels": 1, "num_labels": 2,
    }  # fmt: skip
    architecture = architecture_of(parse_config(config), "image_classification")
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in new_model(architecture, 0).parameters()])
    examples = Examples({"pixel_values": np.zeros((2 * STEPS, 1, 4, 4), dtype=np.float32)}, np.zeros(2 * STEPS, dtype=np.int64))
    taken = step_seconds(architecture, flat, Plan(), examples, LocalSettings(batch_size=2), seconds)
    return taken / costs_of(architecture, Plan()).tensors


def processor() -> str:
    """What the machine calls its processor."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def measure(watts: float | None, progress: Progress, seconds: float = 2.0, products: Sequence[tuple[int, int, int]] = PRODUCTS, copied_bytes: int = COPIED_BYTES) -> Device:  # fmt: skip
    """This machine as a device: one thread of it. `seconds`: for each of three measurements; `progress` is told what comes next."""
    with one_thread():
        progress("matrix products")
        flops = flops_per_second(products, seconds)
        progress("memory")
        traffic = memory_bytes_per_second(copied_bytes, seconds)
        progress("starting operators")
        dispatch = dispatch_seconds(seconds)
    total, free = memory_bytes()
    assumed = [f"link 100 Mb/s each way and {RADIO_WATTS:g} W"] + ([] if watts else [f"power {WATTS:g} W (--watts)"])
    return Device(
        memory_bytes=float(total), flops_per_second=_rounded(flops), memory_bytes_per_second=_rounded(traffic),
        down_bytes_per_second=LINK_BYTES_PER_SECOND, up_bytes_per_second=LINK_BYTES_PER_SECOND, dispatch_seconds=_rounded(dispatch),
        power_watts=watts or WATTS, radio_watts=RADIO_WATTS, sustained=1.0,
        source=f"measured with one thread of {processor()}, {free / 2**30:.1f} GiB of memory free; assumed: {', '.join(assumed)}",
    )  # fmt: skip


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def profile_text(name: str, device: Device) -> str:
    """A device as a file for `fleet.profiles`."""
    heading = (
        "# Measured by raffm-ray fleet calibrate: matrix products, a copy in memory, steps of a tiny model;\n"
        "# one thread, as a worker uses. The rates are what is reached, so `sustained` is 1. The link and its power are not measured,\n"
        "# nor is power_watts unless --watts gave it: set them to what this machine has.\n"
    )
    return heading + yaml.safe_dump({"devices": {name: device.model_dump()}}, sort_keys=False, width=1000)
