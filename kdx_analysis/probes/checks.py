"""What every probe refuses before it does any work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.gradients import not_finite


def named(classes: Sequence[str] | None, K: int) -> tuple[str, ...]:
    """The K subtasks' names; by default their numbers."""
    names = tuple(map(str, range(K))) if classes is None else tuple(classes)
    if len(names) != K:
        raise KdxError(f"{len(names)} classes are named, but the model has {K} subtasks")
    return names


def labelled(images: Tensor, labels: Tensor, K: int) -> Tensor:
    """``labels`` as int64, if they are one of K classes for each of one image or more."""
    if labels.shape != (len(images),) or not len(images) or labels.is_floating_point():
        raise KdxError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} don't fit {len(images)} images; "
            "give one integer for each of one image or more"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= K:
        raise KdxError(f"labels from {int(labels.min())} to {int(labels.max())} should lie in 0 to {K - 1}")
    return labels.long()


def check_classes(labels: Tensor, classes: Sequence[str]) -> None:
    """KdxError if a class has no label."""
    lacking = [classes[k] for k in (torch.bincount(labels, minlength=len(classes)) == 0).nonzero().flatten().tolist()]
    if lacking:
        raise KdxError(f"no image is of class {', '.join(map(repr, lacking[:5]))}; give some images of every class")


def finite(margins: Tensor) -> Tensor:
    """``margins`` if they are B×K and finite; else KdxError names the subtasks."""
    if margins.ndim != 2:
        raise KdxError(f"the model gives outputs of shape {tuple(margins.shape)}; wanted B×K, one a subtask")
    if wrong := not_finite(margins):
        raise KdxError(f"margins of subtasks {wrong} are not finite; did the run diverge?")
    return margins


def subtasks(margins: Tensor, labels: Tensor, classes: Sequence[str] | None) -> tuple[tuple[str, ...], Tensor]:
    """Names and int64 labels, unless margins are not finite or not of two classes or more, or a class has no image."""
    names = named(classes, finite(margins).shape[1])
    if len(names) < 2:
        raise KdxError("a model of one class has no pairs to compare; give one of two classes or more")
    labels = labelled(margins, labels, len(names))
    check_classes(labels, names)
    return names, labels
