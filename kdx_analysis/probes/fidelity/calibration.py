"""How far a network's confidence can be trusted, and how likely it finds the labels (method, §8).

Axes: N images, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from beartype import beartype
from jaxtyping import Bool, Float, Int, jaxtyped
from torch import Tensor

from kdx_analysis.metrics import metric
from kdx_analysis.probes.fidelity.likeness import (
    ANSWERS,
    BINS,
    Labels,
    Measured,
    Scores,
    declared,
)
from kdx_analysis.probes.fidelity.outputs import Outputs

_BY_ITSELF = "outputs by themselves"


def levels(outputs: Outputs) -> dict[str, Measured]:
    """ece beside what calibrated answers would give, nll, and metrics of the user's own."""
    n = outputs.num_images
    error = calibration_error(outputs.confidence, outputs.right)
    return {
        "ece": Measured(float(error), expected_by_chance(outputs.confidence), n),
        "nll": Measured(float(_likelihood(outputs)), n=n),
        **declared(_BY_ITSELF, outputs),
    }


@jaxtyped(typechecker=beartype)
def calibration_error(
    confidence: Float[Tensor, " N"], right: Bool[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Σ over bins of |B|/N · |share right − mean confidence|, 15 bins of equal width, in [0, 1].

    A bin holds its upper end (Guo et al. 2017, arXiv 1706.04599).

    >>> confidence = torch.tensor([0.9, 0.9], dtype=torch.float64)
    >>> calibration_error(confidence, torch.tensor([True, False]))
    tensor(0.4000, dtype=torch.float64)
    """
    order, starts = _binned(confidence)
    surplus = (right.double() - confidence).cpu().numpy()[order]
    return torch.tensor(np.abs(np.add.reduceat(surplus, starts)).sum() / len(surplus))


def _binned(confidence: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """An order of the images in which those of a bin stand together, and where each bin starts."""
    # Confidence 0, as of margins far below 0, belongs to the lowest bin.
    bins = np.maximum(np.ceil(confidence.cpu().numpy() * BINS), 1)
    order = np.argsort(bins, kind="stable")
    return order, np.unique(bins[order], return_index=True)[1]


def expected_by_chance(confidence: Tensor) -> float:
    """Mean calibration error of answers that are right with just the given confidences.

    It is above 0 although such answers are calibrated: the fewer images, the more. Mean over 200
    draws, seeded, so that the same confidences give the same figure.
    """
    order, starts = _binned(confidence)
    sorted_by_bin = confidence.cpu().numpy()[order]
    rng, total = np.random.default_rng(0), 0.0
    for _ in range(ANSWERS):
        surplus = (rng.random(len(sorted_by_bin)) < sorted_by_bin) - sorted_by_bin
        total += float(np.abs(np.add.reduceat(surplus, starts)).sum())
    return total / ANSWERS / len(sorted_by_bin)


@metric(
    "ece",
    title="expected calibration error",
    reads=_BY_ITSELF,
    unit="of confidence",
    range=(0, 1),
    describes="how far confidence and share of right answers lie apart",
    definition="Σ over 15 bins of |B|/N · |share right − mean confidence|",
    source="Guo et al. 2017, arXiv 1706.04599",
    better="lower",
)
@jaxtyped(typechecker=beartype)
def ece(scores: Scores, labels: Int[Tensor, " N"], binary: bool = False) -> Float[Tensor, ""]:
    """:func:`calibration_error` of a network's outputs; of ``binary`` subtasks that of σ(max m_k).

    >>> ece(torch.zeros(2, 2), torch.tensor([0, 1])).item()
    0.0
    """
    outputs = Outputs(scores, labels, binary)
    return calibration_error(outputs.confidence, outputs.right)


@metric(
    "nll",
    title="negative log-likelihood",
    reads=_BY_ITSELF,
    unit="nats",
    range=(0, torch.inf),
    describes="−log p of the true class, mean over test images",
    definition="mean over images of −log softmax(z)_y; of margins Σ_k −log p of what k should say",
    better="lower",
)
@jaxtyped(typechecker=beartype)
def nll(scores: Scores, labels: Labels, binary: bool = False) -> Float[Tensor, ""]:
    """−log p of the true class, mean over images, in nats; of ``binary`` subtasks summed over them.

    >>> round(nll(torch.zeros(1, 4), torch.tensor([0])).item(), 6)  # ln 4
    1.386294
    """
    return _likelihood(Outputs(scores, labels, binary))


def _likelihood(outputs: Outputs) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for rows in outputs.chunks():
        log_p = outputs.probabilities(rows, 1.0).log_p
        true = outputs.labels[rows].unsqueeze(1)
        total -= log_p.gather(1, true).sum().cpu()
        if outputs.binary:
            log_not_p = log_p[:, outputs.num_classes :]
            total -= (log_not_p.sum() - log_not_p.gather(1, true).sum()).cpu()
    return total / outputs.num_images
