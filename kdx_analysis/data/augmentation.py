"""Augmentation of uint8 images, drawn per sample and applied to the whole batch at once.

The draws are made on the CPU and then moved, so a seed gives the same images on every device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import UInt8, jaxtyped
from torch import Tensor


@jaxtyped(typechecker=beartype)
def pad_and_crop(
    images: UInt8[Tensor, "B C H W"], pad: int, generator: torch.Generator
) -> UInt8[Tensor, "B C H W"]:
    """Pad each side with ``pad`` zeros and crop H×W at a random offset, per sample.

    Offsets are uniform over {0, …, 2·pad}². Draws from ``generator`` (on the CPU) a 2×B tensor: the
    offsets down, then those across.

    >>> images = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    >>> pad_and_crop(images, 1, torch.Generator().manual_seed(0))[0, 0].tolist()
    [[0, 3, 4], [0, 6, 7], [0, 0, 0]]
    """
    B, _, H, W = images.shape
    offsets = torch.randint(2 * pad + 1, (2, B), generator=generator)
    down, across = offsets.to(images.device, non_blocking=True)
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, H, 1).unfold(3, W, 1)
    return windows[torch.arange(B, device=images.device), :, down, across]


@jaxtyped(typechecker=beartype)
def flip(images: UInt8[Tensor, "B C H W"], generator: torch.Generator) -> UInt8[Tensor, "B C H W"]:
    """Mirror each sample left to right with probability ½.

    Draws B numbers from ``generator``, on the CPU.

    >>> images = torch.arange(4, dtype=torch.uint8).view(2, 1, 1, 2)
    >>> flip(images, torch.Generator().manual_seed(0)).flatten(1).tolist()
    [[1, 0], [2, 3]]
    """
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    mirrored = mirrored.to(images.device, non_blocking=True)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def augment(images: Tensor, pad: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """Pad and crop, then mirror, B×C×H×W uint8 images as a data set's ``pad`` and ``flip`` say."""
    if pad:
        images = pad_and_crop(images, pad, generator)
    if mirror:
        images = flip(images, generator)
    return images
