"""`Setup`: what stays the same in a run. `ServerState`: what the next round depends on. `Round`: one round's work."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError, look_up, near_miss
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.clients.reach.own_words import OwnWords
from raffm_ray.clients.updates.row import OWN
from raffm_ray.devices.availability import Availability
from raffm_ray.devices.profiles import Device
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.freezing import InFloat32, named_parameters, split, to_array
from raffm_ray.server.adapter_rules.chosen import with_adapter_settings
from raffm_ray.server.aggregation import AGGREGATION_RULES
from raffm_ray.server.agnostic_mixture import Mixture, first_mixture
from raffm_ray.server.clock import VirtualClock, Visit
from raffm_ray.server.kept.client_memory import ClientMemory, personal_names
from raffm_ray.server.kept.held_parameters import Held
from raffm_ray.server.kept.memory_checks import check_memory
from raffm_ray.server.optimizers import Moments
from raffm_ray.server.selection.records import Records
from raffm_ray.server.selection.table import check_selection, first_records
from raffm_ray.server.strategies import STRATEGIES, Strategy
from raffm_ray.settings.experiment import Experiment
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.calibration import Statistics
from raffm_ray.subnetworks.costs import Costs, costs_of, with_memory
from raffm_ray.subnetworks.extraction import Cutting
from raffm_ray.subnetworks.salience import Scores
from raffm_ray.subnetworks.size_specific import size_specific_names, with_copies
from raffm_ray.subnetworks.unit_coverage import Reached


@lru_cache(maxsize=4096)  # a round asks for the same few plans once or more for every client
def _costs(architecture: Architecture, plan: Plan, batch_size: int, optimizer: str, memory: tuple[int, bool]) -> Costs:
    return with_memory(costs_of(architecture, plan, batch_size, optimizer), *memory)


@dataclass(frozen=True)
class Setup:
    """What does not change during a run. `budgets`: by device type, weakest first; `device_types`: that of every client;
    `examples`: how many each trains on; `unseen`: the clients that are kept from training; `devices`: all device types that are known; `availability`: who is awake when; `not_stacked`: why clients must be trained one by one, None
    where they need not; `words`: which rows of the table of words each client has, None where all have all."""

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
    words: OwnWords | None = None

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
        local = self.experiment.local
        return _costs(self.architecture, plan, local.batch_size, local.optimizer, self.memory)

    @property
    def memory(self) -> tuple[int, bool]:
        """As `with_memory` takes it: what the clients' update remembers."""
        row = CLIENT_UPDATES[self.experiment.local.client_update]
        return row.copies, row.variate

    @cached_property
    def weight_by_device_type(self) -> Mapping[str, float]:
        """Of all clients that may train, as their jobs weigh."""
        weights = np.bincount(self.device_type_numbers, self.client_weights, minlength=len(self.budgets))
        return {name: weight for name, weight in zip(self.budgets, weights.tolist(), strict=True) if weight}

    @cached_property
    def personal(self) -> tuple[str, ...]:
        """The parameters that stay with their clients. Raises UserError as `personal_names`."""
        return personal_names(self.architecture.layout, self.experiment.strategy.personal)

    @property
    def keeps_own(self) -> bool:
        """Whether clients keep parameters of their own."""
        return bool(self.experiment.strategy.personal or OWN in CLIENT_UPDATES[self.experiment.local.client_update].keeps)

    @property
    def keeps(self) -> bool:
        """Whether clients keep anything from round to round."""
        return bool(self.experiment.strategy.personal or CLIENT_UPDATES[self.experiment.local.client_update].keeps)


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
    """All that the next round depends on. `parameters`: flat, the trained ones and the copies that sizes have of their own; `frozen`: flat, the others, the same in
    every round and in no checkpoint; `held`: what devices have of them; `pending`: statistics reported since the last ranking; `norms`: from before it; `moments`: the
    server optimizer's; `best`: None before a first validation; `reached`: of `reached_weight`, the weight of all updates so far; `pace`: of the ranked list, chosen with
    the scores (see `Cutting`); `memory`: of what clients keep, and the control variate; `records`: of clients, None where the selection reads none; `mixture`: of device
    types, None without `server.agnostic_rate`; `base_change`: what was added to the frozen ones, as long as they are, empty where nothing was; `stack_bytes`: of the
    adapters added to them last; `aggregation_error`: of the last round's adapters, see `adapter_rules`, None where it is not measured."""

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
    memory: ClientMemory = field(default_factory=ClientMemory)
    records: Records | None = None
    mixture: Mixture | None = None
    base_change: Tensor = field(default_factory=lambda: torch.empty(0))
    stack_bytes: int = 0
    aggregation_error: float | None = None

    @cached_property
    def frozen_now(self) -> Tensor:
        """The frozen parameters with what was added to them. One array of a state, so that a pool sends it once."""
        return self.frozen + self.base_change if len(self.base_change) else self.frozen

    @property
    def sent_array(self) -> NDArray[np.float32]:
        """What a pool sends in a round: the parameters, and the control variate behind them."""
        behind = self.memory.variate
        return (torch.cat([self.parameters, behind]) if len(behind) else self.parameters).numpy()

    @property
    def frozen_array(self) -> NDArray[Any]:
        """`frozen_now` as a pool takes it."""
        return to_array(self.frozen_now)

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
    for name in ("prefix", "aggregation", "client_weight"):
        if (value := getattr(settings, name)) != "default":
            strategy = replace(strategy, **{name: value})
    if not update.prefixes and settings.prefix not in ("default", "none"):
        raise UserError(
            f"strategy.prefix: must be none with local.client_update {experiment.local.client_update!r}, which trains no prefixes, got "
            f"{settings.prefix!r}"
        )
    if not update.prefixes:
        strategy = replace(strategy, prefix="none", distill=0.0)
    if strategy.aggregation not in AGGREGATION_RULES:
        known = near_miss(strategy.aggregation, ["default", *AGGREGATION_RULES])
        raise UserError(f"strategy.aggregation: rule {strategy.aggregation!r} is not known{known}")
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
    strategy = with_adapter_settings(strategy, experiment)
    check_memory(experiment, strategy)
    return strategy


def new_state(parameters: Tensor) -> ServerState:
    """The state before round 1 of a model of which nothing is frozen."""
    return ServerState(0, parameters.to(torch.float32), {})


def starting_state(setup: Setup, flat: Tensor) -> ServerState:
    """The state before round 1. `flat`: all parameters, in the model's order."""
    return state_of_parts(setup, *split(flat, setup.architecture))


def state_of_parts(setup: Setup, trained: Tensor, frozen: Tensor) -> ServerState:
    """`starting_state` of the two arrays of `split`."""
    copied = with_copies(trained, setup.architecture, setup.size_specific, len(setup.budgets))
    memory = ClientMemory(variate=torch.zeros(len(trained) if setup.memory[1] else 0))
    return with_first_choices(setup, replace(new_state(copied), frozen=frozen, memory=memory))


def with_first_choices(setup: Setup, state: ServerState) -> ServerState:
    """A state before round 1, with what the choice of clients and their weights begin with."""
    fleet = first_mixture(setup.device_type_numbers, setup.client_weights, len(setup.budgets))
    mixture = fleet if setup.experiment.server.agnostic_rate else None
    return replace(state, records=first_records(setup.experiment), mixture=mixture)


def parameters_of(setup: Setup, state: ServerState, copy: int = 0) -> InFloat32:
    """All parameters of a state by name, float32, in the model's order; they share its memory, but for frozen ones in another type. `copy`:
    which one of the size-specific parameters."""
    return InFloat32(named_parameters(state.parameters, state.frozen_now, setup.architecture, setup.size_specific, copy))
