"""`Setup`: what stays the same in a run. `ServerState`: what the next round depends on. `Round`: one round's work."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import compress, pairwise
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError, look_up, near_miss
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.devices.availability import Availability
from raffm_ray.devices.profiles import Device
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.freezing import named_parameters, split, to_array
from raffm_ray.server.aggregation import AGGREGATION_RULES
from raffm_ray.server.agnostic_mixture import Mixture, first_mixture
from raffm_ray.server.clock import VirtualClock, Visit
from raffm_ray.server.held_parameters import Held
from raffm_ray.server.optimizers import Moments
from raffm_ray.server.selection.records import Records
from raffm_ray.server.selection.table import check_selection, first_records
from raffm_ray.server.strategies import STRATEGIES, Strategy
from raffm_ray.settings.experiment import Experiment
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.calibration import Statistics
from raffm_ray.subnetworks.costs import Costs, costs_of
from raffm_ray.subnetworks.extraction import Cutting
from raffm_ray.subnetworks.salience import Scores
from raffm_ray.subnetworks.size_specific import size_specific_names, with_copies
from raffm_ray.subnetworks.unit_coverage import Reached


@lru_cache(maxsize=4096)  # a round asks for the same few plans once or more for every client
def _costs(architecture: Architecture, plan: Plan, batch_size: int, optimizer: str) -> Costs:
    return costs_of(architecture, plan, batch_size, optimizer)


@dataclass(frozen=True)
class Setup:
    """What does not change during a run. `budgets`: by device type, weakest first; `device_types`: that of every client;
    `examples`: how many each trains on; `unseen`: the clients that are kept from training; `devices`: all device types that are known; `availability`: who is awake when; `not_stacked`: why clients must be trained one by one, None
    where they need not."""

    experiment: Experiment
    architecture: Architecture
    strategy: Strategy
    budgets: Mapping[str, Budget]
    device_types: Sequence[str]
    examples: Sequence[int]
    devices: Mapping[str, Device]
    availability: Availability
    not_stacked: str | None = None
    unseen: frozenset[int] = frozenset()

    @property
    def measures_received(self) -> bool:
        """Whether clients measure the parameters that they receive before they train."""
        return self.experiment.server.fair_exponent > 0 or self.experiment.server.agnostic_rate > 0

    @cached_property
    def client_weights(self) -> NDArray[np.float64]:
        """[clients]: what each counts in an average, as `client_weight` says."""
        return (self.owners if self.strategy.client_weight == "equal" else self.example_counts).astype(np.float64)

    @property
    def cutting(self) -> Cutting:
        """How plans may be cut, where no ranking has chosen another pace."""
        settings = self.experiment.extraction
        return Cutting(settings.steps, settings.floors, settings.reserves, settings.pace or 0.0)

    @cached_property
    def owners(self) -> NDArray[np.bool_]:
        """[clients]: who has examples."""
        found = np.asarray(self.examples) > 0
        found.setflags(write=False)
        return found

    @cached_property
    def example_counts(self) -> NDArray[np.int64]:
        """[clients]: `examples`."""
        return np.asarray(self.examples, dtype=np.int64)

    @cached_property
    def device_type_numbers(self) -> NDArray[np.int32]:
        """[clients]: the position of each one's device type in `budgets`."""
        number = {name: position for position, name in enumerate(self.budgets)}
        return np.array([number[name] for name in self.device_types], dtype=np.int32)

    @cached_property
    def owners_by_device_type(self) -> Mapping[str, int]:
        """How many clients of each device type have examples."""
        return Counter(compress(self.device_types, self.owners.tolist()))

    @cached_property
    def size_specific(self) -> tuple[str, ...]:
        """The parameters of which sizes have copies of their own. Raises UserError as `size_specific_names`."""
        return size_specific_names(self.architecture.layout, self.experiment.strategy.own)

    def costs(self, plan: Plan) -> Costs:
        """What a plan costs with this experiment's local training."""
        return _costs(self.architecture, plan, self.experiment.local.batch_size, self.experiment.local.optimizer)


@dataclass(frozen=True)
class Best:
    """The best validated round so far: its number and validation metric, and how many evaluations came since without a better one.

    `state`: the model of that round and what its subnetworks are cut by; None where it is not to be kept.
    """

    round: int
    validation: float
    since: int = 0
    state: "ServerState | None" = None


@dataclass(frozen=True)
class ServerState:
    """All that the next round depends on. `parameters`: flat, the trained ones and the copies that sizes have of their own; `frozen`: flat, the
    others, the same in every round and in no checkpoint; `held`: what devices have of them; `pending`: statistics reported since the last ranking; `norms`: from before it; `moments`:
    the server optimizer's; `best`: None before a first validation; `reached`: of `reached_weight`, the weight of all updates so far; `pace`: of
    the ranked list, chosen with the scores (see `Cutting`); `records`: of clients, None where the selection reads none; `mixture`: of device types, None without `server.agnostic_rate`."""

    round: int
    parameters: Tensor
    scores: Scores
    pending: Statistics | None = None
    norms: Statistics = field(default_factory=dict)
    ranked_at: int = 0
    moments: Moments = field(default_factory=dict)
    best: Best | None = None
    clock: VirtualClock = field(default_factory=VirtualClock)
    reached: Reached = field(default_factory=dict)
    reached_weight: float = 0.0
    pace: float = 0.0
    frozen: Tensor = field(default_factory=lambda: torch.empty(0))
    held: Held = field(default_factory=Held)
    records: Records | None = None
    mixture: Mixture | None = None

    @property
    def frozen_array(self) -> NDArray[Any]:
        """`frozen` as a pool takes it."""
        return to_array(self.frozen)

    def with_frozen(self, frozen: Tensor) -> "ServerState":
        """The same state, and its best round's, of a model with these frozen parameters."""
        best = self.best and replace(self.best, state=self.best.state and replace(self.best.state, frozen=frozen))
        return replace(self, frozen=frozen, best=best)


@dataclass(frozen=True)
class Round:
    """A round's work: what all share, and the jobs by block.

    Clients whose updates nobody will use have no job, only a visit. The last `late` blocks hold one client each, whose update comes
    after the round's end. `chosen`: the clients that the strategy was asked about; `visits`: everybody whom it gave work, in client order; `start_seconds`: virtual time; `seconds`: until the end.
    """

    context: RoundContext
    blocks: tuple[tuple[Job, ...], ...]
    visits: tuple[Visit, ...] = ()
    chosen: tuple[int, ...] = ()
    late: int = 0
    start_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def jobs(self) -> list[Job]:
        """All jobs, block after block."""
        return [job for block in self.blocks for job in block]


def setup_strategy(experiment: Experiment) -> Strategy:
    """The experiment's strategy with the settings' overrides. Raises UserError for an unknown name, of a selection too, prefixes that it
    cannot have, or one that has nobody to learn from."""
    check_selection(experiment)
    settings, update = experiment.strategy, look_up(CLIENT_UPDATES, experiment.local.client_update, "local.client_update")
    strategy = STRATEGIES.chosen(settings.name, experiment.plugin_settings, "strategy.name")
    if settings.prefix != "default":
        strategy = replace(strategy, prefix=settings.prefix)
    if not update.prefixes and settings.prefix not in ("default", "none"):
        raise UserError(
            f"strategy.prefix: must be none with local.client_update {experiment.local.client_update!r}, which trains no prefixes, got "
            f"{settings.prefix!r}"
        )
    if not update.prefixes:
        strategy = replace(strategy, prefix="none", distill=0.0)
    if settings.aggregation != "default":
        strategy = replace(strategy, aggregation=settings.aggregation)
    if strategy.aggregation not in AGGREGATION_RULES:
        known = near_miss(strategy.aggregation, ["default", *AGGREGATION_RULES])
        raise UserError(f"strategy.aggregation: rule {strategy.aggregation!r} is not known{known}")
    if settings.client_weight != "default":
        strategy = replace(strategy, client_weight=settings.client_weight)
    if settings.distill is not None:
        strategy = replace(strategy, distill=settings.distill)
    if strategy.distill and strategy.prefix not in ("smallest", "random"):
        raise UserError(
            f"strategy.distill: {strategy.distill:g} needs steps that train the own plan and a prefix of it: strategy.prefix must be "
            f"smallest or random, got {strategy.prefix!r}"
        )
    if strategy.prefix != "none" and not strategy.nested:
        raise UserError(
            f"strategy.prefix: must be none with strategy {settings.name!r}, whose plans are not nested in each other, got {strategy.prefix!r}"
        )
    if settings.own and strategy.aggregation == "all_clients":
        raise UserError(
            f"strategy.own: {', '.join(settings.own)}: the divisor of all clients shrinks what few of them train, and a size's copy is "
            "trained by few: strategy.aggregation must be coverage or damped"
        )
    return strategy


STACK_CLIENTS = 16
"""Clients of a small model trained at once; more of them gain no more (a ViT of 45,000 parameters: 0.59, 0.53, 0.50, 0.53 of the time of
one by one with 4, 8, 16, 32)."""
STACK_FLOPS = 5e8
"""A training step of at most so many FLOPs is small. On a CPU core, stacked took 0.5 of the time at 8e7 FLOPs, 0.7 at 3e8, 0.95 at 1e9."""


def stack_sizes(setup: Setup, plans: Sequence[Plan]) -> tuple[int, ...]:
    """How many clients of each plan may be trained at once: a property of the round, so that any worker does the same."""
    asked, batch_size = setup.experiment.pool.stack_clients, setup.experiment.local.batch_size
    stacks = CLIENT_UPDATES[setup.experiment.local.client_update].stacks
    if setup.not_stacked or not stacks or setup.strategy.distill or asked == 1:
        return ()
    return tuple(
        asked or (STACK_CLIENTS if setup.costs(plan).training_flops * batch_size <= STACK_FLOPS else 1) for plan in plans
    )


WORTH_FLOPS = 12.0
"""FLOPs of training for which a byte of a block's sum is worth moving. Returned and added it takes about 0.3 ns of a core, or 3 FLOPs at
10 GFLOP/s: so moving is at most a quarter of the work."""
LEAST_BLOCKS = 16
"""That a round is divided into even so: more workers have something to do."""


def least_clients(flops: Sequence[float], sum_bytes: int) -> int:
    """How many clients a block must have at least, so that their training outweighs the moving of their sum. `flops`: of every client's
    training; `sum_bytes`: of a block's sum. A property of the round, whatever the workers."""
    mean = sum(flops) / max(1, len(flops))
    return max(1, min(ceil(WORTH_FLOPS * sum_bytes / mean) if mean else len(flops), len(flops) // LEAST_BLOCKS))


def blocks_of(
    jobs: Sequence[Job], steps: Sequence[int], size: int | None, stack: Sequence[int], least: int = 1
) -> tuple[tuple[Job, ...], ...]:
    """Fixed groups of clients, whatever the workers: the same sums in the same order.

    Runs of `size` clients, where it is given. Else one stack a block, of clients with like numbers of steps, in 2, 4, 8 ... even parts
    of those that train a plan, so that as many workers have as much to do; and runs of a 64th of the others, of `least` clients or more.
    """
    alone, together = list[Job](), dict[int, list[tuple[int, int, Job]]]()
    for position, (job, count) in enumerate(zip(jobs, steps, strict=True)):
        if size is None and stack and job.plan is not None and stack[job.plan] > 1:
            together.setdefault(job.plan, []).append((count, position, job))
        else:
            alone.append(job)
    length = size or max(least, -(-len(alone) // 64))
    blocks = [tuple(alone[start : start + length]) for start in range(0, len(alone), length)]
    for plan, clients in sorted(together.items()):
        parts = 1
        while parts * stack[plan] < len(clients):
            parts *= 2
        ordered = [job for *_, job in sorted(clients)]
        edges = [len(ordered) * part // parts for part in range(parts + 1)]
        blocks += [tuple(ordered[start:stop]) for start, stop in pairwise(edges)]
    return tuple(blocks)


def new_state(parameters: Tensor) -> ServerState:
    """The state before round 1 of a model of which nothing is frozen."""
    return ServerState(0, parameters.to(torch.float32), {})


def starting_state(setup: Setup, flat: Tensor) -> ServerState:
    """The state before round 1. `flat`: all parameters, in the model's order."""
    trained, frozen = split(flat, setup.architecture)
    copied = with_copies(trained, setup.architecture, setup.size_specific, len(setup.budgets))
    fleet = first_mixture(setup.device_type_numbers, setup.client_weights, len(setup.budgets))
    mixture = fleet if setup.experiment.server.agnostic_rate else None
    return replace(new_state(copied), frozen=frozen, records=first_records(setup.experiment), mixture=mixture)


def parameters_of(setup: Setup, state: ServerState, copy: int = 0) -> dict[str, Tensor]:
    """All parameters of a state by name, float32, in the model's order; they share its memory, but for frozen ones in another type. `copy`:
    which one of the size-specific parameters."""
    named = named_parameters(state.parameters, state.frozen, setup.architecture, setup.size_specific, copy)
    return {name: values.float() for name, values in named.items()}
