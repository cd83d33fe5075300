"""Reads activations with hooks while a model runs over batches, and leaves the model as it was."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def mask_for(states: Tensor, batch: Mapping[str, Tensor], positions: str | None) -> Tensor | None:
    """Which of the positions of activations [batch, positions, size] are real; None where all are, or nothing is known.

    `positions`: their kind, as in `Parameter.matmul`: those of a text that is written have another mask than those of one that is read.
    """
    mask = batch.get("decoder_attention_mask" if positions == "targets" else "attention_mask")
    return mask if mask is not None and mask.shape == states.shape[:-1] else None


def real_positions(states: Tensor, batch: Mapping[str, Tensor], positions: str | None) -> Tensor:
    """[real positions, size] of activations [batch, positions, size]."""
    mask = mask_for(states, batch, positions)
    return states.flatten(0, -2) if mask is None else states[mask.bool()]


def observe(
    model: nn.Module, handles: Sequence[RemovableHandle], batches: Iterable[Mapping[str, Tensor]], current: dict[str, Tensor]
) -> None:
    """Runs batches forward, without gradients or dropout; `current` holds the batch that hooks are seeing. Removes the hooks."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                current.clear()
                current.update(batch)
                model(**{key: values for key, values in batch.items() if key != "labels"})
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
