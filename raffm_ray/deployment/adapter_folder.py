"""A model's adapters alone, as a folder that `peft` opens on the model that they were trained beside."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.deployment.trained_model import TrainedModel
from raffm_ray.models.adapters.peft_files import write_adapters
from raffm_ray.models.architecture import skeleton, unadapted
from raffm_ray.models.pretrained_weights import pretrained_weights
from raffm_ray.subnetworks.costs import costs_of


def check_adapter_folder(trained: TrainedModel, plans: Iterable[Plan]) -> None:
    """Raises UserError for a model without adapters, one whose frozen part is not the pretrained model any more, and plans that cut more than ranks."""
    setup = trained.prepared.setup
    source, architecture = trained.prepared.foundation.source, setup.architecture
    if architecture.adapters is None:
        raise UserError("--adapter: the model has none (model.adapters)")
    if source is None:
        raise UserError("--adapter: the frozen model was drawn, not pretrained: nothing else has it; leave out --adapter")
    whole, now = pretrained_weights(source, architecture, 0), trained.cut(Plan())
    for name in architecture.frozen_shapes:
        if not architecture.layout.parameters[name].adapts and not torch.equal(
            whole[name].to(architecture.frozen_dtype).float(), now[name]
        ):
            raise UserError(
                f"--adapter: {name} is not that of {source.place} any more (salience.rotation, pretraining, or a rule that adds to it): the "
                "adapters fit the run's own model alone, which is what is deployed without --adapter"
            )
    sizes = [costs_of(*unadapted(architecture, plan)).params for plan in (Plan(), *plans)]
    if min(sizes) < sizes[0]:
        raise UserError(
            "--adapter: the subnetwork cuts the frozen model, so that its adapters fit nothing else: leave out --adapter, or cut ranks alone"
        )


def write_adapter_folder(trained: TrainedModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the adapters and heads of a subnetwork that passed `check_adapter_folder`. `tensors`: its parameters by name."""
    architecture, source = trained.prepared.setup.architecture, trained.prepared.foundation.source
    assert architecture.adapters is not None
    assert source is not None
    adapted = {f"{module}.weight" for module in architecture.adapters.modules}
    kept = {
        name: values
        for name, values in tensors.items()
        if name in architecture.trained_shapes or architecture.layout.parameters[name].adapts
    }
    model = skeleton(architecture, Plan())
    transposed = any(isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D) for name in adapted)
    write_adapters(folder, kept, architecture.adapters, source.place, transposed)
