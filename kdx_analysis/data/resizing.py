"""Named data sets at another size than their makers gave them."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdx_analysis.data.dataset import ImageStore, Split, TensorImages
from kdx_analysis.data.sources import Source
from kdx_analysis.errors import KdxError

_CHUNK = 4096  # images resized at once: as float32, 50 MB at 3×32×32


def check_size(size: int) -> None:
    """Raise KdxError for a number of pixels that no image can have."""
    if size < 1:
        raise KdxError(f"size is {size} pixels: it must be at least 1")


def resized(source: Source, size: int) -> Source:
    """``source`` with square images of ``size`` pixels a side, or itself where they are so already.

    Images are resized to cover the square, by antialiased bilinear interpolation, rounded to uint8,
    and centre-cropped. Mean and std are left out, since they are those of images of the old size,
    and padding is scaled with the images.
    """
    _, height, width = source.train.images.shape
    if (height, width) == (size, size):
        return source

    def smaller(split: Split) -> Split:
        return replace(split, images=_resized(split.images, size))

    pad = max(1, round(source.pad * size / min(height, width))) if source.pad else 0
    return replace(
        source,
        train=smaller(source.train),
        val=None if source.val is None else smaller(source.val),
        test=smaller(source.test),
        mean=None,
        std=None,
        pad=pad,
    )


def _resized(images: ImageStore, size: int) -> TensorImages:
    from torchvision.transforms.v2 import functional  # takes a second to import

    parts = [
        functional.center_crop(
            functional.resize(images.take(indices), [size], antialias=True), [size, size]
        )
        for indices in torch.arange(len(images)).split(_CHUNK)
    ]
    return TensorImages(torch.cat(parts))
