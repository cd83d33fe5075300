"""The model that the federation starts from: pretrained weights or freshly drawn ones, trained on the task's public part, and cached."""

import json
from collections.abc import Callable
from hashlib import sha256
from math import cos, pi
from pathlib import Path
from shutil import rmtree
from uuid import uuid4

import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.cache import writable_cache
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import in_turn
from raffm_ray.basics.seeding import generator, torch_seed
from raffm_ray.clients.central_training import CentralTraining, train_centrally
from raffm_ray.clients.local_training import OPTIMIZERS, one_thread
from raffm_ray.data.examples import Examples, batches, batches_by_length, steps_of
from raffm_ray.data.sources import content_key
from raffm_ray.models.architecture import Architecture, build, new_model
from raffm_ray.models.freezing import for_training
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.models.pretrained_weights import Source, pretrained_weights
from raffm_ray.settings.experiment import PretrainSettings

Progress = Callable[[int, int], None]


def starting_model(architecture: Architecture, source: Source | None, seed: int) -> nn.Module:
    """The full model with the weights of `source` and a fresh head, or all freshly drawn. Raises UserError as `pretrained_weights`."""
    if source is None:
        return new_model(architecture, torch_seed(seed, "weights"))
    # In float32 and fused whatever the federation computes with: it is cached, and all runs are to begin alike.
    return build(architecture, pretrained_weights(source, architecture, torch_seed(seed, "weights")), Plan(), "sdpa")


def pretrain(
    architecture: Architecture, source: Source | None, public: Examples, settings: PretrainSettings, seed: int, progress: Progress
) -> Tensor:
    """Trains the starting model on the public part (AdamW, linear warm-up, cosine schedule to 0); returns its flat parameters. Same seed, same bits."""
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(torch_seed(seed, "pretraining"))
        model = for_training(starting_model(architecture, source, seed), architecture.layout)
        steps = steps_of(len(public), settings.batch_size, settings.epochs, None)
        warm = int(settings.warmup * steps)
        training = CentralTraining(
            objective=OBJECTIVES[architecture.head],
            optimizer=lambda parameters: OPTIMIZERS["adamw"](parameters, settings.learning_rate, settings.weight_decay),
            rate=lambda step: (
                settings.learning_rate * (min(1.0, (step + 1) / (warm + 1)) * 0.5 * (1 + cos(pi * step / max(steps, 1))))
            ),
            clip=1.0,
        )
        rng = generator(seed, "pretraining")
        lengths, everything = public.lengths(), torch.arange(len(public)).numpy()
        order = (
            batches(everything, settings.batch_size, steps, rng)
            if lengths is None
            else batches_by_length(lengths, settings.batch_size, steps, rng)
        )
        train_centrally(model, training, public, order, lambda done: progress(done, steps))
    return flatten(dict(model.named_parameters()), architecture.shapes)


def pretrained(
    architecture: Architecture, source: Source | None, public: Examples, settings: PretrainSettings, seed: int, progress: Progress
) -> Tensor:
    """`pretrain`, from the cache when the same training was done before (a damaged cache file is replaced).

    Raises UserError when the cache cannot be written to, or training diverges.
    """
    versions = [torch.__version__, transformers.__version__]
    place = source.place if source else None
    origin = content_key(Path(place)) if place and Path(place).is_dir() else place
    described = [
        architecture.config.to_diff_dict(),
        architecture.head,
        origin,
        settings.model_dump(),
        seed,
        public.digest(),
        versions,
        *(name for name, spec in architecture.layout.parameters.items() if spec.frozen),
        *(["new head"] if source and source.new_head else []),
    ]
    key = json.dumps(described, sort_keys=True, default=str)
    path = writable_cache() / f"pretrained-{sha256(key.encode()).hexdigest()[:16]}.safetensors"
    with in_turn(path.with_suffix(".lock")):  # processes that start at once train it once
        if path.is_dir():
            rmtree(path)
        if path.is_file():
            try:
                return flatten(load_file(path), architecture.shapes)
            except (safetensors.SafetensorError, KeyError, OSError):
                path.unlink()
        flat = pretrain(architecture=architecture, source=source, public=public, settings=settings, seed=seed, progress=progress)
        if not bool(flat.isfinite().all()):
            raise UserError(
                f"model.pretrain: training diverged at learning_rate {settings.learning_rate}: parameters are not finite"
            )
        temporary = path.with_suffix(f".{uuid4().hex}")
        save_file({name: values.clone() for name, values in views(flat, architecture.shapes).items()}, temporary)
        temporary.replace(path)
        return flat
