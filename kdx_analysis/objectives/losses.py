"""Losses of a batch, kept apart by subtask: cross-entropy, and the divergence of distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.objectives.targets import teacher_cut, teacher_log_odds


def cross_entropy(outputs: Tensor, target: Tensor, config: ObjectiveConfig) -> Tensor:
    """Cross-entropy of every subtask, B×K, each 0 or more.

    binary: −w t_k log σ(m_k) − (1 − t_k) log σ(−m_k), with w = K − 1 for ``positive_weight:
    balanced``, else 1. multiclass: −t_k log softmax(m)_k.

    Args:
        outputs: the student's margins m_k (binary) or logits (multiclass), B×K.
        target: t_k in [0, 1], B×K.
        config: of the objective.

    >>> margins, target = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> cross_entropy(margins, target, ObjectiveConfig(name="hard"))  # log 2 each
    tensor([[0.6931, 0.6931]])
    """
    if config.decomposition == "multiclass":
        return -target * outputs.log_softmax(dim=1)
    weight = outputs.shape[1] - 1 if config.positive_weight == "balanced" else 1
    return -weight * target * F.logsigmoid(outputs) - (1 - target) * F.logsigmoid(-outputs)


def cuts(
    outputs: Tensor, labels: Tensor, teacher_outputs: Tensor | None, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """What KD asks of every subtask, and its complement, B×K each.

    The teacher's targets q at temperature T and 1 − q; without a teacher, of one-hot labels.
    """
    # At T = 100 student and teacher differ by a hundredth of their margins' difference, and the
    # divergence by the square of that, which float32 can't tell from the rounding of its
    # probabilities. MPS has no float64.
    dtype = outputs.dtype if outputs.device.type == "mps" else torch.float64
    if teacher_outputs is None:
        one_hot = F.one_hot(labels, outputs.shape[1]).to(dtype)
        return one_hot, 1 - one_hot
    logits = teacher_outputs.to(dtype)
    cut = teacher_cut(logits, config.T, config.decomposition, config.cut)
    if config.decomposition == "multiclass":
        return cut, 1 - cut
    return cut, torch.sigmoid(-teacher_log_odds(logits, config.T, config.cut))


def divergence(
    outputs: Tensor, target: Tensor, cut: Tensor, rest: Tensor, config: ObjectiveConfig
) -> Tensor:
    """T² KL(q ‖ student at T), subtask by subtask, B×K in the outputs' precision, each 0 or more.

    For the multiclass decomposition an entry is a class's share of the K-way divergence, T² times
    :func:`divergence_terms`, which is 0 or more and sums to it.

    Args:
        outputs: the student's margins (binary) or logits (multiclass), B×K.
        target: q, B×K.
        cut, rest: the teacher's own q and 1 − q, as :func:`cuts` gives them.
        config: of the objective.
    """
    T, wide = config.T, outputs.to(cut.dtype)
    if config.decomposition == "multiclass":
        terms = divergence_terms(target, (wide / T).log_softmax(dim=1))
    else:
        # 1 − q has no digits left where q is nearly 1, so it is the teacher's own wherever the
        # target is.
        against = torch.where(target == cut, rest, 1 - target)
        terms = divergence_terms(target, F.logsigmoid(wide / T)) + divergence_terms(
            against, F.logsigmoid(-wide / T)
        )
    return (T**2 * terms).to(outputs.dtype)


def divergence_terms(q: Tensor, log_p: Tensor) -> Tensor:
    """q log(q/p) − q + p for every outcome, each 0 or more.

    They sum to KL(q ‖ p) where q and p each sum to 1.

    Terms q log(q/p) are of either sign and cancel: their sum is of second order in log(q/p), they
    are of first.

    Args:
        q: shares in [0, 1], any shape.
        log_p: log p of that shape, finite.

    Returns:
        The terms, of that shape; p where q is 0.

    >>> q, p = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> terms = divergence_terms(q, p.log())
    >>> terms, round(terms.sum().item(), 4)  # ½ log 2 + ½ log ⅔
    (tensor([0.0966, 0.0473]), 0.1438)
    """
    d = log_p - torch.where(q > 0, q, 1).log()
    far = log_p.exp() - q - q * d
    small = d.clamp(-1, 1)  # expm1 would overflow where it is not used, and its gradient be NaN
    return torch.where((q > 0) & (d.abs() < 1), q * (small.expm1() - small), far)
