"""Running a model over batches to look at what passes through it, and leaving it as it was."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def real_positions(states: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """[real positions, size] of activations [batch, positions, size]: without those that a mask of that shape calls padding."""
    for name in ("attention_mask", "decoder_attention_mask"):
        if name in batch and batch[name].shape == states.shape[:-1]:
            return states[batch[name].bool()]
    return states.flatten(0, -2)


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
