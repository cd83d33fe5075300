"""Stock modules without weights, with layers taken out, with weights of other shapes, and with blocks that are recomputed. It knows no family.

A parameter that several modules hold (tied embeddings) stays one: all its owners are changed together.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers.pytorch_utils import Conv1D

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import Layout, Parameter, is_kept
from raffm_ray.basics.errors import UserError


def owners_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """By a parameter's identity: every module that holds it, and by what name."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name))
    return owners


def without_weights(model: nn.Module) -> nn.Module:
    """Puts every parameter of a model on the meta device; returns the model."""
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    for key, owners in owners_of(model).items():
        empty = nn.Parameter(parameters[key].detach().to("meta"))
        for owner, name in owners:
            owner._parameters[name] = empty
    return model


def remove_layers(model: nn.Module, layout: Layout, plan: Plan) -> None:
    """Takes the layers that a plan drops out of their lists. The others keep their names, but their caches move up.

    Caches of keys and values are looked up by `layer_idx`, and how long a text is by the first of them.
    """
    stacks: dict[int, nn.ModuleList] = {}
    for name, spec in layout.parameters.items():
        if not is_kept(spec.layer, plan) and (stack := _remove(model, name, spec)) is not None:
            stacks[id(stack)] = stack
    for stack in stacks.values():
        for position, layer in enumerate(stack.children()):
            for module in layer.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx = position  # type: ignore[assignment]  # transformers' own attribute, an int


def _remove(model: nn.Module, name: str, spec: Parameter) -> nn.ModuleList | None:
    """Takes the layer that a dropped parameter belongs to out of its ModuleList, without renumbering the others; returns the list."""
    path = name.split(".")
    for depth in range(1, len(path)):
        owner = model.get_submodule(".".join(path[: depth - 1]))
        if isinstance(owner, nn.ModuleList):
            owner._modules.pop(path[depth - 1], None)
            return owner
        if path[depth - 1] not in owner._modules:
            return None
    return None


def install(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Gives a skeleton its parameters, whatever their shapes; returns it. The tensors are used as they are, not copied.

    Raises UserError when names are missing or left over.
    """
    present = dict(model.named_parameters())
    if set(present) != set(tensors):
        missing, unexpected = sorted(set(present) - set(tensors)), sorted(set(tensors) - set(present))
        raise UserError(f"parameters do not match the module: missing {missing[:3]}, unexpected {unexpected[:3]}")
    owners = owners_of(model)
    for name, tensor in tensors.items():
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
        for owner, attribute in owners[id(present[name])]:
            owner._parameters[attribute] = parameter
            if attribute == "weight":
                _set_sizes(owner, tensor)
    device = next(iter(tensors.values())).device
    for owner in model.modules() if device.type != "meta" else ():
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = None if buffer is None else buffer.to(device)
    return model


def _set_sizes(owner: nn.Module, weight: Tensor) -> None:
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = weight.shape
    elif isinstance(owner, Conv1D):
        owner.nx, owner.nf = weight.shape
    elif isinstance(owner, nn.LayerNorm):
        owner.normalized_shape = tuple(weight.shape)
    elif isinstance(owner, nn.Conv2d):
        owner.out_channels = weight.shape[0]
    elif isinstance(owner, nn.Embedding):
        owner.num_embeddings, owner.embedding_dim = weight.shape


def recompute_blocks(model: nn.Module, layout: Layout) -> nn.Module:
    """Has a model compute the blocks of its stacks again in the backward pass, so that only what each reads is kept till then (Chen et al. 2016,
    arXiv 1604.06174, section 4.1); returns it. Where nothing is trained, or no gradient asked for, it computes as before.

    Dropout draws the same again. The whole block is computed again, and not only what the backward pass still lacks: costs are exact.
    """
    for path, module in model.named_modules():
        if path in layout.blocks:
            module.forward = partial(_recomputed, module, module.forward)
    return model


def _recomputed(module: nn.Module, forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*arguments, **named)
    with set_checkpoint_early_stop(False):
        return checkpoint(forward, *arguments, use_reentrant=False, **named)
