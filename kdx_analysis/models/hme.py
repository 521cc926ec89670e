"""The explainer: a hierarchical mixture of experts (KDExplainer, arXiv 2105.04181, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import gates
from kdx_analysis.models.split import Level, split_student
from kdx_analysis.models.zoo import StagedNet


@dataclass(frozen=True)
class Trace:
    """What one forward pass of an explainer computes, from the trunk to the margins.

    Attributes:
        features: per level l = 1…L the experts' features, B×N_l×C_l×H_l×W_l; level 1 is the trunk, N_1 = 1.
        pooled: the last level's features as the heads read them, B×N_L×(C_L·pool²).
        inputs: every subtask's gated input, B×K×(C_L·pool²).
        margins: m_k, B×K.
    """

    features: tuple[Tensor, ...]
    pooled: Tensor
    inputs: Tensor
    margins: Tensor


class HME(nn.Module):
    """Trunk, levels of experts, gates between them, and one binary head per class.

    The input of expert i on level l is Σ_j α^l_ij F_j^{l−1}, the input of subtask k's head Σ_j α^{L+1}_kj F_j^L.
    The gates are parameters, not functions of the input. Heads are linear on features averaged over a ``pool`` ×
    ``pool`` grid; pooling and gates are both linear, so the features are pooled before they are mixed. Calling the
    model gives the margins m_k (B×K); the multi-class prediction is argmax_k m_k.

    Args:
        trunk: image → B×C_1×H×W, shared by all experts.
        levels: the levels above it; experts of one level are computed side by side by grouped convolutions.
        num_classes: K, the number of binary subtasks.
        pool: the grid that heads read, as the student's classifier does; 1 is global average pooling.
    """

    tau: Tensor

    def __init__(self, trunk: nn.Module, levels: Sequence[Level], num_classes: int, pool: int = 1) -> None:
        super().__init__()
        if not levels:
            raise KdxError("an explainer needs at least one level of experts above the trunk")
        self.num_classes = num_classes
        self.experts = (1, *(level.experts for level in levels))
        self.trunk = trunk
        self.levels = nn.ModuleList(level.module for level in levels)
        rows = (*self.experts[2:], num_classes)
        self.gate_logits = nn.ParameterList(
            nn.Parameter(torch.rand(n, parents)) for n, parents in zip(rows, self.experts[1:], strict=True)
        )
        self.pool = pool
        width = levels[-1].channels * pool**2
        bound = width**-0.5
        self.head_weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-bound, bound))
        self.head_bias = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("tau", torch.ones(()))

    @classmethod
    def from_student(cls, student: nn.Module, num_classes: int, experts: int | Sequence[int] = 4) -> HME:
        """An explainer with the student's blocks: its stem and first stage as trunk, later stages as experts.

        Experts are narrowed until all levels together have about the parameters of the stages that they stand
        for. The weights are drawn anew from torch's random state; the student is left as it is. Raises KdxError
        for a student whose stages are not declared.
        """
        if not isinstance(student, StagedNet):
            raise KdxError(
                f"{type(student).__name__} does not declare its stages, so it can't be split into experts; "
                "build it as a StagedNet or take a student of the zoo (kdx list models)"
            )
        trunk, levels = split_student(student, experts)
        return cls(trunk, levels, num_classes, student.pool)

    @property
    def temperature(self) -> float:
        """τ, the temperature of all gates; can be set."""
        return float(self.tau)

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not value > 0:
            raise KdxError(f"gate temperature {value!r} should be above 0")
        self.tau.fill_(value)

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """The gate logits W, for an optimiser group of their own (no weight decay: it would sharpen or flatten)."""
        yield from self.gate_logits

    def attention(self, logits: Sequence[Tensor] | None = None) -> list[Tensor]:
        """α^l for l = 2…L+1 at the present τ, of the model's own gate logits or of ``logits`` in their place.

        The first, into level 2 from the single trunk, is all ones.
        """
        first = self.head_weight.new_ones(self.experts[1], 1)
        chosen = list(self.gate_logits) if logits is None else list(logits)
        return [first, *(gates.attention(w, self.tau) for w in chosen)]

    def trace(self, images: Tensor) -> Trace:
        """Run the model and keep what lies on the way; ``images`` are normalised, B×C×H×W."""
        alpha = self.attention()
        features = [self.trunk(images).unsqueeze(1)]
        for module, gate in zip(self.levels, alpha[:-1], strict=True):
            out = module(_mix(features[-1], gate))
            features.append(out.unflatten(1, (gate.shape[0], -1)))
        grid = F.adaptive_avg_pool2d(features[-1].flatten(1, 2), self.pool)
        pooled = grid.unflatten(1, (self.experts[-1], -1)).flatten(2)
        inputs = alpha[-1] @ pooled
        return Trace(tuple(features), pooled, inputs, self.heads(inputs))

    def heads(self, inputs: Tensor) -> Tensor:
        """Margins (B×K) of the subtasks from their gated inputs (B×K×(C·pool²))."""
        return (inputs * self.head_weight).sum(dim=-1) + self.head_bias

    def forward(self, images: Tensor) -> Tensor:
        return self.trace(images).margins


def _mix(features: Tensor, gate: Tensor) -> Tensor:
    """Σ_j gate_ij F_j, experts side by side: features B×M×C×H×W, gate N×M, result B×(N·C)×H×W."""
    if features.shape[1] == 1:  # the trunk's single gate is 1; cat keeps the memory format
        return torch.cat([features[:, 0]] * gate.shape[0], dim=1)
    return torch.einsum("nm,bmchw->bnchw", gate, features).flatten(1, 2)
