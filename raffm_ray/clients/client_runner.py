"""Runs the jobs of clients: local training, calibration and evaluation. It does not use Ray.

A `ClientRunner` is a pure function of (frozen and trained parameters, round context, jobs): all else that it keeps is modules without weights
and indices of cuts, so a block may run anywhere, any number of times, and gives the same bits.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.axes.flat_parameters import Flat
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.plugins import Plugin
from raffm_ray.basics.profiling import Stopwatch
from raffm_ray.basics.seeding import generator, torch_seed
from raffm_ray.clients.block_sums import BlockSums, sum_weight
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.device_parameters import DeviceParameters
from raffm_ray.clients.evaluation.own_model import OwnModel, own_model, tune
from raffm_ray.clients.explained_errors import explaining_kernels, naming_clients
from raffm_ray.clients.local_training import ClientData, Training, computing
from raffm_ray.clients.messages import Job, Report, Result, RoundContext, Update
from raffm_ray.clients.module_factory import ModuleFactory, Parameters
from raffm_ray.clients.reach.block_reach import reach_of
from raffm_ray.clients.reach.own_words import OwnWords, own_words
from raffm_ray.clients.single_training import NONE, Remembered, Work, received_loss, train_alone
from raffm_ray.clients.stacked_training import stacking_groups, train_together
from raffm_ray.clients.training_result import TrainingResult
from raffm_ray.clients.update_checks import is_finite, refusal, refused_besides
from raffm_ray.data.examples import Examples, step_sizes, steps_of
from raffm_ray.data.metrics import Writing
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.attention_choice import attention_of
from raffm_ray.models.objectives import Objective, objective_of, training_objective
from raffm_ray.models.writing import write_greedily
from raffm_ray.subnetworks.calibration import add_statistics, collect
from raffm_ray.subnetworks.norm_correction import norm_statistics

T = TypeVar("T")
States = Mapping[int, ClientState] | None


@dataclass
class ClientRunner:
    """Everything a worker needs that does not change during a run. `shares`: by client, indices of `examples`; `gpu_bytes`: what a worker
    takes of a GPU, where it is asked for; `writing`: how the held-out part is answered in words, if it is; `plugins`: what a worker's process imports first; `deterministic`: whether a GPU may only use kernels that give the same bits every time."""

    architecture: Architecture
    examples: Examples
    shares: Sequence[NDArray[np.int64]]
    held_out: Examples
    validation: Examples | None = None
    device: str = "cpu"
    gpu_bytes: int = 0
    deterministic: bool = True
    writing: Writing | None = None
    plugins: tuple[Plugin, ...] = ()
    watch: Stopwatch = field(default_factory=Stopwatch)
    _held: DeviceParameters = field(default_factory=DeviceParameters, init=False, repr=False)

    @cached_property
    def module_factory(self) -> ModuleFactory:
        """Where its modules are made."""
        return ModuleFactory(self.architecture, self.watch, self.device)

    @cached_property
    def objective(self) -> Objective:
        """By which the model is measured."""
        return objective_of(self.architecture)

    @cached_property
    def training_objective(self) -> Objective:
        """What the model is trained for."""
        return training_objective(self.architecture)

    def hold(self, frozen: Flat) -> None:
        """Takes the frozen parameters of the calls that follow."""
        if self._held.hold(frozen):
            self.module_factory.frozen_cuts.clear()  # another array may come to lie where the last one was

    def forget(self) -> None:
        """Frees the copy of the parameters that a GPU keeps between blocks."""
        self._held.forget()
        self.module_factory.frozen_cuts.clear()

    def _parameters(self, flat: Flat, context: RoundContext, plan: int | None) -> dict[str, Tensor]:
        local = context.local  # a pool outlives a run, and the next one may compute in another precision
        self.module_factory.attention = attention_of(self.architecture, local.attention, local.precision, self.device)
        self.module_factory.precision, self.module_factory.sketched = local.precision, context.sketched
        self.module_factory.recomputes = local.gradient_checkpointing
        return self._held.named(flat, self.architecture, self.device, context.size_specific, context.copy_of(plan))

    def perform(self, method: str, context: RoundContext, flat: Flat, arguments: tuple[Any, ...]) -> Result:
        """A call's result, its small part with the seconds that it took by phase."""
        self.watch.taken()
        with explaining_kernels():
            small, large = getattr(self, method)(context, flat, *arguments)
        return (small, self.watch.taken()), large

    def block(
        self, context: RoundContext, flat: NDArray[np.float32], jobs: Sequence[Job], states: States = None
    ) -> tuple[Update, NDArray[np.float32]]:
        """Trains a block of clients in order; returns its reports and the flat sum of `weight x (trained - given)` of what it reaches (see `Reach`), behind it
        the same of the server's control variate where the flat parameters have one behind them. `states`: by client, what it keeps, if anything."""
        reach = reach_of(context, jobs, self.architecture, self._words if context.own_words else None)
        sums, reports, statistics, variate = BlockSums(self.module_factory, reach), [], None, self._variate(flat, context)
        for plan, group in stacking_groups(jobs, context.stack):
            parameters = self._parameters(flat, context, plan)
            try:
                with naming_clients(context, group):
                    together = (
                        self._train_together(parameters, context, group, plan) if len(group) > 1 and plan is not None else None
                    )
                for position, job in enumerate(group):
                    with naming_clients(context, [job]):
                        remembered = (states or {}).get(job.client), variate
                        report, trained, measured = self._client(
                            parameters, context, job, together[position] if together else None, remembered
                        )
                    reports.append(report)
                    if measured:
                        statistics = add_statistics(statistics, measured)
                    if trained is not None:
                        sums.add(job, trained, report.received_loss, context, parameters)
            finally:
                self.module_factory.release()
        with self.watch.during("return"):
            added = sums.total(len(flat), context).cpu().numpy()
        return Update(sums.weights, tuple(reports), statistics, sums.states, sums.products, sums.covers), added

    @cached_property
    def _words(self) -> OwnWords | None:
        return own_words(self.architecture, self.examples, self.shares)

    def _variate(self, flat: Flat, context: RoundContext) -> Tensor | None:
        """The server's control variate behind the flat numbers of the model and its copies, None where there is none."""
        if not CLIENT_UPDATES[context.local.client_update].variate:
            return None
        return self._held.behind(flat, len(flat) - sum(map(prod, self.architecture.trained_shapes.values())), self.device)

    def _client(
        self,
        parameters: Parameters,
        context: RoundContext,
        job: Job,
        trained: TrainingResult | None,
        remembered: Remembered = NONE,
    ) -> tuple[Report, TrainingResult | None, dict[str, Tensor] | None]:
        """One client's report, what came of its training and its statistics; the latter two are None where not asked for or refused.

        `trained`: what came of its training where it was trained together with others.
        """
        start, share, local = time.perf_counter(), self.shares[job.client], context.local
        steps, refused, statistics_refused, measured, received = 0, "", "", None, None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(context.seed, "client", context.round, job.client))
            if job.calibrate and context.statistic:
                with self.watch.during("calibrate"):
                    measured = self._calibrate(parameters, context, job.client, context.statistic)
                if not is_finite(measured.values()):
                    measured, statistics_refused = None, "statistics not finite"
            if job.plan is not None:
                with self.watch.during("train"):
                    if context.received_loss:
                        work = Work(job, self._training(context, job), self._data(context, job), *remembered)
                        received = received_loss(self.module_factory, parameters, context, self.examples, work, job.plan)
                    trained = trained or self._train(parameters, context, job, job.plan, remembered)
                steps = steps_of(len(share), local.batch_size, local.epochs, local.steps)
                counts = sum_weight(context, job, trained.change, received, parameters, self.module_factory)
                refused = refusal(trained.change, counts, context.norm_bound) or refused_besides(trained, job.weight)
        report = Report(
            client=job.client,
            plan=job.plan,
            examples=len(share),
            steps=steps,
            stepped=sum(step_sizes(len(share), local.batch_size, steps)),
            loss=trained.loss if trained else float("nan"),
            refused=refused,
            statistics_refused=statistics_refused,
            seconds=time.perf_counter() - start + (trained.seconds if trained else 0.0),
            forward_backward=tuple(sorted(trained.seen.items())) if trained else (),
            calibrated=min(len(share), context.calibration_examples) if job.calibrate else 0,
            statistics_values=sum(values.numel() for values in (measured or {}).values()),
            received_loss=received,
            ranks=trained.ranks if trained and not refused else None,
            state_bytes=trained.state.nbytes if trained and trained.state and not refused else None,
        )
        return report, None if refused else trained, measured

    def _train(
        self, parameters: Parameters, context: RoundContext, job: Job, number: int, remembered: Remembered = NONE
    ) -> TrainingResult:
        work = Work(job, self._training(context, job), self._data(context, job), *remembered)
        return train_alone(self.module_factory, parameters, context, self.examples, work, number)

    def _train_together(
        self, parameters: Parameters, context: RoundContext, jobs: Sequence[Job], number: int
    ) -> list[TrainingResult]:
        training, clients = self._training(context, jobs[0]), [self._data(context, job) for job in jobs]
        return train_together(self.module_factory, parameters, context, self.examples, jobs, number, training, clients)

    def _training(self, context: RoundContext, job: Job) -> Training:
        return Training(
            objective=self.training_objective,
            local=context.local,
            learning_rate=context.learning_rate,
            prefix=job.prefix,
            prefixes=len(job.prefixes),
            distill=context.distill,
            temperature=context.temperature,
            own=context.own,
            personal=frozenset(context.personal),
        )

    def _data(self, context: RoundContext, job: Job) -> ClientData:
        """A client's examples, and its generators, which are the same whether it is trained alone or with others."""
        drawn = [generator(context.seed, what, context.round, job.client) for what in ("batches", "prefixes", "augmentation")]
        return ClientData(self.shares[job.client], *drawn)

    def _calibrate(self, parameters: Parameters, context: RoundContext, client: int, statistic: str) -> dict[str, Tensor]:
        self.module_factory.precision = "float32"  # of a calibration, whose statistics are sums of squares
        model, layout = self.module_factory.module(parameters, Plan(), context.norms, observed=True), self.architecture.layout
        order = generator(context.seed, "calibration", context.round, client).permutation(self.shares[client])
        chosen = np.sort(order[: context.calibration_examples])
        asked = [self.examples.batch(part, self.device) for part in np.split(chosen, range(32, len(chosen), 32))]
        norms = norm_statistics(model, layout, asked) if context.measure_norms else {}
        return {**collect(model, layout, asked, statistic, self.objective), **norms}

    def evaluate(
        self, context: RoundContext, flat: Flat, plan: int, start: int, stop: int, validating: bool = False
    ) -> tuple[tuple[NDArray[np.float64], float, int], None]:
        """(answers [examples, k], summed loss, targets) of a plan's subnetwork on a slice of the held-out or validation part."""
        examples = self.validation if validating else self.held_out
        assert examples is not None

        def summed(output: Any, labels: Tensor) -> tuple[float, int]:
            return float(self.objective.loss(output, labels, "sum")), self.objective.targets(labels)

        [(answers, (loss, targets))] = self._answers(context, flat, OwnModel(plan), examples, [slice(start, stop)], summed)
        return (answers, loss, targets), None

    def evaluate_clients(
        self, context: RoundContext, flat: Flat, plan: int, indices: NDArray[np.int64]
    ) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], None]:
        """(answers [examples, k], losses and targets of each [examples, 2]) of a plan's subnetwork on some of the clients' examples."""
        return self.evaluate_client(context, flat, OwnModel(plan), [indices])

    def evaluate_client(
        self, context: RoundContext, flat: Flat, asked: OwnModel, batches: Sequence[NDArray[np.int64]]
    ) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], None]:
        """As `evaluate_clients`, of one client's own model, on batches of the clients' examples one after the other."""

        def each(output: Any, labels: Tensor) -> NDArray[np.float64]:
            return self.objective.each(output, labels).double().cpu().numpy()

        answers, losses = zip(*self._answers(context, flat, asked, self.examples, batches, each), strict=True)
        return (np.concatenate(answers), np.concatenate(losses)), None

    def _answers(
        self,
        context: RoundContext,
        flat: Flat,
        asked: OwnModel,
        examples: Examples,
        batches: Sequence[Any],
        losses: Callable[[Any, Tensor], T],
    ) -> list[tuple[NDArray[np.float64], T]]:
        with self.watch.during("evaluate"):
            try:
                module = self._module(flat, context, asked).eval()
                found, writing = [], self.writing
                for chosen in batches:
                    batch = examples.batch(chosen, self.device)
                    labels = batch.pop("labels")
                    with torch.inference_mode(), computing(context.local.precision, self.device):
                        output = module(**batch)
                        loss = losses(output, labels)
                        answers = write_greedily(module, batch, writing) if writing else self.objective.answers(output, labels)
                    found.append((answers.double().cpu().numpy(), loss))
                return found
            finally:
                self.module_factory.release()

    def _module(self, flat: Flat, context: RoundContext, asked: OwnModel) -> nn.Module:
        parameters = self._parameters(flat, context, asked.plan)
        module = own_model(self.module_factory, parameters, context, asked)
        if asked.tune_steps:
            job = Job(asked.client, asked.plan)
            training, client = self._training(context, job), self._data(context, job)
            tune(module, self.module_factory, self.examples, training, client, asked.tune_steps, context.held)
        return module
