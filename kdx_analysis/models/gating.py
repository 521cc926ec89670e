"""The modules between levels: gates that are parameters, gates that read the features, gates that are fixed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HIDDEN = 32


class ParameterGate(nn.Module):
    """Gate logits W, N×M, one row a child; they start uniform in [0, 1)."""

    def __init__(self, children: int, parents: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.rand(children, parents))

    def forward(self, features: Tensor) -> Tensor:
        return self.logits


class InputGate(nn.Module):
    """Gate logits that depend on the input (Jordan & Jacobs 1994), B×N×M: a small network on the parents' features.

    It reads the mean over positions of all M parents' features, B×M×C×… .
    """

    def __init__(self, children: int, parents: int, channels: int) -> None:
        super().__init__()
        self.shape = (children, parents)
        self.hidden = nn.Linear(parents * channels, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, children * parents)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(features.flatten(1)))).unflatten(1, self.shape)


class FixedGate(nn.Module):
    """A gate made hard: every child draws from one parent alone."""

    parents: Tensor

    def __init__(self, parents: Sequence[int], of: int) -> None:
        super().__init__()
        self.of = of
        self.register_buffer("parents", torch.tensor(parents, dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """α, one-hot rows, N×M."""
        return F.one_hot(self.parents, self.of).to(features.dtype)


def sampled(logits: Tensor) -> Tensor:
    """Logits with Gumbel noise, so that the softmax is a relaxed draw of one parent (Jang et al. 2017)."""
    return logits - torch.empty_like(logits).exponential_().log()


def strongest(logits: Tensor, k: int) -> Tensor:
    """The ``k`` largest logits of each row; the others −∞, so that their attention is 0."""
    if k >= logits.shape[-1]:
        return logits
    kept = logits.topk(k, dim=-1).indices
    return torch.full_like(logits, -torch.inf).scatter(-1, kept, logits.gather(-1, kept))
