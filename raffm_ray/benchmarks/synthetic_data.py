"""Experiments on data made in memory, in the right shapes: a speed suite needs no file."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.seeding import generator
from raffm_ray.data.examples import Column, Examples, Pixels, Ragged
from raffm_ray.data.tasks import Task
from raffm_ray.models.foundation import Foundation
from raffm_ray.models.model_config import parse_config
from raffm_ray.preparation.prepare import Prepared, prepared_of
from raffm_ray.settings.loading import parse

CLASSES = 10
TOKENS = 32
MINILM: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}
"""MiniLM-L6-H384 (Wang et al. 2020): 22.7M parameters."""


def vit(width: int, layers: int, heads: int, image: int = 8, channels: int = 1) -> dict[str, Any]:
    """The configuration of a ViT with patches of 4 x 4 and an FFN four times as wide, without dropout."""
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "image_size": image,
        "patch_size": 4,
        "num_channels": channels,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


CIFAR = vit(192, 6, 6, image=32, channels=3)
"""The ViT of 2.7M parameters of experiments/cifar_vit.yaml."""
Rng = np.random.Generator


def _labels(count: int, rng: Rng) -> NDArray[np.int64]:
    return rng.integers(CLASSES, size=count)


def _with(name: str, column: Column, rng: Rng) -> Examples:
    return Examples({name: column}, _labels(len(column), rng))


def grey(count: int, rng: Rng) -> Examples:
    """Grey images of 8 x 8, ready floats, as the digits are."""
    return _with("pixel_values", rng.standard_normal((count, 1, 8, 8), dtype=np.float32), rng)


def pictures(count: int, rng: Rng, size: int = 32) -> Examples:
    """Colour images as bytes, as CIFAR is kept."""
    pixels = rng.integers(256, size=(count, 3, size, size), dtype=np.uint8)
    return _with("pixel_values", Pixels(pixels, (0.5,) * 3, (0.5,) * 3), rng)


def texts(count: int, rng: Rng) -> Examples:
    """Texts of 32 tokens each."""
    values = rng.integers(1, 1000, size=count * TOKENS).astype(np.int32)
    return _with("input_ids", Ragged(values, np.arange(count + 1, dtype=np.int64) * TOKENS, 0), rng)


def uneven_texts(count: int, rng: Rng) -> Examples:
    """Texts of 4 to 128 tokens, half of them shorter than 32, as in collections of sentences."""
    sizes = np.clip(TOKENS * np.exp(0.7 * rng.standard_normal(count)), 4, 4 * TOKENS).astype(np.int64)
    values = rng.integers(1, 1000, size=int(sizes.sum())).astype(np.int32)
    return _with("input_ids", Ragged(values, np.concatenate([[0], np.cumsum(sizes)]), 0), rng)


KINDS: dict[str, tuple[str, Callable[[int, Rng], Examples]]] = {
    "grey": ("image_classification", grey),
    "pictures": ("image_classification", pictures),
    "photographs": ("image_classification", partial(pictures, size=224)),
    "texts": ("sequence_classification", texts),
    "uneven texts": ("sequence_classification", uneven_texts),
}
"""Kind of data -> the head it is for, and how so many examples of it are made."""


def synthetic_task(kind: str, examples: int) -> Task:
    """So many examples of a kind in memory, all of them clients'."""
    head, make = KINDS[kind]
    rng = generator(0, "synthetic")
    size_specific, held = make(examples, rng), make(16, rng)
    return Task(
        name="synthetic",
        head=head,
        labels=CLASSES,
        metric="accuracy",
        public=held,
        clients=size_specific,
        held_out=held,
        score=lambda answers: 0.0,
    )


def synthetic_on(
    task: Task, config: dict[str, Any], clients: int, per_round: int, local: dict[str, Any], **changes: Any
) -> Prepared:
    """A prepared experiment of full-size plans for clients that share a task's examples evenly; `changes`: other settings."""
    experiment = parse(
        {
            "name": "bench",
            "model": {"config": config},
            "strategy": {"name": "full"},
            "salience": {"metric": "l1"},
            "rounds": 1000,
            "local": local,
            "clients": {"count": clients, "per_round": per_round, "partition": "iid"},
            **changes,
        }
    )
    return prepared_of(experiment, Foundation(config=parse_config(config), source=None, words=None, pictures=None), task)


def synthetic(
    config: dict[str, Any], kind: str, clients: int, per_round: int, local: dict[str, Any], examples: int, **changes: Any
) -> Prepared:
    """`synthetic_on` a task of a kind, of which every client has so many examples."""
    return synthetic_on(synthetic_task(kind, clients * examples), config, clients, per_round, local, **changes)
