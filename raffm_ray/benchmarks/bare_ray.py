"""What Ray alone takes: the limit of our own pool. Parameters are put once, actors add their clients up, the driver adds the actors."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from raffm_ray.basics.machine import usable_cores

Flat = NDArray[np.float32]
CHANGE = np.float32(0.001)
"""A client that does nothing changes every parameter by so much of it."""


def add_client(total: Flat, parameters: Flat, weight: float = 1.0) -> None:
    """Adds the change of a client that does nothing to the sum of its block: all the work that such a client is."""
    total += np.float32(weight * CHANGE) * parameters


class _Adder:
    def add(self, parameters: Flat, clients: int) -> Flat:
        total = np.zeros_like(parameters)
        for _ in range(clients):
            add_client(total, parameters)
        return total


def _actor(of: type) -> Any:
    return ray.remote(of).options(num_cpus=0).remote()


def adders(count: int) -> list[Any]:
    """So many actors, warm; Ray must be up."""
    actors = [_actor(_Adder) for _ in range(count)]
    ray.get([actor.add.remote(np.zeros(1, dtype=np.float32), 1) for actor in actors])
    return actors


def dismiss(actors: Sequence[Any]) -> None:
    """Ends actors."""
    for actor in actors:
        ray.kill(actor)


def bare_round(actors: Sequence[Any], parameters: Flat, clients: int) -> Flat:
    """The sum of all clients' changes: one put, one call and one sum an actor."""
    shared = ray.put(parameters)
    counts = [len(part) for part in np.array_split(np.arange(clients), len(actors))]
    parts = ray.get([actor.add.remote(shared, count) for actor, count in zip(actors, counts, strict=True)])
    total = np.zeros_like(parameters)
    for part in parts:
        total += part
    return total


class _Importer:
    def ready(self) -> bool:
        import torch
        import transformers

        return bool(torch.__version__ and transformers.__version__)


def bare_start(workers: int) -> None:
    """What any simulator has to do before its first round: import the libraries, start Ray, import them in every worker.

    Without workers Ray is not started.
    """
    _Importer().ready()
    if workers:
        os.environ.pop("RAY_ADDRESS", None)
        cores = max(workers, usable_cores())
        ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        ray.get([_actor(_Importer).ready.remote() for _ in range(workers)])


def stored_bytes() -> float:
    """Bytes in the object stores of all nodes, as these told last."""
    name = "object_store_memory"
    return float(ray.cluster_resources().get(name, 0.0) - ray.available_resources().get(name, 0.0))
