"""Who trains which plan: RaFFM and its rivals, one function and one row of `STRATEGIES` each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from raffm_ray.architectures import Architecture
from raffm_ray.axes import Plan
from raffm_ray.costs import Budget
from raffm_ray.extraction import Cutting, common_rate, longest_prefix, ranked_list
from raffm_ray.salience import Orders, Scores, identity_orders, rank


@dataclass(frozen=True, eq=False)
class View:
    """What a strategy may look at. `scores` are the current ranking; `seed` and `round` name random or rolling choices."""

    architecture: Architecture
    scores: Scores
    cutting: Cutting
    kind: str
    seed: int
    round: int
    batch_size: int
    optimizer: str

    @cached_property
    def orders(self) -> Orders:
        """The current ranking of every axis."""
        return rank(self.scores)

    @cached_property
    def units(self) -> list[tuple[str, int]]:
        """The current ranked list."""
        return ranked_list(self.architecture, self.scores, self.cutting)


Extract = Callable[[View, Budget, int], Plan | None]
"""(view, the client's budget, the client) -> its plan this round, or None when it does not take part."""


def ranked(view: View, budget: Budget, client: int) -> Plan:
    """The longest prefix of the ranked list that fits, or one rate for every axis where the experiment says so."""
    memory = (view.batch_size, view.optimizer)
    if view.kind == "common_rate":
        return common_rate(view.architecture, view.orders, view.cutting, budget, *memory)
    return longest_prefix(view.architecture, view.units, view.orders, view.cutting, budget, *memory)


def whole(view: View, budget: Budget, client: int) -> Plan:
    """Everyone trains everything, whatever the device: FedAvg (McMahan et al. 2017). It ignores the budget, as an upper bound."""
    return Plan()


def heterofl(view: View, budget: Budget, client: int) -> Plan:
    """HeteroFL (Diao et al. 2021): the leading indices of every width, one rate a device class.

    It deviates in that the rate follows from the budget instead of a grid of five, every head keeps its place and shrinks inside,
    and inputs of layers are not rescaled (its Scaler), since norms follow.
    """
    layout = view.architecture.layout
    cutting = Cutting({"residual": 1, "qk": 1, "vo": 1, "ffn": 1}, {})
    return common_rate(view.architecture, identity_orders(layout), cutting, budget, view.batch_size, view.optimizer)


@dataclass(frozen=True)
class Strategy:
    """A row of the table.

    `train`: plans for training; `deploy`: for evaluation and afterwards. `salience`: whether either needs scores. `per_client`:
    whether `train` looks at the client; if not, clients of a class share a plan. `prefix`, `aggregation`, `client_weight` and
    `distill`: the defaults of the settings of those names. `budgeted`: whether training plans keep within budgets.
    """

    train: Extract
    deploy: Extract
    salience: bool = True
    per_client: bool = False
    prefix: str = "none"
    aggregation: str = "coverage"
    budgeted: bool = True
    client_weight: str = "examples"
    distill: float = 0.0


STRATEGIES: dict[str, Strategy] = {
    "raffm": Strategy(ranked, ranked, prefix="random"),
    "full": Strategy(whole, ranked, budgeted=False),
    "heterofl": Strategy(heterofl, heterofl, salience=False),
}
