"""Random changes of a client's images: crops of padded ones, and horizontal flips."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raffm_ray.basics.errors import UserError
from raffm_ray.data.examples import sent
from raffm_ray.data.tasks import Task
from raffm_ray.settings.experiment import LocalSettings

IMAGES = "pixel_values"
Moves = NDArray[np.int64]
"""[examples, 3]: rows and columns by which an image is moved up and left in its padding, and whether it is flipped."""


def check_augmentation(local: LocalSettings, task: Task) -> None:
    """Raises UserError where examples are to be changed that are no images, or moved out of sight."""
    if not (local.crop_padding or local.flip):
        return
    name, value = ("crop_padding", local.crop_padding) if local.crop_padding else ("flip", local.flip)
    if IMAGES not in task.clients.inputs:
        raise UserError(f"local.{name}: {value} is for images, and task {task.name!r} has none")
    size = min(task.clients.batch(slice(0, 1))[IMAGES].shape[2:])
    if local.crop_padding >= size:
        raise UserError(f"local.crop_padding: must be less than the {size} pixels of an image's side, got {local.crop_padding}")


def moves_of(local: LocalSettings, rng: np.random.Generator | None, count: int) -> Moves | None:
    """Draws how a client's next examples are changed; None where they stay as they are."""
    if rng is None or not (local.crop_padding or local.flip):
        return None
    moves = np.full((count, 3), local.crop_padding, dtype=np.int64)
    if local.crop_padding:
        moves[:, :2] = rng.integers(2 * local.crop_padding + 1, size=(count, 2))
    moves[:, 2] = rng.integers(2, size=count) if local.flip else 0
    return moves


def moved(batch: Mapping[str, Tensor], moves: Moves | None, padding: int) -> dict[str, Tensor]:
    """A batch with its images changed: padded with zeros by `padding` on every side, which is the mean colour of normalised images, cropped
    to their size and flipped (He et al. 2016, section 4.2). Pixels are only copied: the bits are the same on every device."""
    if moves is None:
        return dict(batch)
    images = batch[IMAGES]
    count, channels, height, width = images.shape
    device = str(images.device)
    down, right, flipped = sent(torch.from_numpy(moves), device).unbind(1)
    each = torch.arange(width, device=device).expand(count, -1)
    rows = down[:, None] + torch.arange(height, device=device)
    columns = right[:, None] + torch.where(flipped[:, None].bool(), width - 1 - each, each)
    padded = nn.functional.pad(images, (padding,) * 4)
    examples, all_channels = torch.arange(count, device=device), torch.arange(channels, device=device)
    found = padded[
        examples[:, None, None, None], all_channels[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]
    return {**batch, IMAGES: found}
