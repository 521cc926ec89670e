"""The objective of one run: the losses of its distiller, by subtask and by term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models.choose import module_at
from kdx_analysis.models.modes import unwrapped
from kdx_analysis.objectives.contract import OBJECTIVES, Batch, Distiller, Row


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
    def row(self) -> Row:
        """What is declared of it."""
        return OBJECTIVES[self.config.name]

    @cached_property
    def distiller(self) -> Distiller:
        """What gives its terms, with the modules that it trains itself."""
        return self.row.make(self.config)

    @property
    def distils(self) -> bool:
        """Whether there is a distillation term (of the teacher or of a control in its place)."""
        return self.row.distils

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's outputs or features enter it."""
        return self.row.needs_teacher

    @property
    def subtask_terms(self) -> tuple[str, ...]:
        """The names of the terms that :meth:`terms` gives: those that are kept by subtask."""
        return self.row.subtask_terms

    def paths(
        self, student: nn.Module, teacher: nn.Module | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Module paths whose features are compared, of student and of teacher.

        Raises KdxError, with near paths, for one that its model has not.
        """
        if teacher is None:
            return (), ()
        of_student, of_teacher = self.distiller.layers(student, teacher)
        for model, paths, who in (
            (student, of_student, "the student"),
            (teacher, of_teacher, "the teacher"),
        ):
            for path in paths:
                module_at(unwrapped(model)[0], path, who)
        return tuple(of_student), tuple(of_teacher)

    def terms(
        self,
        margins: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Loss per sample, subtask and term, each weighted as it enters the objective.

        Of a distiller these are the terms from outputs; those from features are of no subtask and
        are not among them.

        Args:
            margins: the student's m_k (binary) or logits (multiclass), B×K; half precision is taken
                to float32.
            labels: int64, B.
            teacher_logits: v_k, B×K; may be None for objectives without a teacher.
            generator: draws the permutations of ``kd_shuffled``.

        Returns:
            ``hard`` and, for rungs that distil, ``distillation``, each B×K. The loss is the sum
            over terms and subtasks, averaged over the batch.

        Raises:
            KdxError: the distiller gives terms that it does not declare.
        """
        batch = _widened(Batch(margins, labels, teacher_logits, generator))
        terms = self._weighted(self.distiller.on_outputs(batch))
        if tuple(terms) != self.subtask_terms:
            raise KdxError(
                f"objective {self.config.name!r} gives the terms {', '.join(terms)} on outputs and "
                f"declares {', '.join(self.subtask_terms)} as its subtask_terms; name the same"
            )
        return terms

    def loss(
        self,
        margins: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """The sum of :meth:`terms` over subtasks, averaged over the batch; arguments as there."""
        terms = self.terms(margins, labels, teacher_logits, generator)
        return _averaged(terms)

    def of_batch(self, batch: Batch) -> Tensor:
        """The whole loss of a ``batch``, terms from features among them.

        Raises:
            KdxError: a term is neither by sample nor by subtask, or its name is another term's.
        """
        batch = _widened(batch)
        terms = self.terms(batch.outputs, batch.labels, batch.teacher_outputs, batch.generator)
        on_features = self.distiller.on_features(batch)
        for name, term in on_features.items():
            if term.shape not in (batch.labels.shape, batch.outputs.shape) or name in terms:
                raise KdxError(
                    f"term {name!r} of objective {self.config.name!r} has shape "
                    f"{tuple(term.shape)}; give a name of its own to a term by sample, "
                    f"{tuple(batch.labels.shape)}, or by subtask, {tuple(batch.outputs.shape)}"
                )
        return _averaged(terms | self._weighted(on_features))

    def scaled(self, factor: float) -> Objective:
        """The same objective times a factor, on the same distiller."""
        other = replace(self, scale=factor)
        other.__dict__["distiller"] = self.distiller
        return other

    def _weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = self.distiller.weights
        return {name: self.scale * weights.get(name, 1.0) * term for name, term in terms.items()}


def scale_to(reference: Tensor, loss: Tensor, parameters: Sequence[Tensor]) -> float:
    """The factor that gives ``loss`` the gradient norm of ``reference`` over ``parameters``.

    Both are scalars that still hang on their graph, which is kept.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> scale_to(6 * w.sum(), 2 * w.sum(), [w])
    3.0
    """

    def norm(of_loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(of_loss, parameters, retain_graph=True, allow_unused=True)
        norms: list[Tensor] = [g.norm() for g in gradients if g is not None]
        norm_of_all: Tensor = torch.stack(norms).norm()
        return norm_of_all

    return float(norm(reference) / norm(loss))


def _widened(batch: Batch) -> Batch:
    # T² and the divergence it weighs would leave the range of float16, and the precision of
    # bfloat16.
    wide = torch.promote_types(batch.outputs.dtype, torch.float32)
    return replace(batch, outputs=batch.outputs.to(wide))


def _averaged(terms: dict[str, Tensor]) -> Tensor:
    """The sum of terms, each summed over subtasks where it has them and averaged over samples."""
    means = [term.sum(dim=1).mean() if term.ndim == 2 else term.mean() for term in terms.values()]
    return torch.stack(means).sum()
