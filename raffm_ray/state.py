"""What a run does not change, what the next round depends on, and what a round is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from raffm_ray.architectures import Architecture
from raffm_ray.axes import Plan
from raffm_ray.calibration import Statistics
from raffm_ray.costs import Budget, Costs, costs_of
from raffm_ray.errors import UserError, look_up
from raffm_ray.extraction import Cutting
from raffm_ray.messages import Job, Package, views
from raffm_ray.salience import Scores
from raffm_ray.settings import Experiment
from raffm_ray.strategies import STRATEGIES, Strategy, View


@dataclass(frozen=True)
class Setup:
    """What does not change during a run. `budgets`: by device class, weakest first; `classes`: the class of every client."""

    experiment: Experiment
    architecture: Architecture
    strategy: Strategy
    budgets: Mapping[str, Budget]
    classes: Sequence[str]
    examples: Sequence[int]

    @property
    def cutting(self) -> Cutting:
        """How plans may be cut."""
        return Cutting(self.experiment.extraction.steps, self.experiment.extraction.floors)

    def costs(self, plan: Plan) -> Costs:
        """What a plan costs with this experiment's local training."""
        return costs_of(self.architecture, plan, self.experiment.local.batch_size, self.experiment.local.optimizer)


@dataclass(frozen=True)
class ServerState:
    """All that the next round depends on. `pending`: statistics reported since the last ranking; `norms`: from before it."""

    round: int
    parameters: Tensor
    scores: Scores
    pending: Statistics | None = None
    norms: Statistics = field(default_factory=dict)
    ranked_at: int = 0


@dataclass(frozen=True)
class Round:
    """A round's work: what all share, and the jobs by block."""

    package: Package
    blocks: tuple[tuple[Job, ...], ...]

    @property
    def jobs(self) -> list[Job]:
        """All jobs in client order."""
        return [job for block in self.blocks for job in block]


def setup_strategy(experiment: Experiment) -> Strategy:
    """The experiment's strategy with the settings' overrides. Raises UserError for an unknown name or prefixes that it cannot have."""
    settings = experiment.strategy
    strategy = look_up(STRATEGIES, settings.name, "strategy.name")
    if settings.prefix != "default":
        strategy = replace(strategy, prefix=settings.prefix)
    if settings.aggregation != "default":
        strategy = replace(strategy, aggregation=settings.aggregation)
    if strategy.prefix != "none" and not strategy.nested:
        raise UserError(
            f"strategy.prefix: must be none with strategy {settings.name!r}, whose plans are not nested in each other, got {strategy.prefix!r}"
        )
    return strategy


def view_of(setup: Setup, state: ServerState, round_number: int) -> View:
    """What the strategy sees in a round."""
    experiment = setup.experiment
    return View(
        setup.architecture, state.scores, setup.cutting, experiment.extraction.kind, experiment.seed, round_number,
        experiment.local.batch_size, experiment.local.optimizer, setup.budgets, views(state.parameters, setup.architecture.shapes),
    )  # fmt: skip


def class_plans(setup: Setup, state: ServerState, round_number: int | None = None) -> dict[str, Plan]:
    """The subnetwork that every device class gets from the current parameters and ranking, for use rather than training.

    As after the last round, or as they are in the round of that number. Raises UserError that names the class whose budget is too
    small.
    """
    view = view_of(setup, state, state.round if round_number is None else round_number)
    plans = {}
    for name, budget in setup.budgets.items():
        try:
            plan = setup.strategy.deploy(view, budget, -1)
        except UserError as error:
            raise UserError(f"device class {name}: {error} (strategy {setup.experiment.strategy.name!r})") from None
        assert plan is not None
        plans[name] = plan
    return plans


def blocks_of(jobs: Sequence[Job], size: int | None) -> tuple[tuple[Job, ...], ...]:
    """Fixed runs of clients, whatever the workers: the same sums in the same order."""
    length = size or max(1, -(-len(jobs) // 64))
    return tuple(tuple(jobs[start : start + length]) for start in range(0, len(jobs), length))


def holds_full_model(setup: Setup, name: str) -> bool:
    """Whether a device class can train the full model."""
    return setup.budgets[name].allows(setup.costs(Plan()))


def new_state(parameters: Tensor) -> ServerState:
    """The state before round 1."""
    return ServerState(0, parameters.to(torch.float32), {})
