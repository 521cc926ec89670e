"""Images, and maps of heat over them."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from torch import Tensor

Extent = tuple[float, float, float, float]


def overlay(
    ax: Axes,
    picture: np.ndarray,
    heat: Tensor,
    scale: float,
    *,
    above: str,
    below: str,
    extent: Extent | None = None,
) -> None:
    """A pale picture, and heat over it, the less see-through the stronger it is.

    Args:
        picture: H×W, in [0, 1].
        heat: H×W.
        scale: the heat that is opaque.
        above, below: colours of heat above and below 0.
        extent: left, right, bottom and top in the axes; by default 0 to W and H to 0.
    """
    ax.imshow(picture, cmap="gray", vmin=-3, vmax=1, extent=extent)
    strength = (heat / scale if scale > 0 else heat).numpy()
    colours = np.where(strength[..., None] > 0, to_rgba(above), to_rgba(below))
    colours[..., 3] = np.abs(strength)
    ax.imshow(colours, extent=extent)


def shown(image: Tensor, images: Tensor) -> np.ndarray:
    """An image as imshow takes it, in [0, 1] with all ``images`` on one scale: H×W, or H×W×3.

    >>> import torch
    >>> images = torch.tensor([[[[0.0, 5.0]]], [[[10.0, 10.0]]]])
    >>> shown(images[0], images).tolist()
    [[0.0, 0.5]]
    """
    low, high = images.min(), images.max()
    # images that are all of one brightness have no scale, and are black
    scaled = ((image - low) / (high - low) if high > low else torch.zeros_like(image)).float()
    return (scaled.permute(1, 2, 0) if len(image) == 3 else scaled.mean(dim=0)).numpy()


def grey(images: Tensor) -> list[np.ndarray]:
    """The mean over the channels of every image, all on one scale."""
    means = images.double().mean(dim=1, keepdim=True)  # in float64, also of half precision
    return [shown(image, means) for image in means]
