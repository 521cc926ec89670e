"""Whether a teacher speaks the data's language: logits, order of classes, normalisation."""

from __future__ import annotations

import dataclasses

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from kdx_analysis.data import Dataset, Split
from kdx_analysis.errors import KdxError
from kdx_analysis.models.answers import check_logits, ends_in_probabilities
from kdx_analysis.models.modes import modes_kept
from kdx_analysis.training.loop import predict

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MARGIN = 0.1
_SAMPLES = 2000


def check_teacher(teacher: nn.Module, data: Dataset, who: str = "the teacher") -> float:
    """Accuracy of ``teacher`` on validation, after three checks there, on 2,000 images at most.

    Raises KdxError, which names the model as ``who``, if its outputs can't be logits, B×K; or if
    its answers fit the labels better by more than 10 points under another order of the classes
    (found by linear assignment on the confusion matrix of one half, tried on the other), or under
    another normalisation of the images (none, ImageNet's, [−1, 1]).
    """
    split = data.val.subset(
        torch.randperm(len(data.val), generator=torch.Generator().manual_seed(0))[:_SAMPLES]
    )
    labels = split.labels.cpu()
    outputs = predict(teacher, split, data)
    check_logits(outputs, data.num_classes, who)
    if _ends_in_probabilities(teacher, split, data):
        raise KdxError(
            f"{who} gives probabilities, not logits: its last operation is a softmax or a sigmoid; "
            "take it off, or wrap the model so that it returns log_softmax or log(p / (1 − p)) of "
            "them"
        )
    choice = outputs.argmax(dim=1)
    accuracy = _accuracy(choice, labels)
    # an order is found on one half and tried on the other, or chance would find one
    half = len(labels) // 2
    meant = _best_order(choice[:half], labels[:half], data.num_classes)
    reordered = _accuracy(meant[choice[half:]], labels[half:])
    normalised = {
        name: _accuracy(
            predict(teacher, split, dataclasses.replace(data, mean=mean, std=std)).argmax(dim=1),
            labels,
        )
        for name, mean, std in _other_normalisations(data)
    }
    name, other = max(normalised.items(), key=lambda item: item[1])
    if other > accuracy + _MARGIN and other >= reordered:
        raise KdxError(
            f"{who} expects images normalised otherwise: {accuracy:.0%} of validation is right "
            f"with the data's mean {data.mean} and std {data.std}, {other:.0%} with {name}; give "
            "the data that mean and std, or wrap the teacher so that it undoes the data's"
        )
    if reordered > _accuracy(choice[half:], labels[half:]) + _MARGIN:
        wrong = [
            f"{data.classes[chosen]!r} as {data.classes[label]!r}"
            for label, chosen in enumerate(meant.argsort().tolist())
            if label != chosen
        ]
        raise KdxError(
            f"the classes of {who} stand in another order than the data's: {accuracy:.0%} of "
            f"validation is right, {reordered:.0%} when reading {', '.join(wrong[:3])}; reorder "
            f"its outputs to {list(data.classes[:3])}, ..."
        )
    return accuracy


def _best_order(choice: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """For every class that is chosen the label that fits most often, no label twice; K."""
    confusion = torch.zeros(num_classes, num_classes).index_put_(
        (labels, choice), torch.ones(len(labels)), accumulate=True
    )
    rows, columns = linear_sum_assignment(confusion.numpy(), maximize=True)
    meant = torch.empty(num_classes, dtype=torch.int64)
    meant[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return meant


def _ends_in_probabilities(teacher: nn.Module, split: Split, data: Dataset) -> bool:
    """Whether they do by the graph of two images.

    By their values alone the outputs of a soft sigmoid may look like an untrained model's logits.
    """
    like = next(iter(teacher.parameters()), split.images.take(torch.arange(1)))
    images = data.normalise(split.images.take(torch.arange(min(2, len(split)))).to(like.device))
    with modes_kept(teacher), torch.enable_grad():
        teacher.eval()
        return ends_in_probabilities(teacher(images.requires_grad_()))


def _accuracy(choice: Tensor, labels: Tensor) -> float:
    return float((choice == labels).double().mean())


def _other_normalisations(data: Dataset) -> list[tuple[str, tuple[float, ...], tuple[float, ...]]]:
    channels = len(data.mean)
    others = [("pixels in [0, 1]", (0.0,) * channels, (1.0,) * channels)]
    others.append(("pixels in [−1, 1]", (0.5,) * channels, (0.5,) * channels))
    if channels == 3:
        others.append(("ImageNet's mean and std", *_IMAGENET))
    return others
