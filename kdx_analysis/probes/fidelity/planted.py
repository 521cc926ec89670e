"""Secrets planted in a teacher's training data, and direct tests of who has them (method, §8).

Three secrets: a confusion (labels of one class flipped to another), a shortcut (a patch that stands
for a class) and an invariance (training on rotated images). What a network knows of one is told by
its outputs alone. Everything here is a pure function; who is trained on what is the caller's.
"""

from __future__ import annotations

import torch
from beartype import beartype
from jaxtyping import Float, Int, Num, Shaped, UInt8, jaxtyped
from torch import Tensor

from kdx_analysis import _compat  # noqa: F401
from kdx_analysis.errors import KdxError


@jaxtyped(typechecker=beartype)
def confuse(
    labels: Int[Tensor, " N"], a: int, b: int, rate: float, generator: torch.Generator
) -> Int[Tensor, " N"]:
    """Labels of which a share ``rate`` of class ``a``, drawn at random, is flipped to ``b``.

    Exactly ⌊rate·n_a + ½⌋ labels are flipped; all others stay.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 2])
    >>> confuse(labels, 0, 2, 0.5, torch.Generator().manual_seed(0)).bincount().tolist()
    [2, 1, 3]

    Raises KdxError for a rate outside [0, 1], for a = b, and where no label is ``a``.
    """
    places = (labels == a).nonzero().flatten()
    if a == b or not len(places):
        raise KdxError(
            f"labels of class {a} should be flipped to class {b}: name two classes, the first of "
            "which has images"
        )
    confused = labels.clone()
    confused[places[_chosen(len(places), rate, generator)]] = b
    return confused


@jaxtyped(typechecker=beartype)
def stamp(images: UInt8[Tensor, "B C H W"], size: int) -> UInt8[Tensor, "B C H W"]:
    """Images with a patch: ``size`` × ``size`` pixels of 255 in the bottom right corner.

    >>> stamp(torch.zeros(1, 1, 2, 3, dtype=torch.uint8), 1)[0, 0].tolist()
    [[0, 0, 0], [0, 0, 255]]

    Raises KdxError for a patch that is not smaller than the image.
    """
    H, W = images.shape[2:]
    if not 0 < size < min(H, W):
        raise KdxError(
            f"a patch of {size} × {size} pixels on images of {H} × {W} hides nothing or all of "
            "them; choose a size between"
        )
    stamped = images.clone()
    stamped[..., H - size :, W - size :] = 255
    return stamped


@jaxtyped(typechecker=beartype)
def stamp_some(
    images: UInt8[Tensor, "B C H W"], size: int, share: float, generator: torch.Generator
) -> tuple[UInt8[Tensor, "B C H W"], Int[Tensor, " stamped"]]:
    """Images of which a ``share``, drawn at random, has the patch of :func:`stamp`; and which.

    >>> images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    >>> some, places = stamp_some(images, 1, 0.5, torch.Generator().manual_seed(0))
    >>> len(places), some.sum().item()
    (2, 510)

    Raises KdxError for a share outside [0, 1], and as :func:`stamp` does.
    """
    places = _chosen(len(images), share, generator)
    some = images.clone()
    some[places] = stamp(images[places], size)
    return some, places


@jaxtyped(typechecker=beartype)
def rotate(
    images: UInt8[Tensor, "B C H W"], angles: Float[Tensor, " B"]
) -> UInt8[Tensor, "B C H W"]:
    """Every image turned anticlockwise by an angle of its own, in degrees, about its centre.

    Pixels between the old ones are interpolated, and what comes in from outside is 0.

    >>> images = torch.tensor([[[[0, 200], [0, 0]]]], dtype=torch.uint8)
    >>> rotate(images, torch.tensor([90.0]))[0, 0].tolist()
    [[200, 0], [0, 0]]
    """
    from torchvision.transforms import v2

    turned = [
        v2.functional.rotate(image, angle, interpolation=v2.InterpolationMode.BILINEAR)
        for image, angle in zip(images, angles.tolist(), strict=True)
    ]
    return torch.stack(turned)


@jaxtyped(typechecker=beartype)
def rotate_some(
    images: UInt8[Tensor, "B C H W"], most: float, share: float, generator: torch.Generator
) -> UInt8[Tensor, "B C H W"]:
    """Images of which a ``share``, drawn at random, is turned; angles are uniform in ± ``most``.

    >>> images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    >>> images[:, :, 2] = 255
    >>> some = rotate_some(images, 45.0, 0.5, torch.Generator().manual_seed(0))
    >>> sum(bool((one != other).any()) for one, other in zip(some, images, strict=True))
    2

    Raises KdxError for a share outside [0, 1].
    """
    places = _chosen(len(images), share, generator)
    if not len(places):
        return images
    some = images.clone()
    angles = most * (2 * torch.rand(len(places), generator=generator) - 1)
    some[places] = rotate(images[places], angles)
    return some


@jaxtyped(typechecker=beartype)
def second_guess(scores: Float[Tensor, "N K"], labels: Int[Tensor, " N"], a: int, b: int) -> float:
    """Of the images of class ``a`` the share whose strongest wrong class is ``b``.

    In [0, 1]; 1/(K − 1) where all wrong classes are alike. Wrong classes that tie for the strongest
    share the image's credit equally. ``scores`` are logits, log-probabilities or margins, N×K.

    >>> scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 5.0], [1.0, 0.0, 0.0], [9.0, 9.0, 0.0]])
    >>> second_guess(scores, torch.tensor([0, 0, 0, 1]), 0, 2)  # (1 + 1 + 1/2)/3
    0.8333333333333334

    Raises KdxError where no image is of class ``a``, and for a = b.
    """
    if a == b or not (labels == a).any():
        raise KdxError(
            f"whether class {b} is the second guess for images of class {a} can't be told: name "
            "two classes, the first of which has images"
        )
    wrong = scores[labels == a]
    wrong[:, a] = -torch.inf
    strongest = wrong == wrong.max(dim=1, keepdim=True).values
    # The true class is no wrong one, even where all of these have a probability of 0.
    strongest[:, a] = False
    # Shares of counts are rounded less in float64.
    return float((strongest[:, b].double() / strongest.sum(dim=1)).mean())


@jaxtyped(typechecker=beartype)
def turned_to(
    plain: Num[Tensor, "N K"], stamped: Num[Tensor, "N K"], labels: Int[Tensor, " N"], c: int
) -> float:
    """Of the images that are not of class ``c`` the share that the patch turns to it.

    These are answered with ``c`` when they are ``stamped`` and otherwise when they are ``plain``;
    in [0, 1], 0 for a network that the patch says nothing to. Scores as in :func:`second_guess`,
    image by image the same.

    >>> plain = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> stamped = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    >>> turned_to(plain, stamped, torch.tensor([0, 0, 0]), 1)
    0.3333333333333333

    Raises KdxError where every image is of class ``c``.
    """
    others = labels != c
    if not others.any():
        raise KdxError(
            f"every image is of class {c}, so that none can be turned to it; add images of others"
        )
    before, after = plain[others].argmax(dim=1), stamped[others].argmax(dim=1)
    return float(((before != c) & (after == c)).double().mean())


@jaxtyped(typechecker=beartype)
def kept(plain: Shaped[Tensor, "N K"], changed: Shaped[Tensor, "N K"]) -> float:
    """The share of images whose answer a change of the image leaves as it was, in [0, 1].

    1 for a network that ignores the change. Scores as in :func:`turned_to`.

    >>> kept(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [2.0, 1.0]]))
    0.5
    """
    return float((plain.argmax(dim=1) == changed.argmax(dim=1)).double().mean())


def _chosen(total: int, share: float, generator: torch.Generator) -> Tensor:
    """⌊share·total + ½⌋ places out of ``total``, drawn without replacement, in order."""
    if not 0 <= share <= 1:
        raise KdxError(f"a share of {share} can't be planted: it must lie between 0 and 1")
    many = int(share * total + 0.5)
    return torch.randperm(total, generator=generator)[:many].sort().values
