"""How much weight the clients have that hold an entry, whether they take part in a round or not."""

import torch
from torch import Tensor

from raffm_ray.server.aggregation import flat_coverage
from raffm_ray.server.device_type_plans import training_view
from raffm_ray.server.state import ServerState, Setup


def weight_of_holders(setup: Setup, state: ServerState, round_number: int, covered: Tensor) -> Tensor:
    """Flat, the weight of all clients that train an entry when they are drawn, by what their device types train in a round; at least what
    `covered` it there.

    `state`: the one that the round began with. Copies that sizes have of their own are not counted.
    """
    view, _ = training_view(setup, state, round_number)
    plans = {name: setup.strategy.train(view, setup.budgets[name], -1) for name in setup.weight_by_device_type}
    weights = {name: weight for name, weight in setup.weight_by_device_type.items() if plans[name] is not None}
    numbers = {number: weights[name] for number, name in enumerate(weights)}
    holders = flat_coverage(numbers, [plan for plan in plans.values() if plan is not None], setup.architecture)
    return torch.maximum(holders, covered)
