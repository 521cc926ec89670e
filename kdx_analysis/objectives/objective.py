"""Objectives: hard labels, label smoothing, KD, and the ladder of controls between them (method of
KDExplainer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.objectives.targets import TARGETS, teacher_cut, teacher_log_odds

OBJECTIVES: dict[str, str] = {
    "hard": "hard labels",
    "label_smoothing": "labels with a share epsilon spread over all classes",
    "hard_T": "control: hard labels in KD's form; temperature and loss scale",
    "kd_flat": "control: the teacher's target of the true class, the rest spread evenly; softness",
    "kd_shuffled": "control: the teacher's targets of the wrong classes permuted anew per sample; uneven softness",
    "kd": "the teacher's targets; class structure",
}


@dataclass(frozen=True)
class Objective:
    """The loss of one run, kept apart by subtask and by term.

    Attributes:
        config: name, temperature, weights.
        scale: constant factor of the whole loss; 1 unless ``scale_to`` asks for another.
    """

    config: ObjectiveConfig
    scale: float = 1.0

    @property
    def distils(self) -> bool:
        """Whether there is a distillation term (in KD's form, with the teacher's or a control's
        targets).
        """
        return self.config.name in TARGETS

    @property
    def needs_teacher(self) -> bool:
        """Whether its targets are made from the teacher's logits."""
        return self.distils and self.config.name != "hard_T"

    def terms(
        self,
        margins: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Loss per sample, subtask and term, each weighted as it enters the objective.

        Args:
            margins: the student's m_k (binary) or logits (multiclass), B×K; half precision is taken
                to float32.
            labels: int64, B.
            teacher_logits: v_k, B×K; may be None for objectives without a teacher.
            generator: draws the permutations of ``kd_shuffled``.

        Returns:
            ``hard`` and, for objectives that distil, ``distillation``, each B×K. The loss is the
            sum over terms and subtasks, averaged over the batch.
        """
        config, K = self.config, margins.shape[1]
        # T² and the divergence it weighs would leave the range of float16, and the precision of
        # bfloat16.
        margins = margins.to(torch.promote_types(margins.dtype, torch.float32))
        one_hot = F.one_hot(labels, K).to(margins.dtype)
        if not self.distils:
            epsilon = config.epsilon if config.name == "label_smoothing" else 0.0
            smoothed = (1 - epsilon) * one_hot + epsilon / K
            return {"hard": self.scale * self._cross_entropy(margins, smoothed)}
        divergence = self._divergence(margins, labels, teacher_logits, generator)
        return {
            "hard": self.scale * (1 - config.lam) * self._cross_entropy(margins, one_hot),
            "distillation": self.scale * config.lam * divergence,
        }

    def loss(
        self,
        margins: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """The terms' sum over subtasks, averaged over the batch; arguments as for :meth:`terms`."""
        terms = self.terms(margins, labels, teacher_logits, generator)
        return torch.stack([term.sum(dim=1).mean() for term in terms.values()]).sum()

    def _cross_entropy(self, margins: Tensor, target: Tensor) -> Tensor:
        if self.config.decomposition == "multiclass":
            return -target * margins.log_softmax(dim=1)
        weight = margins.shape[1] - 1 if self.config.positive_weight == "balanced" else 1
        return -weight * target * F.logsigmoid(margins) - (1 - target) * F.logsigmoid(-margins)

    def _divergence(
        self,
        margins: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """T² KL(q ‖ student at T), subtask by subtask, B×K in the margins' precision.

        For the multiclass decomposition an entry is a class's share of the K-way divergence, T²
        times :func:`divergence_terms`, which is 0 or more and sums to it.
        """
        config, T = self.config, self.config.T
        binary = config.decomposition == "binary"
        # At T = 100 student and teacher differ by a hundredth of their margins' difference, and the
        # divergence by the square of that, which float32 can't tell from the rounding of its
        # probabilities. MPS has no float64.
        wide = margins if margins.device.type == "mps" else margins.double()
        cut = F.one_hot(labels, margins.shape[1]).to(wide.dtype)
        rest = 1 - cut
        if teacher_logits is not None:
            logits = teacher_logits.to(wide.dtype)
            cut = teacher_cut(logits, T, config.decomposition, config.cut)
            rest = torch.sigmoid(-teacher_log_odds(logits, T, config.cut)) if binary else 1 - cut
        target = TARGETS[config.name](cut, labels, generator)
        if not binary:
            return (T**2 * divergence_terms(target, (wide / T).log_softmax(dim=1))).to(
                margins.dtype
            )
        # 1 − q has no digits left where q is nearly 1, so it is the teacher's own wherever the
        # target is.
        against = torch.where(target == cut, rest, 1 - target)
        terms = divergence_terms(target, F.logsigmoid(wide / T)) + divergence_terms(
            against, F.logsigmoid(-wide / T)
        )
        return (T**2 * terms).to(margins.dtype)


def divergence_terms(q: Tensor, log_p: Tensor) -> Tensor:
    """q log(q/p) − q + p for every outcome: 0 or more, and KL(q ‖ p) in sum where q and p each sum
    to 1.

    Terms q log(q/p) are of either sign and cancel: their sum is of second order in log(q/p), they
    are of first.

    Args:
        q: shares in [0, 1], any shape.
        log_p: log p of that shape, finite.

    Returns:
        The terms, of that shape; p where q is 0.

    >>> q, p = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> divergence_terms(q, p.log()), round(divergence_terms(q, p.log()).sum().item(), 4)  # ½ log 2 + ½ log ⅔
    (tensor([0.0966, 0.0473]), 0.1438)
    """
    d = log_p - torch.where(q > 0, q, 1).log()
    far = log_p.exp() - q - q * d
    small = d.clamp(-1, 1)  # expm1 would overflow where it is not used, and its gradient be NaN
    return torch.where((q > 0) & (d.abs() < 1), q * (small.expm1() - small), far)


def scale_to(
    reference: Objective,
    objective: Objective,
    margins: Tensor,
    parameters: Sequence[Tensor],
    labels: Tensor,
    teacher_logits: Tensor | None,
) -> float:
    """The factor that gives ``objective`` the gradient norm of ``reference`` over ``parameters``.

    ``margins`` (B×K) still hang on their graph, which is kept.
    """

    def norm(which: Objective) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        loss = which.loss(margins, labels, teacher_logits, generator)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return torch.stack([g.norm() for g in gradients if g is not None]).norm()

    return float(norm(reference) / norm(objective))
