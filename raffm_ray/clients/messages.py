"""The data that crosses a process boundary: jobs, updates and calls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from raffm_ray.axes.indexing import Plan
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.folds.products import Products
from raffm_ray.settings.experiment import LocalSettings
from raffm_ray.subnetworks.calibration import Statistics


@dataclass(frozen=True)
class RoundContext:
    """What all jobs of a round share; sent once, beside the flat parameters.

    `plans` are referred to by position. `statistic`: what calibrating clients report; `measure_norms`: and their norms' besides.
    `norms`: statistics by which norms of plans with a cut residual are corrected; empty for none. `distill`: how much of a prefix's
    loss is the soft outputs of the client's own plan, at `temperature`. `stack`: by plan, how many of its clients may be trained at once;
    empty where it is always one. `size_specific`: parameters of which sizes have copies of their own (see size_specific.py), behind the others in the flat
    array; `copies`: by plan, which one it uses. `norm_bound`: the largest L2 norm of a client's change. `personal`: names of parameters that stay with their clients.
    `received_loss`: whether clients measure the parameters that they receive before they train; `fair_exponent`: q of q-FedAvg.
    `products`: whether products of adapters are summed: "" not, "sum", or "by_rank", with the ranks of their parts; `product_norms`: whether a client
    weighs by the norm of its adapters' product; `sketched`: whether k of r ranks count r / k; `held`: names of parameters that are not trained in this round, `lasting`: whether nobody ever changes
    them; `resent`: of frozen ones that the server changed; `stack_bytes`: of the adapters that it added to them after the last round; `own_words`: whether
    clients have the rows of the table of words that their own texts read, and no others.
    """

    seed: int
    round: int
    plans: tuple[Plan, ...]
    local: LocalSettings
    learning_rate: float
    statistic: str | None = None
    calibration_examples: int = 0
    measure_norms: bool = False
    norms: Statistics = field(default_factory=dict)
    distill: float = 0.0
    temperature: float = 1.0
    stack: tuple[int, ...] = ()
    size_specific: tuple[str, ...] = ()
    copies: tuple[int, ...] = ()
    norm_bound: float | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    personal: tuple[str, ...] = ()
    received_loss: bool = False
    fair_exponent: float = 0.0
    products: str = ""
    product_norms: bool = False
    sketched: bool = False
    held: tuple[str, ...] = ()
    lasting: bool = False
    resent: tuple[str, ...] = ()
    stack_bytes: int = 0
    own_words: bool = False

    def copy_of(self, plan: int | None) -> int:
        """Which copy of the size-specific parameters a plan uses; 0 are the model's own."""
        return self.copies[plan] if self.copies and plan is not None else 0


@dataclass(frozen=True)
class Job:
    """One client's work in a round.

    `plan`: what it trains, None to calibrate only. `prefixes`: smaller plans nested in it, smallest first, that it trains
    locally as `prefix` says. `calibrate`: whether it reports statistics of the full model. `weight`: what its change counts in the
    average.
    """

    client: int
    plan: int | None
    prefixes: tuple[int, ...] = ()
    prefix: str = "none"
    calibrate: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Report:
    """What is recorded of one client's work.

    `stepped`: examples of all its steps; `loss`: mean training loss of its own plan; `seconds`: real, on this machine; `refused`: why its change is not used, else "";
    `statistics_refused`: why its statistics are not;
    `forward_backward`: (plan, examples) pairs, how many examples went forward and backward through each plan; `calibrated`: how many
    examples it calibrated on; `statistics_values`: how many numbers it reported of them; `state_bytes`: of what it keeps, None where that is nothing;
    `received_loss`: of all its examples before it trained, None where that is not asked for; `ranks`: how many ranks of its adapters it keeps from now on, None for
    as many as before.
    """

    client: int
    plan: int | None
    examples: int
    steps: int
    loss: float
    seconds: float
    refused: str = ""
    forward_backward: tuple[tuple[int, int], ...] = ()
    calibrated: int = 0
    statistics_values: int = 0
    stepped: int = 0
    statistics_refused: str = ""
    state_bytes: int | None = None
    received_loss: float | None = None
    ranks: int | None = None


@dataclass(frozen=True)
class Update:
    """A block's result beside its weighted sum: the weight that each plan's sum carries, the clients' reports, by client what it keeps, the sums of
    products of adapters, and by client that is in the sum the weight that it carries."""

    weights: Mapping[int, float]
    reports: tuple[Report, ...]
    statistics: Statistics | None = None
    states: Mapping[int, ClientState] = field(default_factory=dict)
    products: Products = field(default_factory=dict)
    covers: Mapping[int, float] = field(default_factory=dict)


class Call(NamedTuple):
    """A method of `ClientRunner`, what it is given after the parameters, and its cost in FLOPs: the costliest calls start first."""

    method: str
    context: RoundContext
    arguments: tuple[Any, ...]
    cost: float = 1.0


Result = tuple[Any, Any]
"""(small result, flat array or None)."""
Progress = Callable[[int, Any], None]
"""(index of a call that completed, its small result)."""


def describe_call(call: Call) -> str:
    """A call in words, a block by its clients."""
    method, arguments = call.method, call.arguments
    if method == "block":
        return f"block of clients {', '.join(str(job.client) for job in arguments[0])}"
    if method == "evaluate_clients":
        return f"evaluation of {len(arguments[1])} of the clients' own held-out examples"
    return f"{method} {arguments}"
