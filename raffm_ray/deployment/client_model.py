"""The model of one client of a run: its device type's subnetwork, with the parameters that the client keeps for itself."""

from dataclasses import replace
from pathlib import Path

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.deployment.trained_model import TrainedModel
from raffm_ray.runs.client_states.store import last_state
from raffm_ray.server.device_type_plans import device_type_plans


def client_model(trained: TrainedModel, folder: Path, client: int) -> tuple[TrainedModel, Plan]:
    """The model with a client's own parameters, and its device type's subnetwork. Raises UserError for a client that is not there or never trained,
    a run in which clients keep no parameters, and a state that is damaged."""
    setup = trained.prepared.setup
    if not 0 <= client < len(setup.device_types):
        raise UserError(f"--client: the run has clients 0 to {len(setup.device_types) - 1}, got {client}")
    if not setup.keeps_own:
        raise UserError(
            f"--client {client}: clients of this run keep no parameters of their own (strategy.personal): --device "
            f"{setup.device_types[client]} is what it gets"
        )
    state = last_state(folder, client)
    if state is None:
        raise UserError(
            f"--client {client}: it never trained, so it has no parameters of its own: --device {setup.device_types[client]} is what it gets"
        )
    plan = device_type_plans(setup, trained.state)[setup.device_types[client]]
    return replace(trained, own=state, origin=f"client {client} of {trained.origin}"), plan
