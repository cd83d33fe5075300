"""The model that the federation starts from: freshly drawn, trained on the task's public part, and cached."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raffm_ray.architectures import Architecture, new_model
from raffm_ray.config import PretrainSettings
from raffm_ray.data import Examples, batches, steps_of
from raffm_ray.errors import UserError
from raffm_ray.messages import flatten, views
from raffm_ray.seeding import generator, torch_seed
from raffm_ray.training import backward, one_thread

Progress = Callable[[int, int], None]


def cache_folder() -> Path:
    """Where pretrained models are kept: `RAFFM_CACHE`, else `raffm_ray` in the user's cache folder."""
    chosen = os.environ.get("RAFFM_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raffm_ray"


def pretrain(architecture: Architecture, public: Examples, settings: PretrainSettings, seed: int, progress: Progress) -> Tensor:
    """Trains a fresh model on the public part (AdamW, cosine schedule to 0); returns its flat parameters. Same seed, same bits."""
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(torch_seed(seed, "pretraining"))
        model = new_model(architecture, torch_seed(seed, "weights"))
        model.train()
        steps = steps_of(len(public), settings.batch_size, settings.epochs, None)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        rng = generator(seed, "pretraining")
        everything = torch.arange(len(public)).numpy()
        for step, indices in enumerate(batches(everything, settings.batch_size, steps, rng)):
            optimizer.zero_grad(set_to_none=True)
            backward(model, public.batch(indices))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress(step + 1, steps)
    return flatten(dict(model.named_parameters()), architecture.shapes)


def pretrained(architecture: Architecture, public: Examples, settings: PretrainSettings, seed: int, progress: Progress) -> Tensor:
    """`pretrain`, from the cache when the same training was done before (a damaged cache file is replaced).

    Raises UserError when the cache cannot be written to, or training diverges.
    """
    data = sha256(b"".join(values.tobytes() for values in [*public.inputs.values(), public.labels])).hexdigest()
    versions = [torch.__version__, transformers.__version__]
    key = json.dumps(
        [architecture.config.to_diff_dict(), settings.model_dump(), seed, data, versions], sort_keys=True, default=str
    )
    path = cache_folder() / f"pretrained-{sha256(key.encode()).hexdigest()[:16]}.safetensors"
    temporary = path.with_suffix(f".{os.getpid()}")
    if path.is_file():
        try:
            return flatten(load_file(path), architecture.shapes)
        except (safetensors.SafetensorError, KeyError, OSError):
            path.unlink()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise UserError(
            f"the cache folder {path.parent} cannot be written to ({error.strerror}); RAFFM_CACHE names another"
        ) from None
    flat = pretrain(architecture, public, settings, seed, progress)
    if not bool(flat.isfinite().all()):
        temporary.unlink()
        raise UserError(f"model.pretrain: training diverged at learning_rate {settings.learning_rate}: parameters are not finite")
    save_file({name: values.clone() for name, values in views(flat, architecture.shapes).items()}, temporary)
    temporary.replace(path)
    return flat
