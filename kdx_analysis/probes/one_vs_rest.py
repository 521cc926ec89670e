"""Any classifier asked as K one-vs-rest subtasks, so that teacher, student and explainer are asked the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.models import HME
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes.checks import subtasks
from kdx_analysis.probes.gradients import in_full, undisturbed


@dataclass(frozen=True, eq=False)
class OneVsRest:
    """A classifier on a probe set, and the plain hard loss of its K subtasks.

    Attributes:
        model: the model, or a float32 copy of one in half precision; an explainer gives its margins.
        images: on the model's device, B×C×H×W.
        margins: outputs → margins; None where outputs are margins.
        outputs: the margins, B×K.
        classes: names of the K subtasks.
        one_hot: 1[y = k], B×K.
    """

    model: nn.Module
    images: Tensor
    margins: Callable[[Tensor], Tensor] | None
    outputs: Tensor
    classes: tuple[str, ...]
    one_hot: Tensor

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str] | None,
        margins: Callable[[Tensor], Tensor] | None,
    ) -> OneVsRest:
        """Arguments and errors as of :func:`kdx_analysis.probes.conflict_of`."""
        model = in_full(model)
        images = images.to(next(model.parameters(), images))
        if margins is None and isinstance(model, HME):
            model = model.giving_margins()
        elif margins is None:
            margins = one_vs_rest_margins
        with undisturbed(model), torch.no_grad():
            outputs = model(images)
            own = outputs if margins is None else margins(outputs)
        names, labels = subtasks(own, labels.to(images.device), classes)
        return cls(model, images, margins, own, names, F.one_hot(labels, len(names)).to(own.dtype))

    def loss(self, margins: Tensor) -> Tensor:
        """BCE(σ(m_k), 1[y = k]) of every image and subtask, B×K.

        By logsigmoid: PyTorch's own loss on logits loses what is left of it, and of its gradient, at margins beyond
        ±14 in float32.
        """
        return -self.one_hot * F.logsigmoid(margins) - (1 - self.one_hot) * F.logsigmoid(-margins)
