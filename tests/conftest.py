import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from raffm_ray.architectures import Architecture, architecture_of, new_model, parse_config
from raffm_ray.config import Experiment, parse

TINY: dict[str, dict[str, Any]] = {
    model_type: {
        "model_type": model_type, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40,
        "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }
    for model_type in ("vit", "deit")
}  # fmt: skip
"""A small random configuration of every family; the contract tests loop over it."""


def tiny_experiment(**changes: Any) -> Experiment:
    """A run of seconds: digits, ten clients, five classes."""
    config = {key: value for key, value in TINY["vit"].items() if key != "num_labels"}
    values: dict[str, Any] = {
        "name": "tiny",
        "rounds": 2,
        "model": {"config": config, "pretrain": {"epochs": 3}},
        "clients": {"count": 12, "per_round": 5},
        "fleet": {
            "mix": "medium",
            "shares": {"raspberry_pi_4": 0.2, "v100": 0.3},
            "budgets": {
                "raspberry_pi_4": {"params": 0.4},
                "raspberry_pi_5": {"params": 0.5},
                "laptop": {"params": 0.65},
                "jetson_agx_orin": {"params": 0.8},
                "v100": {"params": 1.0},
            },
        },
        "extraction": {"steps": {"heads": 1, "qk": 2, "vo": 2, "ffn": 4, "residual": 4}, "floors": {"residual": 0.5}},
        "salience": {"every": 1, "clients": 2},
        "pool": {"backend": "in_process"},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse(values)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["RAFFM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def four_cores() -> Iterator[None]:
    """A local Ray with four logical cores and two logical GPUs, for every test that needs workers."""
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(params=sorted(TINY))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return architecture_of(parse_config(TINY[request.param]), "image_classification")


@pytest.fixture
def model(architecture: Architecture) -> torch.nn.Module:
    """A full model whose weights are all away from their initial zeros and ones."""
    full = new_model(architecture, 1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return full


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"
