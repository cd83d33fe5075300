"""Writes one subnetwork as a folder that loads on its own: weights, configuration, tokenizer, exports and model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.seeding import generator
from raffm_ray.clients.central_training import CentralTraining, train_centrally
from raffm_ray.clients.local_training import decayed_groups, one_thread
from raffm_ray.data.examples import batches
from raffm_ray.deployment.adapter_folder import write_adapter_folder
from raffm_ray.deployment.exports import (
    TOLERANCE,
    WORDS,
    export_onnx,
    export_torch,
    largest_difference,
    onnx_answer,
    outputs_of,
    quantize,
)
from raffm_ray.deployment.inference import Answer, extreme_inputs, metric_of, torch_answer, typical_inputs
from raffm_ray.deployment.model_card import card
from raffm_ray.deployment.trained_model import TrainedModel
from raffm_ray.models.architecture import Architecture, build, unadapted
from raffm_ray.models.freezing import for_training
from raffm_ray.models.objectives import objective_of, training_objective
from raffm_ray.runs.recorder import write_json
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.standalone import kept_of, load_standalone, save_standalone

TEMPERATURE = 2.0
"""Of the full model's answers while tuning."""


@dataclass(frozen=True)
class ExportFormats:
    """What is written beside the weights. `tune`: steps of training on the public part before that, none by default, on its labels or
    (`distill`) on what the full model answers; `adapter`: the adapters alone, in the files of peft; `elastic`: one file of all sizes (supernet.py); `examples`: how many are answered at once where
    times are taken. Raises UserError for numbers that are none, and for forms that cannot be had together."""

    onnx: bool = False
    int8: bool = False
    torch_export: bool = False
    tune: int = 0
    elastic: bool = False
    examples: int = 1
    distill: bool = False
    adapter: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (("tune", self.tune, 0), ("examples", self.examples, 1)):
            if not isinstance(value, int) or value < least:
                raise UserError(f"{name}: expected a whole number from {least}, got {value!r}")
        if self.distill and not self.tune:
            raise UserError("distill: of how many steps? tune says it")
        if self.elastic and self.tune:
            raise UserError("elastic: the file holds sizes as they are cut, without further training; leave out tune and distill")

    @property
    def last(self) -> str:
        """The form, of `FILES`, that a device is to use: the one that a search by latency takes the times of."""
        return "int8" if self.int8 else "onnx" if self.onnx else "torch"


def tuned(
    trained: TrainedModel, plan: Plan, tensors: Mapping[str, Tensor], steps: int, distill: bool = False
) -> dict[str, Tensor]:
    """A subnetwork after so many steps on the public part, trained as clients are (optimizer, batch size, clipping, precision, what is
    frozen); the learning rate is theirs and falls to 0.

    `distill`: on what the full model answers (Hinton et al. 2015, section 2) instead of the labels.
    """
    prepared, local = trained.prepared, trained.prepared.setup.experiment.local
    architecture, rate = prepared.setup.architecture, local.learning_rate
    assert rate is not None  # preparing chooses one
    module = for_training(
        build(architecture, {name: values.clone() for name, values in tensors.items()}, plan), architecture.layout
    )
    full = torch_answer(build(architecture, trained.cut(Plan()), Plan()).eval())
    rng, everything = generator(prepared.setup.experiment.seed, "tuning"), np.arange(len(prepared.task.public))
    training = CentralTraining(
        objective=training_objective(architecture),
        optimizer=lambda parameters: OPTIMIZERS[local.optimizer](decayed_groups(parameters, local.weight_decay), rate),
        rate=lambda step: rate * (1 - step / steps),
        clip=local.clip,
        precision=local.precision,
        teacher=full if distill else None,
        temperature=TEMPERATURE,
    )
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train_centrally(module, training, prepared.task.public, batches(everything, local.batch_size, steps, rng))
    return {name: values.detach() for name, values in module.named_parameters()}


def _widths(trained: TrainedModel, plan: Plan) -> dict[str, int]:
    """What every axis that is cut keeps."""
    kept = kept_of(trained.prepared.setup.architecture, plan)
    return {name: one if isinstance(one, int) else int(np.asarray(one).shape[-1]) for name, one in kept.items()}


def write_model(trained: TrainedModel, plan: Plan, folder: Path, formats: ExportFormats) -> dict[str, Any]:
    """Writes a subnetwork into an empty folder and returns what is measured of it: all but what takes time, which is done side by side.

    Raises UserError where an export cannot be made or does not answer as torch does.
    """
    prepared = trained.prepared
    architecture, task, experiment = prepared.setup.architecture, prepared.task, prepared.setup.experiment
    costs, full = (costs_of(*unadapted(architecture, one)) for one in (plan, Plan()))
    tensors = trained.cut(plan)
    told: dict[str, Any] = {
        "params": costs.params,
        "params_fraction": costs.params / full.params,
        "layer_fraction": costs.layer_params / max(1, full.layer_params),
        "macs": costs.macs,
        "inference_bytes": costs.inference_bytes,
        "metric_name": task.metric,
        "widths": _widths(trained, plan),
        "forms": {},
        "timed_examples": formats.examples,
    }
    if costs.params < trained.least_params:
        told["least_trained"] = trained.least_params
    measured_by = objective_of(architecture)
    if formats.tune:
        before = build(architecture, {name: values.clone() for name, values in tensors.items()}, plan).eval()
        told["before_tuning"] = metric_of(torch_answer(before), task, experiment.evaluation.batch_size, measured_by)
        told |= {"tuning_steps": formats.tune, "tuned_on": "the full model's answers" if formats.distill else "labels"}
        tensors = tuned(trained, plan, tensors, formats.tune, formats.distill)
    if formats.adapter:
        write_adapter_folder(trained, tensors, folder / ADAPTER)
    told["plain"] = save_standalone(folder, architecture, plan, tensors)
    save_inputs(trained, folder)
    shown = typical_inputs(task, 2)  # of the shortest texts, of one token, the tracer would take the length for a constant
    write_onnx(folder, task.head, shown, formats)
    told |= {"inputs": _inputs(architecture, shown), "outputs": list(outputs_of(task.head))}
    if formats.torch_export:
        export_torch(load_standalone(folder, task.head), shown, task.head, folder / PROGRAM)
        told["program"] = PROGRAM
    for form, answer in answers_of(folder, task.head).items():
        file = folder / FILES[form]
        metric = metric_of(answer, task, experiment.evaluation.batch_size, measured_by)
        told["forms"][form] = {"file": file.name, "bytes": file.stat().st_size, "metric": metric}
    if formats.onnx or formats.int8:
        both = answers_of(folder, task.head)
        apart = max(largest_difference(both["torch"], both["onnx"], one, task.head) for one in (shown, *extreme_inputs(task)))
        if not apart <= TOLERANCE:
            raise UserError(f"--onnx: the file's answers differ from torch's by {apart:.2g} (at most {TOLERANCE:g} are allowed)")
        told["forms"]["onnx"]["difference"] = apart
    return told


def write_onnx(folder: Path, head: str, shown: Mapping[str, Tensor], formats: ExportFormats) -> None:
    """Writes the ONNX files that are asked for beside a model; `shown`: inputs of two examples at least."""
    if formats.onnx or formats.int8:
        export_onnx(load_standalone(folder, head), shown, head, folder / FILES["onnx"])
    if formats.int8:
        quantize(folder / FILES["onnx"], folder / FILES["int8"])


def _inputs(architecture: Architecture, shown: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What exported files take: by name, the type and the shape, in words where any size will do."""
    longest = getattr(architecture.config, "max_position_embeddings", None)
    found = {}
    for name, values in shown.items():
        words = f"tokens (max_position_embeddings: {longest})" if longest else "any number of tokens"
        inner = [words] if name.endswith(WORDS) else list(values.shape[1:])
        found[name] = {"dtype": str(values.dtype).removeprefix("torch."), "shape": ["any number of examples", *inner]}
    return found


ADAPTER = "adapter"
"""The folder of a deployed model's adapters."""
PROGRAM = "model.pt2"
FILES = {"torch": "model.safetensors", "onnx": "model.onnx", "int8": "model.int8.onnx"}
"""A form that answers -> its file."""


def answers_of(folder: Path, head: str) -> dict[str, Answer]:
    """What answers in a deployed folder, by form. Raises UserError for what cannot be read."""
    found: dict[str, Answer] = {"torch": torch_answer(load_standalone(folder, head))}
    for form in ("onnx", "int8"):
        if (folder / FILES[form]).is_file():
            found[form] = onnx_answer(folder / FILES[form], head)
    return found


def save_inputs(trained: TrainedModel, folder: Path) -> None:
    """What turns texts or images into the model's inputs."""
    words, pictures = trained.prepared.foundation.words, trained.prepared.foundation.pictures
    if words is not None:
        words.tokenizer.save_pretrained(folder)
    if pictures is not None:
        sides = {"height": pictures.size, "width": pictures.size}
        write_json(
            folder / "preprocessor_config.json",
            {
                "image_processor_type": "ViTImageProcessor",
                "do_resize": True,
                "size": sides,
                "resample": 2,
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": list(pictures.mean),
                "image_std": list(pictures.deviation),
            },
        )


def write_card(trained: TrainedModel, told: Mapping[str, Any], folder: Path) -> None:
    """Writes README.md and deployed.json."""
    (folder / "README.md").write_text(card(trained.origin, trained.prepared.setup.architecture, told), encoding="utf-8")
    write_json(folder / "deployed.json", dict(told))
