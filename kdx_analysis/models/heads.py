"""The end of an explainer: what heads read of the last level's features, and the heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def margins_of(logits: Tensor) -> Tensor:
    """m_k, B×K, of what heads give: a subtask's only logit, or z_k1 − z_k0 of its two.

    Logits are B×K, or B×K×2.

    >>> margins_of(torch.tensor([[[1.0, 3.0], [2.0, -1.0]]]))
    tensor([[ 2., -3.]])
    """
    return logits if logits.ndim == 2 else logits[..., 1] - logits[..., 0]


def scores_of(logits: Tensor) -> Tensor:
    """The released code's scores, B×K: a subtask's only logit, or the larger of its two.

    >>> scores_of(torch.tensor([[[1.0, 3.0], [2.0, -1.0]]]))
    tensor([[3., 2.]])
    """
    return logits if logits.ndim == 2 else logits.amax(dim=-1)


class GridPool(nn.Module):
    """Averages over a ``pool`` × ``pool`` grid: B×N×C×H×W to B×N×(C·pool²)."""

    def __init__(self, pool: int = 1) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: Tensor) -> Tensor:
        grid = F.adaptive_avg_pool2d(features.flatten(1, 2), self.pool)
        return grid.unflatten(1, (features.shape[1], -1)).flatten(2)


class TokenPool(nn.Module):
    """The first token, or the mean of all: B×N×T×D to B×N×D."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :, 0] if self.first else features.mean(dim=2)


class LinearHeads(nn.Module):
    """K binary classifiers, linear on gated inputs: B×K×D to the margins m_k, B×K."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, width))
        self.bias = nn.Parameter(torch.empty(num_classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights uniform in ±1/√D, biases 0."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs * self.weight).sum(dim=-1) + self.bias
