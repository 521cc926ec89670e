"""Gating attention: pure functions on the simplex.

A gate is a row of attention. Level 1 is the trunk; α^l (N_l × N_{l-1}) are the gates into level l and
α^{L+1} (K × N_L) those into the subtasks' heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor


def attention(logits: Float[Tensor, "*rows N"], temperature: float | Float[Tensor, ""]) -> Float[Tensor, "*rows N"]:
    """α = softmax(W / τ), each row on the simplex. Part of forward passes, so its shapes are not checked."""
    return torch.softmax(logits / temperature, dim=-1)


@jaxtyped(typechecker=beartype)
def effective_attention(alpha: Float[Tensor, "*rows N"], spread: Float[Tensor, " N"]) -> Float[Tensor, "*rows N"]:
    """A_ij = α_ij s_j / Σ_j' α_ij' s_j': what a gate lets through, given how much its parents vary.

    α alone is not identified (scaling a parent's features shifts its logits at equal outputs); A is invariant to
    that. ``spread`` is s, from :func:`spread`. A row whose parents do not vary at all is NaN.
    """
    weighted = alpha * spread
    return weighted / weighted.sum(dim=-1, keepdim=True)


@jaxtyped(typechecker=beartype)
def spread(features: Float[Tensor, "B N *axes"]) -> Float[Tensor, " N"]:
    """s_j: root of the mean over C, H, W (T, D) of the variance over samples (dividing by B) of expert j's features."""
    return features.var(dim=0, correction=0).flatten(1).mean(dim=1).sqrt()


def pathways(gates: Sequence[Tensor]) -> list[Tensor]:
    """P^l (K × N_l) for every level that the gates reach, in the order of the gates.

    P^L = α^{L+1} and P^l = P^{l+1} α^{l+1}: row k says where subtask k draws its features from on level l.
    """
    paths = [gates[-1]]
    for gate in reversed(gates[:-1]):
        paths.append(paths[-1] @ gate)
    return paths[::-1]


@jaxtyped(typechecker=beartype)
def entropy(rows: Float[Tensor, "*rows N"]) -> Float[Tensor, "*rows"]:
    """H = −Σ a ln a per row, in nats; [0, ln N]."""
    return torch.special.entr(rows).sum(dim=-1)


@jaxtyped(typechecker=beartype)
def entropy_share(rows: Float[Tensor, "*rows N"]) -> Float[Tensor, "*rows"]:
    """H / ln N in [0, 1]; NaN for N = 1, where there is nothing to choose."""
    n = rows.shape[-1]
    return entropy(rows) / math.log(n) if n > 1 else torch.full_like(rows[..., 0], torch.nan)
