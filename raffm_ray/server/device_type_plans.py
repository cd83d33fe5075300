"""Which subnetwork every device type trains and gets, so that all that a client does with it keeps within its budget."""

from collections.abc import Sequence
from dataclasses import replace

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import TooSmallError, UserError
from raffm_ray.basics.formatting import human_bytes
from raffm_ray.models.adapters.lora import RANK
from raffm_ray.server.plans.view import StrategyView
from raffm_ray.server.state import ServerState, Setup, parameters_of
from raffm_ray.subnetworks.size_specific import copies_of


def view_of(setup: Setup, state: ServerState, round_number: int) -> StrategyView:
    """What the strategy sees in a round, where no plan is trained beside another."""
    experiment = setup.experiment
    return StrategyView(
        architecture=setup.architecture,
        scores=state.scores,
        cutting=replace(setup.cutting, pace=state.pace),
        kind=experiment.extraction.kind,
        seed=experiment.seed,
        round=round_number,
        batch_size=experiment.local.batch_size,
        optimizer=experiment.local.optimizer,
        prefix=setup.strategy.prefix,
        distill=bool(setup.strategy.distill),
        budgets=setup.budgets,
        parameters=parameters_of(setup, state),
        memory=setup.memory,
    )


def _ranks_alone(setup: Setup) -> str:
    """What to add to a refusal where the frozen model is never cut, so that only a budget of adapters can be small."""
    if set(setup.experiment.extraction.steps) != {RANK}:
        return ""
    return (
        "; of a model with adapters only ranks are cut (extraction.steps), so the frozen model has to fit: fleet.budgets of adapter_params "
        "limit the adapters alone"
    )


def _plans_for_use(setup: Setup, view: StrategyView) -> dict[str, Plan]:
    """Every device type's plan, each sized with those of smaller plans as its prefixes. Raises UserError as `device_type_plans`.

    A device type's plan without prefixes tells the order: then all that a plan's charge depends on is known before it.
    """
    plans, refused = {}, dict[str, TooSmallError]()
    for name, budget in setup.budgets.items():
        try:
            plan = setup.strategy.deploy(view, budget, -1)
        except TooSmallError as small:
            refused[name] = small
            continue
        assert plan is not None
        plans[name] = plan
    if refused and not plans:
        lacking = "; ".join(f"{name}: {', '.join(error.exceeded)}" for name, error in refused.items())
        smallest = next(iter(refused.values())).smallest
        raise UserError(
            f"every device type of this fleet is below {smallest}: {lacking} (need > what it allows){_ranks_alone(setup)}"
        )
    for name, error in refused.items():
        raise UserError(f"device type {name}: {error} (strategy {setup.experiment.strategy.name!r}){_ranks_alone(setup)}")
    if setup.strategy.prefix == "none":
        return plans
    fixed: list[Plan] = []
    for name in sorted(plans, key=lambda one: setup.costs(plans[one]).params):
        plan = setup.strategy.deploy(view.beside(fixed), setup.budgets[name], -1)
        assert plan is not None
        plans[name] = plan
        fixed.append(plan)
    return plans


def device_type_plans(setup: Setup, state: ServerState, round_number: int | None = None) -> dict[str, Plan]:
    """The subnetwork that every device type gets from the current parameters and ranking, for use rather than training.

    As after the last round, or as they are in the round of that number. Raises UserError that names the first one whose budget is too
    small, or all of them where every one is.
    """
    return _plans_for_use(setup, view_of(setup, state, state.round if round_number is None else round_number))


def training_view(setup: Setup, state: ServerState, round_number: int) -> tuple[StrategyView, Sequence[Plan]]:
    """What the strategy chooses a round's training plans by, and the plans that may be trained as prefixes of larger ones."""
    view = view_of(setup, state, round_number)
    if setup.strategy.prefix == "none":
        return view, ()
    smaller = tuple(_plans_for_use(setup, view).values())
    return view.beside(smaller), smaller


def copies(setup: Setup, state: ServerState, plans: Sequence[Plan], round_number: int | None = None) -> tuple[int, ...]:
    """Which copy of the size-specific parameters each plan uses, 0 where there are none but the model's own.

    It goes by the sizes that clients with data train, not by those that device types get: where everybody trains the full model, a copy for
    a smaller size would stay as it began. Strategies that look at clients differ in what they choose for one, not in how much.
    """
    if not setup.size_specific:
        return (0,) * len(plans)
    view, _ = training_view(setup, state, state.round if round_number is None else round_number)
    extract = setup.strategy.deploy if setup.strategy.per_client else setup.strategy.train
    trained = [extract(view, budget, -1) for name, budget in setup.budgets.items() if name in setup.owners_by_device_type]
    sizes = [setup.costs(plan).params for plan in trained if plan is not None]
    return copies_of(sizes, [setup.costs(plan).params for plan in plans])


def idle_budgets(setup: Setup) -> list[str]:
    """A line for every budget of a device type that no client of the fleet has."""
    idle = (name for name in sorted(setup.experiment.fleet.budgets) if name not in setup.budgets)
    return [f"fleet.budgets.{name} is not used: no client of this fleet has that device" for name in idle]


def memory_notes(setup: Setup, state: ServerState) -> list[str]:
    """A line about every device type that trains more than its memory holds: a named budget stands in place of the limit of memory."""
    full, notes = setup.costs(Plan()), []
    # With prefixes, training takes at most twice the full model's memory.
    near = [name for name in setup.budgets if 2 * full.memory_bytes > setup.devices[name].memory_bytes]
    named = [name for name in near if name in setup.experiment.fleet.budgets] if setup.strategy.budgeted else []
    view = training_view(setup, state, 1)[0] if named else None
    for name in named:
        assert view is not None
        client = setup.device_types.index(name) if name in setup.device_types else -1
        plan, there = setup.strategy.train(view, setup.budgets[name], client), setup.devices[name].memory_bytes
        if plan is not None and (peak := view.costs(plan).memory_bytes) > there:
            notes.append(
                f"fleet.budgets.{name}: its plan's peak of {human_bytes(peak)} is more than the device's {human_bytes(there)} of memory: "
                "a limit of memory_bytes in its budget would keep within it"
            )
    return notes


def holds_full_model(setup: Setup, name: str) -> bool:
    """Whether a device type can train the full model."""
    return setup.budgets[name].allows(setup.costs(Plan()))
