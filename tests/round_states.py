"""A server state and a round's context, as a round would have them."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raffm_ray.axes.indexing import Plan
from raffm_ray.clients.messages import RoundContext
from raffm_ray.server.state import ServerState, starting_state
from raffm_ray.subnetworks.salience import METRICS


def state_of(prepared: Any, seed: int = 0) -> ServerState:
    """A state with random parameters and a ranking."""
    size = sum(torch.Size(shape).numel() for shape in prepared.setup.architecture.shapes.values())
    flat = 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    layout = prepared.setup.architecture.layout
    scores = METRICS["random"].score(layout, {}, {}, np.random.default_rng(seed))
    return replace(starting_state(prepared.setup, flat), scores=scores)


def context_of(prepared: Any, state: Any, *plans: Plan, **changes: Any) -> RoundContext:
    return replace(
        RoundContext(seed=0, round=1, plans=plans, local=prepared.setup.experiment.local, learning_rate=1e-3), **changes
    )
