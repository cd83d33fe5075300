"""The model that the federation starts from: pretrained weights or freshly drawn ones, trained on the task's public part, and cached."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import cos, inf, nan, pi, prod
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import safetensors
import torch
import transformers
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.cache import writable_cache
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import in_turn
from raffm_ray.basics.formatting import counted
from raffm_ray.basics.seeding import generator, torch_seed
from raffm_ray.clients.central_training import CentralTraining, train_centrally
from raffm_ray.clients.local_training import decayed_groups, one_thread
from raffm_ray.data.examples import Examples, batches, batches_by_length, steps_of
from raffm_ray.data.sources import content_key
from raffm_ray.models.architecture import Architecture, build, new_model
from raffm_ray.models.freezing import for_training
from raffm_ray.models.objectives import objective_of, training_objective
from raffm_ray.models.pretrained_weights import Source, new_parameters, pretrained_weights
from raffm_ray.preparation.head_training import FOLDS, MOST_PASSES, PATIENCE, HeadWork, head_examples, head_parameters, train_head
from raffm_ray.settings.task_and_model import PretrainSettings
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS

Progress = Callable[[int, int, float], None]
"""(steps done, steps in all, loss of the last one: infinite where there is none yet). The first call, of no step, is before anything is done."""
MEASURED_EXAMPLES = 512
"""Most held-out examples whose loss is measured before and after."""


@dataclass(frozen=True)
class Pretraining:
    """What is trained before round 1. `public`: the examples to train on; `held_out`: those that tell whether it helped; `settings`: with
    every choice made; `code`: digests of plug-ins, which may be of anything in it; `texts`: how many the public examples are blocks of, None
    where they are no blocks."""

    architecture: Architecture
    source: Source | None
    public: Examples
    held_out: Examples
    settings: PretrainSettings
    seed: int
    code: tuple[str, ...] = ()
    texts: int | None = None

    def steps(self) -> tuple[int, int]:
        """Steps of the new head alone, of which `head_training.HeadWork` says what they are, and of the whole model."""
        settings, head = self.settings, self.head()
        whole = steps_of(len(self.public), settings.batch_size, settings.epochs or 0, None)
        return head.steps() if head else 0, whole

    def head(self) -> HeadWork | None:
        """The training of the new head alone; None where there is none."""
        settings, architecture = self.settings, self.architecture
        if not settings.head_epochs:
            return None
        names = head_parameters(architecture.layout, new_parameters(self.source, architecture))
        shown = head_examples(architecture, len(self.public))
        examples = self.public if shown == len(self.public) else self.public.part(np.arange(shown))
        return HeadWork(architecture=architecture, names=names, examples=examples, settings=settings) if names else None

    def described(self) -> str:
        """What will be done, in a line; empty where nothing is."""
        settings, head, parts = self.settings, self.head(), list[str]()
        if head:
            least = head.settings.head_epochs
            passes = f"at most {MOST_PASSES} epochs" if least == "auto" else counted(least or 0, "epoch")
            few = f" on {len(head.examples):,} of them" if len(head.examples) < len(self.public) else ""
            parts = [
                f"{passes} of the new head ({sum(map(prod, (self.architecture.shapes[name] for name in head.names))):,} parameters{few})"
            ]
        if settings.epochs:
            parts.append(f"{counted(settings.epochs, 'epoch')} of the full model")
        shown = counted(len(self.public), "public example")
        if self.texts is not None:
            shown = f"{counted(len(self.public), 'block')} of {counted(self.texts, 'public text')}"
        steps = f", {counted(self.steps()[1], 'step')}" if settings.epochs else ""
        return f"pretraining: {' and '.join(parts)} on {shown}{steps}" if parts else ""


class Pretrained(NamedTuple):
    """`flat`: the parameters; `before`, `after`: mean loss of held-out examples, NaN where nothing was trained; `cached`: whether it had been done before;
    `head_epochs`: passes in which the head was trained alone."""

    flat: Tensor
    before: float
    after: float
    cached: bool = False
    head_epochs: int = 0


def starting_model(architecture: Architecture, source: Source | None, seed: int) -> nn.Module:
    """The full model with the weights of `source` and a fresh head, or all freshly drawn. Raises UserError as `pretrained_weights`."""
    if source is None:
        return new_model(architecture, torch_seed(seed, "weights"))
    # In float32 and fused whatever the federation computes with: it is cached, and all runs are to begin alike.
    return build(architecture, pretrained_weights(source, architecture, torch_seed(seed, "weights")), Plan(), "sdpa")


def _held_out_loss(model: nn.Module, work: Pretraining) -> float:
    """Mean loss of the first held-out examples."""
    objective, total = objective_of(work.architecture), []
    model.eval()
    with torch.inference_mode():
        for rows in np.array_split(np.arange(min(MEASURED_EXAMPLES, len(work.held_out))), MEASURED_EXAMPLES // 32):
            if len(rows):
                batch = work.held_out.batch(rows)
                output = model(**{name: values for name, values in batch.items() if name != "labels"})
                total += [float(objective.loss(output, batch["labels"], "mean"))] * len(rows)
    return float(np.mean(total))


def _order(work: Pretraining, steps: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    lengths = work.public.lengths()
    if lengths is None:
        return batches(np.arange(len(work.public)), work.settings.batch_size, steps, rng)
    return batches_by_length(lengths, work.settings.batch_size, steps, rng)


def pretrain(work: Pretraining, progress: Progress) -> Pretrained:
    """Trains the starting model on the public part (AdamW, linear warm-up, cosine schedule to 0): a new head of a pretrained model first
    alone, then everything that is not frozen. Same seed, same bits."""
    architecture, settings, total = work.architecture, work.settings, sum(work.steps())
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(torch_seed(work.seed, "pretraining"))
        if total:
            progress(0, total, inf)
        model = starting_model(architecture, work.source, work.seed)
        rng = generator(work.seed, "pretraining")
        before = _held_out_loss(model, work) if total else nan
        (alone, whole), head, passes = work.steps(), work.head(), 0
        if head:
            passes = train_head(model, head, rng, partial(_onwards, progress, 0, total))
        if whole:
            assert settings.learning_rate is not None  # preparing chooses one
            for_training(model, architecture.layout)
            _train_phase(model, work, whole, settings.learning_rate, rng, partial(_onwards, progress, alone, total))
        return Pretrained(
            flat=flatten(dict(model.named_parameters()), architecture.shapes),
            before=before,
            after=_held_out_loss(model, work) if total else before,
            head_epochs=passes,
        )


def _onwards(progress: Progress, before: int, total: int, step: int, loss: float) -> None:
    progress(before + step, total, loss)


def _train_phase(
    model: nn.Module, work: Pretraining, steps: int, rate: float, rng: np.random.Generator, progress: Callable[[int, float], None]
) -> None:
    settings = work.settings
    warm = int(settings.warmup * steps)
    training = CentralTraining(
        objective=training_objective(work.architecture),
        optimizer=lambda parameters: OPTIMIZERS["adamw"](decayed_groups(parameters, settings.weight_decay), rate),
        rate=lambda step: rate * (min(1.0, (step + 1) / (warm + 1)) * 0.5 * (1 + cos(pi * step / steps))),
        clip=1.0,
    )
    train_centrally(model, training, work.public, _order(work, steps, rng), progress)


def _cache_path(work: Pretraining) -> Path:
    """Raises UserError when the cache cannot be written to."""
    source, architecture = work.source, work.architecture
    place = source.place if source else None
    origin = content_key(Path(place)) if place and Path(place).is_dir() else place
    described = [
        architecture.config.to_diff_dict(),
        architecture.head,
        origin,
        work.settings.model_dump(),
        work.seed,
        work.public.digest(),
        work.held_out.digest(),
        [torch.__version__, transformers.__version__],
        *(name for name, spec in architecture.layout.parameters.items() if spec.frozen),
        *(["new head"] if source and source.new_head else []),
        *(["head", sorted(head.names), FOLDS, MOST_PASSES, PATIENCE] if (head := work.head()) else []),
        *(["adapters", repr(architecture.adapters)] if architecture.adapters else []),
        *(["begun with", content_key(Path(source.adapters))] if source and source.adapters else []),
        *(["class weights", *architecture.class_weights] if architecture.class_weights else []),
        *(["code", *work.code, architecture.objective, json.dumps(architecture.own, sort_keys=True)] if work.code else []),
    ]
    key = json.dumps(described, sort_keys=True, default=str)
    return writable_cache() / f"pretrained-{sha256(key.encode()).hexdigest()[:16]}.safetensors"


def pretrained(work: Pretraining, progress: Progress) -> Pretrained:
    """`pretrain`, from the cache when the same training was done before (a damaged cache file is replaced).

    Without a step, it is the starting model, and nothing is kept. Raises UserError when the cache cannot be written to, or training diverges.
    """
    if not sum(work.steps()):
        return pretrain(work, progress)
    path, shapes = _cache_path(work), work.architecture.shapes
    with in_turn(path.with_suffix(".lock")):  # processes that start at once train it once
        if path.is_dir():
            rmtree(path)
        if path.is_file():
            try:
                with safe_open(path, "pt") as opened:
                    told = opened.metadata()
                return Pretrained(
                    flat=flatten(load_file(path), shapes),
                    before=float(told["before"]),
                    after=float(told["after"]),
                    cached=True,
                    head_epochs=int(told.get("head_epochs", 0)),
                )
            except (safetensors.SafetensorError, KeyError, OSError, TypeError, ValueError):
                path.unlink()
        made = pretrain(work, progress)
        if not bool(made.flat.isfinite().all()):
            raise UserError(
                f"model.pretrain: training diverged at learning_rate {work.settings.learning_rate}: parameters are not finite"
            )
        temporary = path.with_suffix(f".{uuid4().hex}")
        tensors = {name: values.clone() for name, values in views(made.flat, shapes).items()}
        told = {"before": repr(made.before), "after": repr(made.after), "head_epochs": str(made.head_epochs)}
        save_file(tensors, temporary, told)
        temporary.replace(path)
        return made
