"""Runs jobs: one client's local training, calibration, and evaluation. No Ray in it.

A `Runner` is a pure function of (flat parameters, package, jobs): it keeps nothing between blocks but modules without weights
that matter, so a block may run anywhere, any number of times, and gives the same bits.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.architectures import Architecture, install, skeleton
from raffm_ray.axes import (
    Layout,
    Plan,
    Selection,
    Selections,
    kept_size,
    scatter_add_selected,
    selections,
    take_selected,
)
from raffm_ray.config import LocalSettings
from raffm_ray.data import Examples, batches, steps_of
from raffm_ray.messages import Job, Package, Report, Update, views
from raffm_ray.nesting import cut_layout, within
from raffm_ray.norms import correct_norms, norm_statistics
from raffm_ray.salience import add_statistics, collect
from raffm_ray.seeding import generator, torch_seed

T = TypeVar("T")
Parameters = Mapping[str, Tensor]
REMEMBERED = 32
"""Modules, and cuts, that a worker keeps for reuse."""
Optimizer = Callable[[list[nn.Parameter], float, float], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": lambda parameters, rate, decay: torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True),
    "sgd": lambda parameters, rate, decay: torch.optim.SGD(parameters, lr=rate, weight_decay=decay),
    "momentum": lambda parameters, rate, decay: torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.9),
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs with one torch thread: how a sum is split over threads changes its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class Prefix:
    """A smaller plan that is trained inside a client's own: a module, and where its parameters lie in the client's."""

    plan: int
    module: nn.Module
    shared: list[tuple[Tensor, Tensor, Selection]]
    """(the client's parameter, the prefix's, what the prefix takes of it)."""


def backward(module: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Adds the gradient of the mean cross-entropy of a batch to a module's parameters; returns the loss."""
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    loss = nn.functional.cross_entropy(module(**inputs).logits, batch["labels"])
    loss.backward()
    return float(loss.detach())


def backward_prefix(prefix: Prefix, batch: Mapping[str, Tensor]) -> None:
    """Adds a prefix's gradient to the client's own: the prefix reads by `take`, so its gradient returns by `scatter_add`."""
    with torch.no_grad():
        for mine, theirs, selected in prefix.shared:
            theirs.copy_(take_selected(mine, selected))
            theirs.grad = None
    backward(prefix.module, batch)
    for mine, theirs, selected in prefix.shared:
        if theirs.grad is not None:
            if mine.grad is None:
                mine.grad = torch.zeros_like(mine)
            scatter_add_selected(mine.grad, theirs.grad, selected)


def choose(prefix: str, prefixes: Sequence[Prefix], rng: np.random.Generator) -> tuple[bool, Prefix | None]:
    """Whether a step trains the own plan, and which prefix besides.

    "smallest": the own plan and the smallest prefix (sandwich rule: Yu and Huang 2019); "random": the own plan and one at random;
    "one": either, at random, no extra compute (ordered dropout: Horvath et al. 2021).
    """
    if not prefixes or prefix == "none":
        return True, None
    if prefix == "smallest":
        return True, prefixes[0]
    drawn = int(rng.integers(len(prefixes) + (prefix == "one")))
    return (True, None) if drawn == len(prefixes) else (prefix == "random", prefixes[drawn])


def train(
    module: nn.Module, prefixes: Sequence[Prefix], job: Job, examples: Examples, share: NDArray[np.int64],
    local: LocalSettings, learning_rate: float, rng: np.random.Generator,
) -> tuple[float, dict[int, int]]:  # fmt: skip
    """Plain local training of a module, in place. Returns the mean loss and the examples seen by plan (`Job.plan`'s numbers)."""
    assert job.plan is not None
    parameters = list(module.parameters())
    optimizer = OPTIMIZERS[local.optimizer](parameters, learning_rate, local.weight_decay)
    seen: dict[int, int] = {}
    losses: list[float] = []
    steps = steps_of(len(share), local.batch_size, local.epochs, local.steps)
    device = str(parameters[0].device)
    for indices in batches(share, local.batch_size, steps, rng):
        batch = examples.batch(indices, device)
        optimizer.zero_grad(set_to_none=True)
        whole, prefix = choose(job.prefix, prefixes, rng)
        if whole:
            losses.append(backward(module, batch))
            seen[job.plan] = seen.get(job.plan, 0) + len(indices)
        if prefix:
            backward_prefix(prefix, batch)
            seen[prefix.plan] = seen.get(prefix.plan, 0) + len(indices)
        if local.clip is not None:
            nn.utils.clip_grad_norm_(parameters, local.clip)
        optimizer.step()
    return float(np.mean(losses)) if losses else float("nan"), seen


def _remember(memory: dict[object, T], key: object, make: Callable[[], T]) -> T:
    """`memory[key]`, made where it is missing; the oldest is dropped beyond a fixed number."""
    if key not in memory:
        if len(memory) >= REMEMBERED:
            memory.pop(next(iter(memory)))
        memory[key] = make()
    return memory[key]


@dataclass
class Runner:
    """Everything a worker needs that does not change during a run."""

    architecture: Architecture
    examples: Examples
    shares: Sequence[NDArray[np.int64]]
    held_out: Examples
    device: str = "cpu"
    skeletons: dict[object, nn.Module] = field(default_factory=dict)
    cuts: dict[object, Selections] = field(default_factory=dict)

    def _parameters(self, flat: NDArray[np.float32]) -> dict[str, Tensor]:
        # The array may be shared memory that torch could write to although it is read-only: `_module` copies out of it.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return views(torch.from_numpy(flat), self.architecture.shapes)

    def _selections(self, plan: Plan) -> Selections:
        return _remember(self.cuts, plan.key, lambda: selections(self.architecture.shapes, self.architecture.layout, plan))

    def _module(self, parameters: Parameters, plan: Plan, package: Package) -> nn.Module:
        """The plan's module with its own copy of the weights."""
        cut = {name: take_selected(parameters[name], selected) for name, selected in self._selections(plan).items()}
        tensors = correct_norms(cut, plan, self.architecture.layout, package.norms)
        owned = {name: values.to(self.device, copy=True) for name, values in tensors.items()}
        # Plans of the same widths differ only in which indices they keep, so their modules differ only in weights.
        widths = (
            str(plan.get("layers")),
            tuple(kept_size(name, self.architecture.layout.axes, plan) for name in self.architecture.layout.axes),
        )
        module = install(_remember(self.skeletons, widths, lambda: skeleton(self.architecture, plan)), owned)
        module.zero_grad(set_to_none=True)
        return module

    def block(self, package: Package, flat: NDArray[np.float32], jobs: Sequence[Job]) -> tuple[Update, NDArray[np.float32]]:
        """Trains a block of clients in order; returns its reports and the flat sum of `examples x (trained - given)`."""
        parameters = self._parameters(flat)
        sums: dict[int, dict[str, Tensor]] = {}
        weights: dict[int, float] = {}
        reports, statistics = [], None
        for job in jobs:
            start = time.perf_counter()
            share = self.shares[job.client]
            seen: dict[int, int] = {}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch_seed(package.seed, "client", package.round, job.client))
                if job.calibrate and package.statistic:
                    added = self._calibrate(parameters, package, share)
                    statistics = add_statistics(statistics, added)
                loss, steps, accepted = float("nan"), 0, True
                if job.plan is not None:
                    loss, seen, change = self._train(parameters, package, job, share)
                    accepted = all(bool(values.isfinite().all()) for values in change.values())
                    steps = steps_of(len(share), package.local.batch_size, package.local.epochs, package.local.steps)
                    if accepted:
                        own = sums.setdefault(job.plan, {name: torch.zeros_like(values) for name, values in change.items()})
                        for name, values in change.items():
                            own[name].add_(values, alpha=len(share))
                        weights[job.plan] = weights.get(job.plan, 0.0) + len(share)
            reports.append(
                Report(
                    job.client,
                    job.plan,
                    len(share),
                    steps,
                    loss,
                    time.perf_counter() - start,
                    accepted,
                    tuple(sorted(seen.items())),
                )
            )
        total = torch.zeros(flat.shape[0])
        named = views(total, self.architecture.shapes)
        for plan, changes in sorted(sums.items()):
            for name, values in changes.items():
                scatter_add_selected(named[name], values, self._selections(package.plans[plan])[name])
        return Update(weights, tuple(reports), statistics), total.numpy()

    def _train(
        self, parameters: Parameters, package: Package, job: Job, share: NDArray[np.int64]
    ) -> tuple[float, dict[int, int], dict[str, Tensor]]:
        assert job.plan is not None
        plan = package.plans[job.plan]
        module = self._module(parameters, plan, package)
        module.train()
        given = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        own = dict(module.named_parameters())
        inner = cut_layout(self.architecture.layout, plan)
        prefixes = [self._prefix(parameters, package, number, plan, inner, own) for number in job.prefixes]
        rng = generator(package.seed, "batches", package.round, job.client)
        loss, seen = train(module, prefixes, job, self.examples, share, package.local, package.learning_rate, rng)
        change = {name: (parameter.detach() - given[name]).cpu() for name, parameter in module.named_parameters()}
        return loss, seen, change

    def _prefix(
        self, parameters: Parameters, package: Package, number: int, outer: Plan, inner: Layout, own: Parameters
    ) -> Prefix:
        plan = package.plans[number]
        module = self._module(parameters, plan, package)
        module.train()
        sizes = {name: tuple(values.shape) for name, values in own.items()}
        chosen = selections(sizes, inner, within(plan, outer, self.architecture.layout))
        return Prefix(number, module, [(own[name], theirs, chosen[name]) for name, theirs in module.named_parameters()])

    def _calibrate(self, parameters: Parameters, package: Package, share: NDArray[np.int64]) -> dict[str, Tensor]:
        assert package.statistic is not None
        model = self._module(parameters, Plan(), package)
        rng = generator(package.seed, "calibration", package.round)
        chosen = np.sort(rng.permutation(share)[: package.calibration_examples])
        parts = np.split(chosen, range(32, len(chosen), 32))
        layout, asked = self.architecture.layout, [self.examples.batch(part, self.device) for part in parts]
        norms = norm_statistics(model, layout, asked) if package.measure_norms else {}
        return {**collect(model, layout, asked, package.statistic), **norms}

    def evaluate(
        self, package: Package, flat: NDArray[np.float32], plan: int, start: int, stop: int
    ) -> tuple[tuple[int, float, int], None]:
        """(correct answers, summed cross-entropy, examples) of a plan's subnetwork on a slice of the held-out part."""
        module = self._module(self._parameters(flat), package.plans[plan], package).eval()
        batch = self.held_out.batch(slice(start, stop), self.device)
        labels = batch.pop("labels")
        with torch.inference_mode():
            logits = module(**batch).logits
            loss = float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        return (int((logits.argmax(-1) == labels).sum()), loss, len(labels)), None
