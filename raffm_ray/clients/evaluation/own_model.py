"""A client's own model: its subnetwork with the parameters that it keeps, and trained further on its own examples before it is measured."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from raffm_ray.clients.client_state import ClientState, own_parameters
from raffm_ray.clients.local_training import ClientData, Training
from raffm_ray.clients.messages import RoundContext
from raffm_ray.clients.module_factory import ModuleFactory, Parameters
from raffm_ray.clients.updates.row import Batches
from raffm_ray.clients.updates.standard import standard
from raffm_ray.data.examples import Examples
from raffm_ray.models.freezing import for_training


class OwnModel(NamedTuple):
    """What is measured: a round's plan, of a client with what it keeps, after so many steps on its own training examples; of nobody where only the
    plan is given."""

    plan: int
    client: int = -1
    state: ClientState | None = None
    tune_steps: int = 0


def own_model(factory: ModuleFactory, parameters: Parameters, context: RoundContext, asked: OwnModel) -> nn.Module:
    """The module of a plan, with a client's own parameters in the place of the server's where it keeps any."""
    plan = context.plans[asked.plan]
    module = factory.module(parameters, plan, context.norms)
    if asked.state is not None:
        own = dict(module.named_parameters())
        trained = {name: values for name, values in own.items() if name in factory.architecture.trained_shapes}
        for name, values in own_parameters(asked.state, plan, trained, parameters, factory).items():
            own[name].data.copy_(values)
    return module


def tune(
    module: nn.Module,
    factory: ModuleFactory,
    examples: Examples,
    training: Training,
    client: ClientData,
    steps: int,
    held: Sequence[str] = (),
) -> None:
    """Trains a module in place for so many steps of the standard update on a client's own training examples, without prefixes and proximal term:
    what a device would do before it uses its model (fine-tuning evaluation: Wang et al. 2019, arXiv 1910.10252). `held`: parameters that stay."""
    alone = replace(
        training, local=training.local.model_copy(update={"steps": steps, "proximal": 0.0}), prefix="none", prefixes=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(client.prefix_rng.integers(2**31)))
        batches = Batches(examples, alone, client, factory.device)
        trained = for_training(module, factory.architecture.layout)
        for name, parameter in trained.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in held)
        standard(trained, batches, {}, alone, client.prefix_rng, None)
