"""Objectives: hard labels, label smoothing, KD, and the ladder of controls between them (method of KDExplainer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.objectives.targets import TARGETS, teacher_cut

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
        """Whether there is a distillation term (in KD's form, with the teacher's or a control's targets)."""
        return self.config.name in TARGETS

    @property
    def needs_teacher(self) -> bool:
        """Whether its targets are made from the teacher's logits."""
        return self.distils and self.config.name != "hard_T"

    def terms(
        self, margins: Tensor, labels: Tensor, teacher_logits: Tensor | None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Loss per sample, subtask and term, each weighted as it enters the objective.

        Args:
            margins: the student's m_k (binary) or logits (multiclass), B×K.
            labels: int64, B.
            teacher_logits: v_k, B×K; may be None for objectives without a teacher.
            generator: draws the permutations of ``kd_shuffled``.

        Returns:
            ``hard`` and, for objectives that distil, ``distillation``, each B×K. The loss is the sum over terms
            and subtasks, averaged over the batch.
        """
        config, K = self.config, margins.shape[1]
        one_hot = F.one_hot(labels, K).to(margins.dtype)
        if not self.distils:
            epsilon = config.epsilon if config.name == "label_smoothing" else 0.0
            smoothed = (1 - epsilon) * one_hot + epsilon / K
            return {"hard": self.scale * self._cross_entropy(margins, smoothed)}
        cut = one_hot
        if teacher_logits is not None:
            cut = teacher_cut(teacher_logits.to(margins.dtype), config.T, config.decomposition, config.cut)
        target = TARGETS[config.name](cut, labels, generator)
        return {
            "hard": self.scale * (1 - config.lam) * self._cross_entropy(margins, one_hot),
            "distillation": self.scale * config.lam * self._divergence(margins, target),
        }

    def loss(
        self, margins: Tensor, labels: Tensor, teacher_logits: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """The terms' sum over subtasks, averaged over the batch; arguments as for :meth:`terms`."""
        terms = self.terms(margins, labels, teacher_logits, generator)
        return torch.stack([term.sum(dim=1).mean() for term in terms.values()]).sum()

    def _cross_entropy(self, margins: Tensor, target: Tensor) -> Tensor:
        if self.config.decomposition == "multiclass":
            return -target * margins.log_softmax(dim=1)
        weight = margins.shape[1] - 1 if self.config.positive_weight == "balanced" else 1
        return -weight * target * F.logsigmoid(margins) - (1 - target) * F.logsigmoid(-margins)

    def _divergence(self, margins: Tensor, target: Tensor) -> Tensor:
        """T² KL(q ‖ student at T), subtask by subtask."""
        T = self.config.T
        if self.config.decomposition == "multiclass":
            return T**2 * (torch.xlogy(target, target) - target * (margins / T).log_softmax(dim=1))
        negentropy = torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target)
        cross = -target * F.logsigmoid(margins / T) - (1 - target) * F.logsigmoid(-margins / T)
        return T**2 * (negentropy + cross)


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
