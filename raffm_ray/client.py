"""Runs jobs: one client's local training, calibration, and evaluation. No Ray in it.

A `Runner` is a pure function of (flat parameters, package, jobs): all that it keeps between blocks is modules without weights and
indices of cuts, so a block may run anywhere, any number of times, and gives the same bits.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.architectures import Architecture, skeleton, skeleton_key
from raffm_ray.architectures.modules import install
from raffm_ray.axes import Plan, Selections, scatter_add_selected, take_selected
from raffm_ray.calibration import add_statistics, collect
from raffm_ray.examples import Examples, steps_of
from raffm_ray.layout import selections
from raffm_ray.messages import Job, Package, Report, Update, views
from raffm_ray.nesting import cut_layout, within
from raffm_ray.norms import correct_norms, norm_factors, norm_statistics, relative_factors
from raffm_ray.objectives import OBJECTIVES, Objective
from raffm_ray.seeding import generator, torch_seed
from raffm_ray.training import Prefix, train

T = TypeVar("T")
Parameters = Mapping[str, Tensor]
REMEMBERED = 32
"""Modules without weights, and cuts, that a worker keeps for reuse."""


def _remember(memory: dict[object, T], key: object, make: Callable[[], T]) -> T:
    """`memory[key]`, made where it is missing; the oldest is dropped beyond a fixed number."""
    if key not in memory:
        if len(memory) >= REMEMBERED:
            memory.pop(next(iter(memory)))
        memory[key] = make()
    return memory[key]


def _is_finite(tensors: Mapping[str, Tensor]) -> bool:
    # Least and greatest are NaN where any value is, and no copy of the values is made.
    return all(bool(torch.stack(values.aminmax()).isfinite().all()) for values in tensors.values())


@dataclass
class Skeleton:
    """A module for plans of the same widths, and the weightless parameters that it holds while it is not used."""

    module: nn.Module
    empty: dict[str, Tensor]


@dataclass
class Runner:
    """Everything a worker needs that does not change during a run. `shares`: by client, indices of `examples`."""

    architecture: Architecture
    examples: Examples
    shares: Sequence[NDArray[np.int64]]
    held_out: Examples
    device: str = "cpu"
    validation: Examples | None = None
    skeletons: dict[object, Skeleton] = field(default_factory=dict)
    cuts: dict[object, Selections] = field(default_factory=dict)
    in_use: list[Skeleton] = field(default_factory=list)

    @property
    def objective(self) -> Objective:
        """What the model's head is trained for."""
        return OBJECTIVES[self.architecture.head]

    def _parameters(self, flat: NDArray[np.float32]) -> dict[str, Tensor]:
        # The array may be shared memory that torch could write to although it is read-only: `_module` copies out of it.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return views(torch.from_numpy(flat), self.architecture.shapes)

    def _selections(self, plan: Plan) -> Selections:
        return _remember(self.cuts, plan.key, lambda: selections(self.architecture.shapes, self.architecture.layout, plan))

    def _skeleton(self, plan: Plan) -> Skeleton:
        module = skeleton(self.architecture, plan)
        return Skeleton(module, dict(module.named_parameters()))

    def _module(self, parameters: Parameters, plan: Plan, package: Package) -> nn.Module:
        """The plan's module with its own copy of the weights, until `_release`."""
        layout = self.architecture.layout
        cut = {name: take_selected(parameters[name], selected) for name, selected in self._selections(plan).items()}
        tensors = correct_norms(cut, norm_factors(plan, layout, package.norms))
        owned = {name: values.to(self.device, copy=True) for name, values in tensors.items()}
        chosen = _remember(self.skeletons, skeleton_key(self.architecture, plan), lambda: self._skeleton(plan))
        self.in_use.append(chosen)
        return install(chosen.module, owned)

    def _release(self) -> None:
        """Takes the weights and gradients out of the modules used, so that only skeletons stay in memory."""
        while self.in_use:
            used = self.in_use.pop()
            install(used.module, used.empty)

    def block(self, package: Package, flat: NDArray[np.float32], jobs: Sequence[Job]) -> tuple[Update, NDArray[np.float32]]:
        """Trains a block of clients in order; returns its reports and the flat sum of `weight x (trained - given)`."""
        parameters = self._parameters(flat)
        sums: dict[int, dict[str, Tensor]] = {}
        weights: dict[int, float] = {}
        reports, statistics = [], None
        for job in jobs:
            try:
                report, change, measured = self._client(parameters, package, job)
            finally:
                self._release()
            reports.append(report)
            if measured:
                statistics = add_statistics(statistics, measured)
            if change and job.plan is not None:
                if job.plan not in sums:
                    sums[job.plan] = {name: values.mul_(job.weight) for name, values in change.items()}
                else:
                    for name, values in change.items():
                        sums[job.plan][name].add_(values, alpha=job.weight)
                weights[job.plan] = weights.get(job.plan, 0.0) + job.weight
        total = torch.zeros(flat.shape[0])
        named = views(total, self.architecture.shapes)
        for plan, changes in sorted(sums.items()):
            for name, values in changes.items():
                scatter_add_selected(named[name], values, self._selections(package.plans[plan])[name])
        return Update(weights, tuple(reports), statistics), total.numpy()

    def _client(
        self, parameters: Parameters, package: Package, job: Job
    ) -> tuple[Report, dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """One client's report, its change and its statistics; the latter two are None where not asked for or not finite."""
        start, share, local = time.perf_counter(), self.shares[job.client], package.local
        loss, steps, accepted = float("nan"), 0, True
        seen: dict[int, int] = {}
        change = measured = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(package.seed, "client", package.round, job.client))
            if job.calibrate and package.statistic:
                measured = self._calibrate(parameters, package, job.client, package.statistic)
                if not _is_finite(measured):
                    measured, accepted = None, False
            if job.plan is not None:
                loss, seen, change = self._train(parameters, package, job, job.plan)
                steps = steps_of(len(share), local.batch_size, local.epochs, local.steps)
                if not _is_finite(change):
                    change, accepted = None, False
        report = Report(
            client=job.client, plan=job.plan, examples=len(share), steps=steps, loss=loss, accepted=accepted,
            seconds=time.perf_counter() - start, forward_backward=tuple(sorted(seen.items())),
            calibrated=min(len(share), package.calibration_examples) if job.calibrate else 0,
            statistics_values=sum(values.numel() for values in (measured or {}).values()),
        )  # fmt: skip
        return report, change, measured

    def _train(
        self, parameters: Parameters, package: Package, job: Job, number: int
    ) -> tuple[float, dict[int, int], dict[str, Tensor]]:
        plan, where = package.plans[number], (package.round, job.client)
        module = self._module(parameters, plan, package).train()
        own = dict(module.named_parameters())
        given = {name: parameter.detach().clone() for name, parameter in own.items()}
        made: dict[int, Prefix] = {}

        def prefix_at(position: int) -> Prefix:
            if position not in made:
                made[position] = self._prefix(parameters, package, package.plans[job.prefixes[position]], plan, own)
            return made[position]

        loss, seen = train(
            module, self.objective, self.examples, self.shares[job.client], package.local, package.learning_rate,
            generator(package.seed, "batches", *where), job.prefix, len(job.prefixes), prefix_at,
            generator(package.seed, "prefixes", *where), given, package.distill, package.temperature,
        )  # fmt: skip
        change = {name: parameter.detach().sub_(given[name]).cpu() for name, parameter in own.items()}
        return loss, {number if at is None else job.prefixes[at]: count for at, count in seen.items()}, change

    def _prefix(self, parameters: Parameters, package: Package, plan: Plan, outer: Plan, own: Parameters) -> Prefix:
        layout = self.architecture.layout
        module = self._module(parameters, plan, package).train()
        theirs = dict(module.named_parameters())
        sizes = {name: tuple(values.shape) for name, values in own.items()}
        chosen = selections(sizes, cut_layout(layout, outer), within(plan, outer, layout))
        factors = relative_factors(norm_factors(plan, layout, package.norms), norm_factors(outer, layout, package.norms))
        norms = [
            (theirs[f"{name}.weight"], theirs.get(f"{name}.bias"), scale, shift)
            for name, (scale, shift) in factors.items()
            if f"{name}.weight" in theirs
        ]
        return Prefix(module, [(own[name], values, chosen[name]) for name, values in theirs.items()], norms)

    def _calibrate(self, parameters: Parameters, package: Package, client: int, statistic: str) -> dict[str, Tensor]:
        model, layout = self._module(parameters, Plan(), package), self.architecture.layout
        order = generator(package.seed, "calibration", package.round, client).permutation(self.shares[client])
        chosen = np.sort(order[: package.calibration_examples])
        asked = [self.examples.batch(part, self.device) for part in np.split(chosen, range(32, len(chosen), 32))]
        norms = norm_statistics(model, layout, asked) if package.measure_norms else {}
        return {**collect(model, layout, asked, statistic, self.objective), **norms}

    def evaluate(
        self, package: Package, flat: NDArray[np.float32], plan: int, start: int, stop: int, validating: bool = False
    ) -> tuple[tuple[NDArray[np.float64], float, int], None]:
        """(answers [examples, k], summed loss, targets) of a plan's subnetwork on a slice of the held-out or validation part."""
        examples = self.validation if validating else self.held_out
        assert examples is not None
        try:
            module = self._module(self._parameters(flat), package.plans[plan], package).eval()
            batch = examples.batch(slice(start, stop), self.device)
            labels = batch.pop("labels")
            with torch.inference_mode():
                output = module(**batch)
                loss = float(self.objective.loss(output, labels, "sum"))
                answers = self.objective.answers(output, labels).double().cpu().numpy()
            return (answers, loss, self.objective.targets(labels)), None
        finally:
            self._release()
