"""Test images corrupted step by step, and how alike student and teacher stay on them.

Every corruption is one of torchvision's (v2) at five severities, which this table holds; sizes are
shares of the image's shorter side, so that 8×8 and 224×224 are worn down alike. Severity 0 is the
image itself.

=========== ============================================= ==== ==== ==== ==== ====
corruption  strength                                         1    2    3    4    5
=========== ============================================= ==== ==== ==== ==== ====
noise       σ of Gaussian noise, pixels in [0, 1]          .04  .08  .12  .18  .26
blur        σ of a blur, per cent of side, from .35 pixel   1.5  2.5  3.5  4.5    6
contrast    factor on the distance from the mean grey      .75  .50  .40  .30  .15
pixelation  side that is left / side                       .80  .65  .50  .40  .30
rotation    degrees, either way                              6   12   18   24   30
=========== ============================================= ==== ==== ==== ==== ====

The steps of noise and contrast lie between those of CIFAR-10-C and ImageNet-C (Hendrycks &
Dietterich 2019, arXiv 1903.12261); blur and pixelation are theirs made independent of the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from beartype import beartype
from jaxtyping import Int, UInt8, jaxtyped
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from kdx_analysis import _compat  # noqa: F401  before torchvision
from kdx_analysis.data import Dataset, Split
from kdx_analysis.data.dataset import TensorImages
from kdx_analysis.data.splits import take_per_class
from kdx_analysis.errors import KdxError
from kdx_analysis.probes.contract import study_probe
from kdx_analysis.records import IMAGES, count, kind, number, text
from kdx_analysis.registry import unknown

CLEAN, WORST = "clean", 5
_PIXEL = 0.35  # σ that every blur has, added in squares
_AT_ONCE = 512  # images corrupted together: as many as a model is asked for in one pass


@dataclass(frozen=True)
class Corruption:
    """One way to wear images down.

    Attributes:
        apply: (images, strength, ids, seed) → images, uint8 B×C×H×W.
        strengths: of severities 1 to 5, as the table of this module has them.
    """

    apply: Callable[[Tensor, float, Tensor, int], Tensor]
    strengths: tuple[float, float, float, float, float]


def _noise(images: Tensor, sigma: float, ids: Tensor, seed: int) -> Tensor:
    # torchvision draws from torch's global generator for a batch as a whole, so that an image's
    # noise would hang on the images beside it. Severities share a draw: only σ grows.
    shape = tuple(images.shape[1:])
    draws = [_draws(seed, image).standard_normal(shape, np.float32) for image in ids.tolist()]
    noise = torch.from_numpy(np.stack(draws))
    # Sensors saturate: what is lighter than white is white.
    return (images + 255 * sigma * noise).round().clamp(0, 255).to(torch.uint8)


def _blur(images: Tensor, percent: float, ids: Tensor, seed: int) -> Tensor:
    height, width = images.shape[-2:]
    # A sampled Gaussian of less than a third of a pixel does not reach the next one, so that on
    # 8×8 the first steps would be no blur at all.
    sigma = math.hypot(_PIXEL, percent / 100 * min(height, width))
    # Beyond three σ a Gaussian holds .3 % of its mass; below 8×8 the padding allows less.
    reach = min(max(1, math.ceil(3 * sigma)), min(height, width) - 1)
    return _functional().gaussian_blur(images, [2 * reach + 1] * 2, [sigma] * 2)


def _contrast(images: Tensor, factor: float, ids: Tensor, seed: int) -> Tensor:
    return _functional().adjust_contrast(images, factor)


def _pixelation(images: Tensor, share: float, ids: Tensor, seed: int) -> Tensor:
    height, width = images.shape[-2:]
    coarse = [max(1, round(share * height)), max(1, round(share * width))]
    small = _functional().resize(images, coarse, antialias=True)
    nearest = _functional().InterpolationMode.NEAREST
    return _functional().resize(small, [height, width], interpolation=nearest)


def _rotation(images: Tensor, degrees: float, ids: Tensor, seed: int) -> Tensor:
    """Which way is drawn for each image; corners are filled with black, as crops are padded."""
    bilinear = _functional().InterpolationMode.BILINEAR
    left, right = (
        _functional().rotate(images, angle, interpolation=bilinear) for angle in (degrees, -degrees)
    )
    ways = torch.tensor([bool(_draws(seed, image).integers(2)) for image in ids.tolist()])
    return torch.where(ways[:, None, None, None], left, right)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": Corruption(_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "blur": Corruption(_blur, (1.5, 2.5, 3.5, 4.5, 6)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelation": Corruption(_pixelation, (0.8, 0.65, 0.5, 0.4, 0.3)),
    "rotation": Corruption(_rotation, (6, 12, 18, 24, 30)),
}


class ShiftOptions(BaseModel):
    """Which corruptions, on how many test images at most, as many of every class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    corruptions: tuple[str, ...] = Field(default=tuple(CORRUPTIONS), min_length=1)
    images: int = Field(default=2000, ge=1)

    @field_validator("corruptions")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in CORRUPTIONS:
                raise ValueError(str(unknown("corruption", name, CORRUPTIONS)))
        return tuple(dict.fromkeys(names))


SHIFT = study_probe(
    "shift",
    title="likeness to the teachers on corrupted test images",
    kinds=("shift",),
    options=ShiftOptions,
    listed="corruptions",
    home=__name__,
)
kind(
    "shift",
    "Likeness of one network to one teacher on test images under a corruption, and its accuracy.",
    home=__name__,
    keys=(
        text("corruption", "one of noise, blur, contrast, pixelation, rotation; clean: none"),
        count("severity", "from 1 to 5; 0 of clean images", high=WORST),
        text("teacher", "run of the teacher that it is compared with; '' for accuracy"),
        text("metric", "a likeness of the method, or accuracy"),
    ),
    values=(
        number("value", "of the metric, NaN where it is undefined"),
        number("chance", "what other images of the class give; NaN where there is no such figure"),
        IMAGES,
    ),
)


@jaxtyped(typechecker=beartype)
def corrupted(
    images: UInt8[Tensor, "B C H W"],
    name: str,
    severity: int,
    ids: Int[Tensor, " B"],
    seed: int = 0,
) -> UInt8[Tensor, "B C H W"]:
    """Images under a corruption of :data:`CORRUPTIONS`, at a severity from 1 to 5.

    What is drawn (noise, and which way an image is turned) hangs on the image's id and the seed
    alone, neither on the images beside it nor on torch's random state, which stays as it is.

    Args:
        images: B×C×H×W.
        name: of the corruption.
        severity: 1 to 5; 0 gives the images back.
        ids: of the images, B.
        seed: of what is drawn.

    Raises:
        KdxError: an unknown corruption, another severity, or contrast of images that are neither
            grey nor in colour.

    >>> image = torch.tensor([[[[0, 100], [100, 200]]]], dtype=torch.uint8)
    >>> corrupted(image, "contrast", 2, torch.tensor([7])).flatten().tolist()
    [50, 100, 100, 150]
    >>> corrupted(image, "rotation", 0, torch.tensor([7])).flatten().tolist()
    [0, 100, 100, 200]
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if not 0 <= severity <= WORST:
        raise KdxError(f"severity {severity} of {name} should lie in 0, the image itself, to 5")
    _check_channels(name, images.shape[1])
    if severity == 0:
        return images
    corruption = CORRUPTIONS[name]
    changed = corruption.apply(images.cpu(), corruption.strengths[severity - 1], ids.cpu(), seed)
    return changed.to(images.device)


def check_shift(options: ShiftOptions, data: Dataset) -> None:
    """Raise KdxError where a data set's test images can't be corrupted as a study asks."""
    for name in options.corruptions:
        _check_channels(name, data.shape[0])
    if options.images < data.num_classes:
        raise KdxError(
            f"probes.shift: images = {options.images} holds no image of some of the "
            f"{data.num_classes} classes; give at least that many"
        )


def shift_images(data: Dataset, images: int, seed: int) -> Split:
    """The test images that are corrupted, by id: all, or as many of every class as make ``images``.

    They are drawn without replacement by ``seed``; a class that has fewer gives all of its own.
    """
    by_id = data.test.subset(data.test.ids.argsort())
    if len(by_id) <= images:
        return by_id
    taken = take_per_class(by_id.labels, images // data.num_classes, seed)
    return by_id.subset(taken.to(by_id.labels.device))


def worn(split: Split, name: str, severity: int, seed: int) -> Split:
    """The same images under a corruption, chunk by chunk; :data:`CLEAN` at severity 0 is itself."""
    if severity == 0:
        return split
    chunks = []
    for indices in torch.arange(len(split)).split(_AT_ONCE):
        ids = split.ids[indices.to(split.ids.device)]
        chunks.append(corrupted(split.images.take(indices), name, severity, ids, seed))
    return replace(split, images=TensorImages(torch.cat(chunks)))


def cells(corruptions: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Corruption and severity of everything that a model is asked: the clean images come first.

    >>> list(cells(["blur"]))[:3]
    [('clean', 0), ('blur', 1), ('blur', 2)]
    """
    yield CLEAN, 0
    for name in corruptions:
        yield from ((name, severity) for severity in range(1, WORST + 1))


def _check_channels(name: str, channels: int) -> None:
    if name == "contrast" and channels not in (1, 3):
        raise KdxError(
            f"contrast is that of grey images or of red, green and blue, but these have {channels} "
            "channels; leave contrast out of the corruptions"
        )


def _draws(seed: int, image: int) -> np.random.Generator:
    """A generator for one image, whatever stands beside it."""
    return np.random.default_rng([seed, image])


def _functional() -> Any:
    """torchvision's functional transforms, imported when first used: it takes a second."""
    from torchvision.transforms.v2 import functional

    return functional
