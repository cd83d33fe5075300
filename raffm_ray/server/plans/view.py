"""What a strategy may look at, and the two ways to answer a budget that several share: one rate for some axes, or some layers."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.seeding import generator
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.costs import Costs, costs_of, with_memory, with_prefixes
from raffm_ray.subnetworks.extraction import Cutting, common_rate, longest, plan_of, ranked_list
from raffm_ray.subnetworks.salience import METRICS, Orders, Parameters, Scores, rank


@dataclass(frozen=True, eq=False)
class StrategyView:
    """What a strategy may look at.

    `scores` are the current ranking; `seed` and `round` name random or rolling choices; `budgets`: of every device type;
    `parameters`: the current ones, by name; `smaller`: plans that are trained as prefixes of larger ones, as `prefix` and `distill` say.
    """

    architecture: Architecture
    scores: Scores
    cutting: Cutting
    kind: str
    seed: int
    round: int
    batch_size: int
    optimizer: str
    prefix: str = "none"
    distill: bool = False
    smaller: Sequence[Plan] = ()
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)
    memory: tuple[int, bool] = (0, False)

    def beside(self, smaller: Sequence[Plan]) -> "StrategyView":
        """This view, with what is known of it already, for plans of which these smaller ones are prefixes."""
        other = copy(self)  # a replaced one would rank again
        object.__setattr__(other, "smaller", tuple(smaller))
        return other

    @cached_property
    def orders(self) -> Orders:
        """The current ranking of every axis."""
        return rank(self.scores)

    @cached_property
    def units(self) -> list[tuple[str, int]]:
        """The current ranked list."""
        return ranked_list(self.architecture, self.scores, self.cutting)

    @cached_property
    def by_magnitude(self) -> "StrategyView":
        """This view with a ranking by the current parameters' L1 norms."""
        scores = METRICS["l1"].score(self.architecture.layout, self.parameters, {}, generator(self.seed, "strategy", self.round))
        return replace(self, scores=scores)

    def costs(self, plan: Plan) -> Costs:
        """What a plan costs who trains it, with the prefixes that are trained beside it."""
        own, *others = (costs_of(self.architecture, one, self.batch_size, self.optimizer) for one in (plan, *self.smaller))
        own = with_memory(own, *self.memory)
        return with_prefixes(own, others, self.prefix, self.distill)


Extract = Callable[[StrategyView, Budget, int], Plan | None]
"""(view, the client's budget, the client; -1 for none) -> its plan this round, or None when it does not take part."""

WIDTHS = Cutting({"residual": 1, "qk": 1, "vo": 1, "ffn": 1}, {})
"""What methods that scale the width cut, all by one rate: every width of the model. A head keeps its place and shrinks inside."""


def at_one_rate(view: StrategyView, orders: Orders, budget: Budget, cutting: Cutting = WIDTHS) -> Plan:
    """The first indices of every width, at the largest common rate that fits."""
    return common_rate(
        architecture=view.architecture,
        orders=orders,
        cutting=cutting,
        budget=budget,
        costs=view.costs,
    )


def some_layers(view: StrategyView, orders: Orders, budget: Budget) -> Plan:
    """The first layers of these orders, one for each stack, whole, as many as fit; of two stacks the same share, rounded up.

    Raises TooSmallError when the budget is below one layer.
    """
    deepest = max((len(order) for order in orders.values()), default=1)

    def plan_at(above_one: int) -> Plan:
        counts = {name: ceil((above_one + 1) * len(order) / deepest) for name, order in orders.items()}
        return plan_of(counts, orders, view.architecture.layout)

    least = "one layer" if orders else "the full model, of which no layer can be dropped"
    return longest(deepest - 1, plan_at, view.costs, budget, least)
