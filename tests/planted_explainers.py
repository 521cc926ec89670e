"""Explainers made by hand, linear in their images, whose ablations and attributions can be computed
with a pencil.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdx_analysis.models import HME
from kdx_analysis.models.heads import GridPool, LinearHeads
from kdx_analysis.models.splitting.experts import Level


def explainer(
    trunk: nn.Module, levels: Sequence[Level], attention: Sequence[Tensor], weights: Sequence[float]
) -> HME:
    """Gates of exactly this attention (levels 3… and the heads); head k weighs its one pooled
    feature by weights[k].
    """
    K = len(weights)
    heads = LinearHeads(K, 1)
    model = HME(trunk, levels, heads, readout=GridPool(1), num_classes=K).double()
    with torch.no_grad():
        heads.weight.copy_(torch.tensor(weights).unsqueeze(1))
        heads.bias.fill_(0.25)
        for gate, alpha in zip(model.gates, attention, strict=True):
            gate.logits.copy_(alpha.log().clamp(min=-1e4))  # softmax makes an exact 0 of it
    return model.train()


def scaling(scales: Sequence[float]) -> Level:
    """Experts that multiply a single channel: F_i = scale_i · input."""
    level = Level.of(nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)), len(scales)).double()
    with torch.no_grad():
        next(level.parameters()).copy_(torch.tensor(scales).view(-1, 1, 1, 1))
    return level


def passing() -> nn.Module:
    """A trunk that gives the image back."""
    trunk = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(trunk.weight)
    return trunk


class Halves(nn.Module):
    """A trunk of two channels: the left half of the image, zero elsewhere, and the right half."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        left = torch.arange(images.shape[-1]) < images.shape[-1] // 2
        return self.one * torch.cat([images * left, images * ~left], dim=1)


def by_halves(attention: Tensor, weights: Sequence[float]) -> HME:
    """Expert 0 looks at the left half of the image alone, expert 1 at the right half."""
    level = Level.of(nn.Sequential(nn.Conv2d(2, 1, 1, bias=False)), 2)
    with torch.no_grad():
        next(level.parameters()).copy_(torch.eye(2).view(2, 2, 1, 1))
    return explainer(Halves(), [level], [attention], weights)
