"""Augmentation of uint8 images, drawn per sample and applied to the whole batch at once.

The draws are made on the CPU and then moved, so a seed gives the same images on every device.
"""

from __future__ import annotations

import numpy as np
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
    return _cropped(images, pad, generator)


@jaxtyped(typechecker=beartype)
def flip(images: UInt8[Tensor, "B C H W"], generator: torch.Generator) -> UInt8[Tensor, "B C H W"]:
    """Mirror each sample left to right with probability ½.

    Draws B numbers from ``generator``, on the CPU.

    >>> images = torch.arange(4, dtype=torch.uint8).view(2, 1, 1, 2)
    >>> flip(images, torch.Generator().manual_seed(0)).flatten(1).tolist()
    [[1, 0], [2, 3]]
    """
    return _flipped(images, generator)


def augment(images: Tensor, pad: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """Pad and crop, then mirror, B×C×H×W uint8 images as a data set's ``pad`` and ``flip`` say.

    It is part of every training step, so of its types the one that matters is checked alone.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 to be augmented, got {images.dtype}")
    if pad:
        images = _cropped(images, pad, generator)
    if mirror:
        images = _flipped(images, generator)
    return images


def _cropped(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    offsets = torch.randint(2 * pad + 1, (2, len(images)), generator=generator)
    return (_copied if images.device.type == "cpu" else _gathered)(images, pad, offsets)


def _gathered(images: Tensor, pad: int, offsets: Tensor) -> Tensor:
    """The crops at ``offsets``, 2×B, pixel by pixel: one operation, as a GPU likes it."""
    B, _, H, W = images.shape
    down, across = offsets.to(images.device, non_blocking=True)
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, H, 1).unfold(3, W, 1)
    return windows[torch.arange(B, device=images.device), :, down, across]


def _copied(images: Tensor, pad: int, offsets: Tensor) -> Tensor:
    """The crops at ``offsets``, 2×B, of images on the CPU, each channel as one run of bytes.

    With rows one behind the other, a crop is what lies between its first pixel and its last, less
    what it cuts off between rows. The zeros between two rows pad both of them.
    """
    B, C, H, W = images.shape
    height, width = H + 2 * pad, W + pad
    run = H * width
    # Behind the last image lie zeros too, into which the run of its lowest crop reaches.
    pixels = torch.zeros(B * C * height * width + run, dtype=torch.uint8)
    padded = pixels[:-run].view(B, C, height, width)
    padded[:, :, pad : pad + H, pad:] = images
    first = torch.arange(B * C).view(B, C) * (height * width)
    first += (offsets[0] * width + offsets[1])[:, None]
    # NumPy copies a run as one element of that many bytes; PyTorch would copy it byte by byte.
    runs = np.ndarray((len(pixels) - run + 1,), f"V{run}", pixels.numpy(), strides=(1,))
    taken = torch.from_numpy(runs[first.numpy()].view(np.uint8))
    return taken.view(B, C, H, width)[..., :W].contiguous()


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    chosen = mirrored.to(images.device, non_blocking=True).byte()[:, None, None, None]
    # x + 1·(y − x) is y and x + 0·(y − x) is x, exactly so in bytes, which wrap around; torch.where
    # with a mask that is broadcast takes several times as long.
    return images.flip(3).sub_(images).mul_(chosen).add_(images)
