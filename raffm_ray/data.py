"""Tasks: a data set as arrays, split into what the server may see, what the clients own, and what nobody trains on."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raffm_ray.errors import UserError, look_up


@dataclass(frozen=True)
class Examples:
    """Model inputs by argument name, each of shape [examples, ...], and labels of shape [examples]."""

    inputs: Mapping[str, NDArray[np.generic]]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: NDArray[np.int64]) -> "Examples":
        """The examples at these indices, copied."""
        return Examples({name: values[indices] for name, values in self.inputs.items()}, self.labels[indices])

    def batch(self, indices: NDArray[np.int64] | slice, device: str = "cpu") -> dict[str, Tensor]:
        """Tensors of these examples for the model's forward, `labels` included. Always copies: the arrays may be shared."""
        arrays = {**self.inputs, "labels": self.labels}
        return {name: torch.from_numpy(np.array(values[indices])).to(device) for name, values in arrays.items()}


@dataclass(frozen=True)
class Task:
    """A task. `public` is for pretraining and calibration at the server, `clients` is divided over clients, `held_out` evaluates."""

    name: str
    head: str
    labels: int
    metric: str
    public: Examples
    clients: Examples
    held_out: Examples


def check_labels(task: Task, labels: int) -> None:
    """Raises UserError unless every label of the task lies in 0..labels-1."""
    for part, examples in (("public", task.public), ("clients", task.clients), ("held-out", task.held_out)):
        if len(examples) == 0:
            raise UserError(f"task {task.name!r}: the {part} part is empty")
        low, high = int(examples.labels.min()), int(examples.labels.max())
        if low < 0 or high >= labels:
            raise UserError(
                f"task {task.name!r}: labels of the {part} part run from {low} to {high}, but the model has {labels} (0..{labels - 1})"
            )


def split(examples: Examples, public: int, held_out: float, rng: np.random.Generator) -> tuple[Examples, Examples, Examples]:
    """Random public, clients' and held-out parts. Raises UserError when nothing is left for the clients."""
    order = rng.permutation(len(examples))
    testing = round(held_out * len(examples))
    if public + testing >= len(examples):
        raise UserError(f"task: {public} public and {testing} held-out examples leave none of {len(examples)} to the clients")
    parts = np.split(order, [testing, testing + public])
    held, shown, owned = (examples.part(np.sort(part)) for part in parts)
    return shown, owned, held


def digits(public: int, held_out: float, rng: np.random.Generator) -> Task:
    """scikit-learn's optical digits: 1,797 real 8 x 8 grey images of 10 classes (Alpaydin and Kaynak 1998), scaled to -1..1."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = (loaded.images[:, None] / 8.0 - 1.0).astype(np.float32)
    shown, owned, held = split(Examples({"pixel_values": images}, loaded.target.astype(np.int64)), public, held_out, rng)
    return Task("digits", "image_classification", 10, "accuracy", shown, owned, held)


TASKS: dict[str, Callable[[int, float, np.random.Generator], Task]] = {"digits": digits}


def load_task(name: str, public: int, held_out: float, rng: np.random.Generator) -> Task:
    """The named task, split. Raises UserError for an unknown name or parts that do not fit."""
    return look_up(TASKS, name, "task")(public, held_out, rng)


def batches(share: NDArray[np.int64], batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """`steps` batches of indices: a fresh shuffle for every pass over the share, batches never span two passes."""
    done = 0
    while done < steps:
        order = rng.permutation(share)
        for start in range(0, len(order), batch_size):
            if done == steps:
                return
            yield order[start : start + batch_size]
            done += 1


def steps_of(examples: int, batch_size: int, epochs: int, steps: int | None) -> int:
    """How many steps a client takes: `steps` if given, else all batches of `epochs` passes."""
    return steps if steps is not None else epochs * -(-examples // batch_size)
