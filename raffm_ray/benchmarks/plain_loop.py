"""A plain PyTorch loop over clients, on one thread and without any communication: the limit that training is compared with.

One stock model; every client loads the starting weights, gets a fused AdamW, takes its steps. It knows nothing of this package's client
code, only the same model, data, batches and settings.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raffm_ray.axes.flat_parameters import views
from raffm_ray.benchmarks.warm_processes import Memory
from raffm_ray.data.examples import Examples
from raffm_ray.models.architecture import Architecture, new_model
from raffm_ray.settings.experiment import LocalSettings

Batches = Sequence[NDArray[np.int64]]
"""Indices of a client's examples, one array a step."""


def train_clients(
    model: nn.Module, start: Mapping[str, Tensor], data: Mapping[str, Tensor], clients: Sequence[Batches], local: LocalSettings
) -> None:
    """Trains the model for one client after the other, each from the starting weights."""
    inputs, labels = {name: values for name, values in data.items() if name != "labels"}, data["labels"]
    parameters = list(model.parameters())
    for batches in clients:
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW(parameters, lr=local.learning_rate or 0.0, weight_decay=local.weight_decay, fused=True)
        for indices in batches:
            chosen = torch.from_numpy(indices).to(labels.device)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(labels.device.type, torch.bfloat16, enabled=local.precision == "bfloat16"):
                output = model(**{name: values[chosen] for name, values in inputs.items()})
                loss = cross_entropy(output.logits, labels[chosen])
            loss.backward()
            if local.clip is not None:
                nn.utils.clip_grad_norm_(parameters, local.clip)
            optimizer.step()


def load(
    memory: Memory, architecture: Architecture, flat: NDArray[np.float32], examples: Examples, local: LocalSettings, device: str
) -> None:
    """Gives a process its model, the weights that every client starts from, and all data as tensors on a device."""
    model = new_model(architecture, 0).train()
    model.load_state_dict(views(torch.from_numpy(flat.copy()), architecture.shapes), strict=False)
    memory["model"] = model.to(device)
    memory["start"] = {name: values.clone() for name, values in model.state_dict().items()}
    memory["data"] = examples.batch(slice(None), device)
    memory["local"] = local


def give(memory: Memory, clients: Sequence[Batches]) -> None:
    """Tells a process whom to train next."""
    memory["clients"] = clients


def train(memory: Memory) -> None:
    """Trains them."""
    train_clients(memory["model"], memory["start"], memory["data"], memory["clients"], memory["local"])
    if memory["data"]["labels"].is_cuda:
        torch.cuda.synchronize()


def forget(memory: Memory) -> None:
    """Frees what `load` gave."""
    memory.clear()
