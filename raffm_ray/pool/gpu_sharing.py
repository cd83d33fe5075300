"""Workers that share a GPU: how many, their memory limits, and how a call that ran out of memory is run again. It does not use Ray."""

import os
from collections import deque
from collections.abc import Sequence

import torch

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import in_short
from raffm_ray.clients.messages import Call, describe_call
from raffm_ray.clients.stacked_training import stacking_groups
from raffm_ray.models.architecture import Architecture
from raffm_ray.settings.experiment import LocalSettings
from raffm_ray.subnetworks.costs import Costs, costs_of, with_prefixes

CONTEXT_BYTES = 600_000_000
"""What a process takes of a GPU besides its tensors: CUDA's context, kernels, workspaces of cuBLAS."""
USED = 0.9
"""Part of a GPU's memory that its workers are planned to need together: the rest is for what the estimate leaves out."""
LOSS_COPIES, DISTILLATION_COPIES = 3, 8
"""How often a step holds its outputs besides those that `Costs` counts: for a loss and its gradient, and where a prefix learns from the outputs
of the own plan. Of a language model they are the largest arrays of all. Counted while a step runs: 3.9 and 9.75 times the outputs in all."""


class GpuOutOfMemoryError(Exception):
    """A call needed more memory than its GPU had left; what it had allocated is freed."""


def training_bytes(
    own: Costs, clients: int = 1, smaller: Sequence[Costs] = (), prefix: str = "none", distill: bool = False
) -> int:
    """Estimate of what that many clients of a plan take when they are trained at once: of each, `Costs.memory_bytes`, in float32 whatever
    the precision, with the largest of the `smaller` plans that are its prefixes, what its trained parameters were before, and what the loss
    takes besides."""
    whole = with_prefixes(own, smaller, prefix, distill)
    copies = DISTILLATION_COPIES if distill and whole is not own else LOSS_COPIES
    return clients * (whole.memory_bytes + own.bytes_up + copies * own.output_bytes)


def worker_bytes(
    architecture: Architecture,
    stacks: Sequence[tuple[Plan, int]],
    local: LocalSettings,
    prefix: str = "none",
    distill: bool = False,
) -> int:
    """Estimate of what a worker takes of a GPU: the largest of (plan, clients trained at once), with smaller ones of these plans as its
    prefixes, a round's parameters and a block's sum of those that are trained, and CONTEXT_BYTES."""
    costs = [costs_of(architecture, plan, local.batch_size, local.optimizer) for plan, _ in stacks]
    largest = max(training_bytes(own, clients, costs, prefix, distill) for own, (_, clients) in zip(costs, stacks, strict=True))
    full = costs_of(architecture, Plan())
    return largest + full.bytes + full.bytes_up + CONTEXT_BYTES


def workers_a_gpu(need_bytes: float, memory_bytes: float, most: int) -> int:
    """The largest k of at most `most` for which k workers that need so much fit into USED of a GPU's memory; at least 1, for what one
    needs is an estimate."""
    return max(1, min(most, int(USED * memory_bytes // need_bytes)))


def memory_fraction(share: float, memory_bytes: float, alone: bool = False) -> float:
    """The part of a GPU's memory that torch may allocate in a worker with this share of it: an even part of what all workers' contexts
    leave, or all of that for a worker that is `alone` at work; at least half of an even part of the GPU."""
    workers = max(1, round(1 / share))
    left = max(0.5, 1 - workers * CONTEXT_BYTES / memory_bytes)
    return left if alone else left / workers


def gpu_memory_bytes() -> int:
    """Of the first GPU that torch sees, 0 where it sees none."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def limit_gpu_memory(share: float, alone: bool = False) -> None:
    """Keeps this process to `memory_fraction` of its GPU, where it has one."""
    if share and (memory := gpu_memory_bytes()):
        torch.cuda.set_per_process_memory_fraction(memory_fraction(share, memory, alone))


def use_deterministic_kernels() -> None:
    """Makes a GPU's sums come out the same every time, where there is one: torch refuses kernels that add in any order. Attention is
    flash or plain, whose backward passes repeat themselves; those of memory-efficient and of cuDNN's attention do not. New memory is not
    filled with numbers for it. To be called before the first kernel."""
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module with one attribute


def release_gpu_memory() -> None:
    """Gives back what torch keeps of a GPU for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_out_of_memory(architecture: Architecture, call: Call, error: Exception) -> str:
    """A call that found no room, in words: its round, its clients, the plan and memory of those that take most."""
    method, context, arguments, _ = call
    what = f"round {context.round}, {describe_call(call)}"
    if method == "block":
        local, sizes = context.local, []
        for plan, group in stacking_groups(arguments[0], context.stack):
            if plan is not None:
                names = (plan, *group[0].prefixes)
                own, *smaller = (costs_of(architecture, context.plans[one], local.batch_size, local.optimizer) for one in names)
                needed = training_bytes(own, len(group), smaller, group[0].prefix, bool(context.distill))
                sizes.append((needed, plan, len(group), own.params, bool(smaller)))
        if sizes:
            memory, plan, clients, params, beside = max(sizes)
            at_once = f"{clients} clients at once" if clients > 1 else "one client"
            prefixes = " with its prefixes" if beside else ""
            what += f", {at_once} of plan {plan} of {params:,} parameters{prefixes}, estimated at {memory / 1e9:.3g} GB"
    return f"{what}: a GPU was out of memory ({in_short(error)})"


HELP = "a smaller local.batch_size, local.precision bfloat16 or fewer pool.stack_clients would help"


class ExclusiveGpuQueue:
    """Calls that a GPU had no room for, in order: each runs again there, while nothing else does. It only decides; a pool acts."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[int]] = {}
        self._alone: dict[str, int] = {}

    def refused(self, gpu: str, index: int) -> bool:
        """Notes a call that found no room; whether it may run again: not if it was alone."""
        if self._alone.get(gpu) == index:
            return False
        self._waiting.setdefault(gpu, deque()).append(index)
        return True

    def closed(self) -> Sequence[str]:
        """GPUs on which no other calls may start: a call waits to be alone there, or is."""
        return list(dict.fromkeys([*self._waiting, *self._alone]))

    def waiting(self) -> Sequence[str]:
        """GPUs on which a call waits to be alone and none is."""
        return [gpu for gpu in self._waiting if gpu not in self._alone]

    def begin(self, gpu: str) -> int:
        """The next call that is alone there."""
        index = self._alone[gpu] = self._waiting[gpu].popleft()
        if not self._waiting[gpu]:
            del self._waiting[gpu]
        return index

    def ended(self, index: int) -> None:
        """Notes that a call came to its end, however that was."""
        self._alone = {gpu: other for gpu, other in self._alone.items() if other != index}

    def leave(self, gpu: str) -> list[int]:
        """Calls that waited for a GPU on which no worker is left; they no longer do."""
        return list(self._waiting.pop(gpu))
