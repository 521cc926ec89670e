"""Gating attention: pure functions on the simplex, and the modules that hold or compute its logits.

A gate is a row of attention. Level 1 is the trunk; α^l (N_l × N_{l-1}) are the gates into level l
and α^{L+1} (K × N_L) those into the subtasks' heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor, nn

_HIDDEN = 32  # units of an input gate's hidden layer


def attention(
    logits: Float[Tensor, "*rows N"], temperature: float | Float[Tensor, ""]
) -> Float[Tensor, "*rows N"]:
    """α = softmax(W / τ), each row on the simplex.

    It is part of forward passes, so its shapes are not checked.
    """
    return torch.softmax(logits / temperature, dim=-1)


@jaxtyped(typechecker=beartype)
def effective_attention(
    alpha: Float[Tensor, "*rows N"], spread: Float[Tensor, " N"]
) -> Float[Tensor, "*rows N"]:
    """A_ij = α_ij s_j / Σ_j' α_ij' s_j': what a gate lets through, given how much its parents vary.

    α alone is not identified (scaling a parent's features shifts its logits at equal outputs); A is
    invariant to that. ``spread`` is s, from :func:`spread`. Rows lie on the simplex; a row whose
    parents do not vary at all is NaN.

    >>> effective_attention(torch.tensor([[0.5, 0.5]]), torch.tensor([1.0, 3.0]))
    tensor([[0.2500, 0.7500]])
    """
    weighted = alpha * spread
    return weighted / weighted.sum(dim=-1, keepdim=True)


@jaxtyped(typechecker=beartype)
def spread(features: Float[Tensor, "B N *axes"]) -> Float[Tensor, " N"]:
    """s_j = √(mean over C, H, W (T, D) of the variance over samples of expert j's features).

    The variance divides by B; s_j ≥ 0.

    >>> spread(torch.tensor([[[1.0], [0.0]], [[5.0], [0.0]]]))
    tensor([2., 0.])
    """
    return features.var(dim=0, correction=0).flatten(1).mean(dim=1).sqrt()


def pathways(gates: Sequence[Tensor]) -> list[Tensor]:
    """P^l (K × N_l) for every level that the gates reach, in the order of the gates.

    P^L = α^{L+1} and P^l = P^{l+1} α^{l+1}: row k says where subtask k draws its features from on
    level l.
    """
    paths = [gates[-1]]
    for gate in reversed(gates[:-1]):
        paths.append(paths[-1] @ gate)
    return paths[::-1]


@jaxtyped(typechecker=beartype)
def entropy(rows: Float[Tensor, "*rows N"]) -> Float[Tensor, "*rows"]:
    """H = −Σ a ln a per row, in nats; [0, ln N].

    >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([0.6931, 0.0000])
    """
    return torch.special.entr(rows).sum(dim=-1)


@jaxtyped(typechecker=beartype)
def entropy_share(rows: Float[Tensor, "*rows N"]) -> Float[Tensor, "*rows"]:
    """H / ln N in [0, 1]; NaN for N = 1, where there is nothing to choose.

    >>> entropy_share(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([1., 0.])
    """
    n = rows.shape[-1]
    return entropy(rows) / math.log(n) if n > 1 else torch.full_like(rows[..., 0], torch.nan)


class ParameterGate(nn.Module):
    """Gate logits W, N×M, one row a child; they start uniform in [0, 1)."""

    def __init__(self, children: int, parents: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.rand(children, parents))

    def forward(self, features: Tensor) -> Tensor:
        return self.logits


class InputGate(nn.Module):
    """Gate logits that depend on the input (Jordan & Jacobs 1994), B×N×M.

    They come from a small network on the parents' features. It reads the mean over positions of all
    M parents' features, B×M×C×… .
    """

    def __init__(self, children: int, parents: int, channels: int) -> None:
        super().__init__()
        self.shape = (children, parents)
        self.hidden = nn.Linear(parents * channels, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, children * parents)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(features.flatten(1)))).unflatten(1, self.shape)


class FixedGate(nn.Module):
    """A gate made hard: every child draws from one parent alone, of so many ``experts`` below."""

    parents: Tensor

    def __init__(self, parents: Sequence[int], experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.register_buffer("parents", torch.tensor(parents, dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """α, one-hot rows, N×M."""
        return F.one_hot(self.parents, self.experts).to(features.dtype)

    def taken(self, children: Sequence[int], parents: Sequence[int]) -> FixedGate:
        """The gate of these children alone, into these parents alone, among which theirs are."""
        chosen = [int(self.parents[child]) for child in children]
        return FixedGate([parents.index(parent) for parent in chosen], len(parents))


def sampled(logits: Tensor) -> Tensor:
    """Logits with Gumbel noise: softmax makes them a relaxed draw of one parent.

    From Jang et al. 2017, Categorical reparameterization with Gumbel-softmax.
    """
    return logits - torch.empty_like(logits).exponential_().log()


def strongest(logits: Tensor, k: int) -> Tensor:
    """The ``k`` largest logits of each row; the others −∞, so that their attention is 0."""
    if k >= logits.shape[-1]:
        return logits
    kept = logits.topk(k, dim=-1).indices
    return torch.full_like(logits, -torch.inf).scatter(-1, kept, logits.gather(-1, kept))
