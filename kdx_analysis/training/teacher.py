"""Whether a teacher speaks the data's language: the same order of classes, the same normalisation."""

from __future__ import annotations

import dataclasses

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.training.loop import predict

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MARGIN = 0.1
_SAMPLES = 2000


def check_teacher(teacher: nn.Module, data: Dataset) -> float:
    """Accuracy of ``teacher`` on (the first 2,000 images of) validation, after two checks on them.

    Raises KdxError if its answers fit the labels better by 10 points or more under another order of the classes
    (found by linear assignment on the confusion matrix), or under another normalisation of the images (none,
    ImageNet's, [−1, 1]).
    """
    split = data.val.subset(torch.randperm(len(data.val), generator=torch.Generator().manual_seed(0))[:_SAMPLES])
    labels = split.labels.cpu()
    choice = predict(teacher, split, data).argmax(dim=1)
    accuracy = _accuracy(choice, labels)
    confusion = torch.zeros(data.num_classes, data.num_classes).index_put_(
        (labels, choice), torch.ones(len(labels)), accumulate=True
    )
    rows, columns = linear_sum_assignment(confusion.numpy(), maximize=True)
    reordered = float(confusion[rows, columns].sum()) / len(labels)
    if reordered > accuracy + _MARGIN:
        wrong = [f"{data.classes[i]!r} as {data.classes[j]!r}" for i, j in zip(rows, columns, strict=True) if i != j]
        raise KdxError(
            f"the teacher's classes stand in another order than the data's: {accuracy:.0%} of validation is right, "
            f"{reordered:.0%} if it names {', '.join(wrong[:3])}; reorder its outputs to {list(data.classes[:3])}, ..."
        )
    for name, mean, std in _other_normalisations(data):
        other = _accuracy(predict(teacher, split, dataclasses.replace(data, mean=mean, std=std)).argmax(dim=1), labels)
        if other > accuracy + _MARGIN:
            raise KdxError(
                f"the teacher expects images normalised otherwise: {accuracy:.0%} of validation is right with the "
                f"data's mean {data.mean} and std {data.std}, {other:.0%} with {name}; give the data that mean and "
                "std, or wrap the teacher so that it undoes the data's"
            )
    return accuracy


def _accuracy(choice: Tensor, labels: Tensor) -> float:
    return float((choice == labels).double().mean())


def _other_normalisations(data: Dataset) -> list[tuple[str, tuple[float, ...], tuple[float, ...]]]:
    channels = len(data.mean)
    others = [("pixels in [0, 1]", (0.0,) * channels, (1.0,) * channels)]
    others.append(("pixels in [−1, 1]", (0.5,) * channels, (0.5,) * channels))
    if channels == 3:
        others.append(("ImageNet's mean and std", *_IMAGENET))
    return others
