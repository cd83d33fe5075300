"""The last layer of a classifier that looks at one position only: it computes nothing that nobody reads.

BERT-like and ViT-like classifiers answer from the first position of the last layer. Its keys and values are needed at all positions,
but what comes after its attention only at the first: an eighth of a model of six layers. Outputs and gradients are the same up to
rounding.
"""

from typing import Any

from torch import Tensor, nn

from raffm_ray.axes.indexing import Plan, dim_axes
from raffm_ray.axes.layout import is_kept
from raffm_ray.models.architecture import Architecture


def reads_first_position(architecture: Architecture) -> bool:
    """Whether the head is given one position of an example."""
    heads = [spec for spec in architecture.layout.parameters.values() if spec.matmul and spec.layer is None and not spec.raw]
    return bool(heads) and all(spec.matmul == "examples" for spec in heads)


def _first(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    states: Tensor = inputs[0]
    return (states[:, :1], *inputs[1:])


def compute_first_position(architecture: Architecture, plan: Plan, model: nn.Module) -> nn.Module:
    """Has a model built from a plan compute the first position alone where its last layer can; returns it.

    What the layer adds to the stream is then one position long, and added to all: right at the first, and read by nobody at the others.
    """
    layout = architecture.layout
    kept = [site for site in layout.attentions if is_kept(site.layer, plan)]
    if not kept or not reads_first_position(architecture):
        return model
    last = kept[-1]
    model.get_submodule(last.module).subnetwork_first = True  # type: ignore[assignment]  # read by models/attention.py
    for name, spec in layout.parameters.items():
        if spec.layer == last.layer and spec.matmul and len(spec.dims) == 2:
            reads, makes = (set(dim_axes(spec.dims[at])) for at in (spec.reads, 1 - spec.reads))
            if reads & set(dim_axes(last.vo)) or makes & set(dim_axes(last.ffn or ())):
                model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(_first)
    return model
