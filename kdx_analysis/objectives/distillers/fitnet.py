"""FitNets: a student whose intermediate features are regressed on the teacher's (hints)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.objectives.contract import Batch, Distiller, Features, Options, distiller
from kdx_analysis.objectives.features import middle_stage


class FitNetOptions(Options):
    """The hint's weight β and its layers.

    Layers are module paths, by default the middle stage of a model and the trunk of an explainer.
    """

    beta: float = Field(default=100.0, ge=0, allow_inf_nan=False)
    student_layer: str | None = None
    explainer_layer: str | None = None
    teacher_layer: str | None = None


@distiller(
    "fitnet",
    title="the teacher's features at a layer inside, regressed on the student's",
    definition="hard + β·mean over channels and positions of (r(h) − g)², with the student's "
    "features h, the teacher's g, and a linear r that is trained with the student",
    source="Romero et al. 2015, arXiv 1412.6550",
)
class FitNet(Distiller):
    """Hint regression: hard + β·mean (r(h) − g)², one value a sample.

    r is a convolution 1×1, or a linear layer for tokens and vectors, from the student's channels to
    the teacher's; it starts as torch draws it. Where grids of positions differ, both features are
    averaged to the smaller height and width.

    The paper trains up to the hint first and then, by KD, the whole student. Here both losses act
    together through one training, and KD has no part in it, as in the benchmark of CRD (Tian et
    al. 2020, arXiv 1910.10699), whose weights these are: 1 for the labels, 0 for KD, 100 for the
    hint. Its regressor is followed by BatchNorm and ReLU, and fits grids by the size of its
    convolution; the one here is linear, so that it reaches features of either sign.
    """

    takes = FitNetOptions
    options: FitNetOptions

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config)
        self.weights = {"hint": self.options.beta}

    def layers(self, student: nn.Module, teacher: nn.Module) -> tuple[Sequence[str], Sequence[str]]:
        """One module of each model."""
        chosen = self.options
        named = chosen.explainer_layer if isinstance(student, HME) else chosen.student_layer
        return [named or middle_stage(student)], [chosen.teacher_layer or middle_stage(teacher)]

    def build(self, features: Features, teacher_features: Features) -> None:
        """The regressor r."""
        (student,), (taught,) = features.values(), teacher_features.values()
        if student.ndim != taught.ndim or student.ndim not in (2, 3, 4):
            raise KdxError(
                f"objective {self.config.name!r} can't regress features of shape "
                f"{tuple(taught.shape)} on {tuple(student.shape)}: both should be B×C×H×W, B×T×C "
                "or B×C; choose other layers by its options student_layer, explainer_layer and "
                "teacher_layer"
            )
        if student.ndim == 4:
            self.regressor: nn.Module = nn.Conv2d(student.shape[1], taught.shape[1], kernel_size=1)
        else:
            self.regressor = nn.Linear(student.shape[-1], taught.shape[-1])

    def on_features(self, batch: Batch) -> dict[str, Tensor]:
        """``hint``, B."""
        (student,), (taught,) = batch.features.values(), batch.teacher_features.values()
        if student.ndim == 4:
            student, taught = on_one_grid(student, taught)
        return {"hint": (self.regressor(student) - taught).square().flatten(1).mean(dim=1)}


def on_one_grid(student: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
    """Two features, B×C×H×W each, averaged to the smaller height and the smaller width of both.

    >>> import torch
    >>> a, b = on_one_grid(torch.zeros(1, 2, 8, 8), torch.zeros(1, 3, 4, 4))
    >>> a.shape, b.shape
    (torch.Size([1, 2, 4, 4]), torch.Size([1, 3, 4, 4]))
    """
    height, width = (min(student.shape[axis], taught.shape[axis]) for axis in (2, 3))
    size = (height, width)
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(taught, size)
