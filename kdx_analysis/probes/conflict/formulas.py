"""Knowledge conflict between binary subtasks: pure functions on Gram matrices of their gradients.

Axes: K subtasks, N experts, leading axes free (losses, null draws). Pairs are a < b.
"""

from __future__ import annotations

import numpy as np
import torch
from beartype import beartype
from jaxtyping import Float, Shaped, jaxtyped
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.metrics import metric

_WORDS = ("less conflict", "more conflict")


@jaxtyped(typechecker=beartype)
def cosine(gram: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws K K"]:
    """c_ab = G_ab/√(G_aa G_bb) in [−1, 1]; NaN where a gradient is zero."""
    norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return (gram / (norm.unsqueeze(-1) * norm.unsqueeze(-2))).clamp(-1, 1)


@jaxtyped(typechecker=beartype)
def magnitude_similarity(gram: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws K K"]:
    """2‖g_a‖‖g_b‖/(‖g_a‖² + ‖g_b‖²) in [0, 1]; 1: equally long, 0: one gradient is zero; 0/0 is
    NaN.
    """
    squared = gram.diagonal(dim1=-2, dim2=-1)
    product = (squared.unsqueeze(-1) * squared.unsqueeze(-2)).sqrt()
    return 2 * product / (squared.unsqueeze(-1) + squared.unsqueeze(-2))


@metric(
    "conflict_rate",
    title="conflict rate",
    reads="cosines",
    unit="share of pairs",
    range=(0, 1),
    describes="share of pairs of subtasks whose gradients of the hard loss over trunk and experts oppose each other",
    definition="mean over pairs of 1[c_ab < 0]",
    conflict=True,
    better="lower",
    words=_WORDS,
    over_pairs="mean",
    of_pair=lambda cosine: np.where(np.isnan(cosine), np.nan, cosine < 0),
)
@jaxtyped(typechecker=beartype)
def conflict_rate(cosines: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws"]:
    """Share of pairs with c_ab < 0; NaN pairs left out, NaN if none is left."""
    pairs = upper(cosines)
    return torch.where(pairs.isnan(), torch.nan, (pairs < 0).to(pairs.dtype)).nanmean(dim=-1)


@metric(
    "severity",
    title="conflict severity",
    reads="cosines",
    unit="max(0, −cosine)",
    range=(0, 1),
    describes="mean over pairs of max(0, −cosine), as for the conflict rate",
    definition="mean over pairs of max(0, −c_ab)",
    conflict=True,
    better="lower",
    words=_WORDS,
    over_pairs="mean",
    of_pair=lambda cosine: np.maximum(-cosine, 0),
)
@jaxtyped(typechecker=beartype)
def severity(cosines: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws"]:
    """Mean over pairs of max(0, −c_ab), in [0, 1]; NaN pairs left out, NaN if none is left."""
    return (-upper(cosines)).clamp(min=0).nanmean(dim=-1)


@jaxtyped(typechecker=beartype)
def mean_cosine(cosines: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws"]:
    """Mean of c_ab over pairs; NaN pairs left out, NaN if none is left."""
    return upper(cosines).nanmean(dim=-1)


@metric(
    "contention",
    title="contention",
    reads="grams and gates",
    unit="share of gradient",
    range=(0, 1),
    describes="share of the last level's gradient that pulls against another subtask's inside an expert",
    definition="C(α) with C(Q) = Σ_i Σ_{a<b} max(0, −G^i_ab(Q)) / Σ_{a<b} √(G_aa(Q) G_bb(Q))",
    conflict=True,
    better="lower",
    words=_WORDS,
)
@jaxtyped(typechecker=beartype)
def contention(
    ungated: Float[Tensor, "*#draws N K K"], gates: Float[Tensor, "*#draws K N"]
) -> Float[Tensor, "*#draws"]:
    """C(Q) = Σ_i Σ_{a<b} max(0, −G^i_ab(Q)) / Σ_{a<b} √(G_aa(Q) G_bb(Q)), in [0, 1]; 0/0 is NaN.

    How much of all gradient pulls against another inside an expert that both subtasks use.

    Args:
        ungated: ⟨h^i_a, h^i_b⟩ of the last level, the gradients without the gates' factor.
        gates: Q, any gates into the heads; G^i_ab(Q) = Q_ai Q_bi ⟨h^i_a, h^i_b⟩ and G = Σ_i G^i.
    """
    q = gates.transpose(-1, -2)
    return contention_inside(q.unsqueeze(-1) * q.unsqueeze(-2) * ungated)


@jaxtyped(typechecker=beartype)
def contention_inside(grams: Float[Tensor, "*draws N K K"]) -> Float[Tensor, "*draws"]:
    """C of the actual gradients: Σ_i Σ_{a<b} max(0, −G^i_ab) / Σ_{a<b} √(G_aa G_bb), in [0, 1]; 0/0
    is NaN.

    For levels and gates where G^i does not factorise into gates and the rest; ``grams`` are G^i.
    """
    return contention_by_expert(grams).sum(dim=-1)


@jaxtyped(typechecker=beartype)
def contention_by_expert(grams: Float[Tensor, "*draws N K K"]) -> Float[Tensor, "*draws N"]:
    """What every expert adds to C: Σ_{a<b} max(0, −G^i_ab) / Σ_{a<b} √(G_aa G_bb), in [0, 1]; 0/0
    is NaN.

    ``grams`` are G^i of the actual gradients, G their sum over experts.
    """
    against = upper((-grams).clamp(min=0)).sum(dim=-1)
    norm = grams.sum(dim=-3).diagonal(dim1=-2, dim2=-1).sqrt()
    return against / upper(norm.unsqueeze(-1) * norm.unsqueeze(-2)).sum(dim=-1, keepdim=True)


@jaxtyped(typechecker=beartype)
def bounded_difference(
    reference: Float[Tensor, "*draws"], value: Float[Tensor, "*draws"]
) -> Float[Tensor, "*draws"]:
    """(reference − value)/(reference + value) in [−1, 1], for contentions; 0/0 is NaN."""
    return (reference - value) / (reference + value)


@metric(
    "separation",
    title="separation",
    reads="grams and gates",
    range=(-1, 1),
    describes="how far the gates lower contention below that of uniform gates, in [−1, 1]; 0: no better than sharing "
    "all",
    definition="(C(uniform) − C(α)) / (C(uniform) + C(α))",
    conflict=True,
    better="higher",
    words=("gates keep conflicts less apart", "gates keep conflicts further apart"),
    below=(
        "gates make more conflict than uniform gates would, and more of it",
        "gates make more conflict than uniform gates would, but less of it",
    ),
    across="below 0 gates make more conflict than uniform gates would, above 0 they keep conflicts apart",
)
@jaxtyped(typechecker=beartype)
def separation(
    ungated: Float[Tensor, "*draws N K K"], gates: Float[Tensor, "K N"]
) -> Float[Tensor, "*draws"]:
    """(C(uniform) − C(α))/(C(uniform) + C(α)): 1: gates keep every conflict apart, 0: no better
    than sharing all.
    """
    uniform = torch.full_like(gates, 1 / gates.shape[1])
    return bounded_difference(contention(ungated, uniform), contention(ungated, gates))


@metric(
    "modulation",
    title="modulation",
    reads="grams and gates",
    range=(-1, 1),
    describes="how far contention lies below that of the same gates permuted over subtasks, in [−1, 1]; 0: it does not "
    "matter which subtask goes where",
    definition="(C̄_π − C(α)) / (C̄_π + C(α)), C̄_π the mean of C over α's rows permuted over subtasks",
    conflict=True,
    words=("it matters less which subtask goes where", "it matters more which subtask goes where"),
    below=(
        "gates put conflicting subtasks together, further beyond what a random assignment would do",
        "gates put conflicting subtasks together, but less far beyond what a random assignment would do",
    ),
    across="below 0 gates put conflicting subtasks together, above 0 they keep them apart",
)
@jaxtyped(typechecker=beartype)
def modulation(
    ungated: Float[Tensor, "*draws N K K"],
    gates: Float[Tensor, "K N"],
    permutations: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "*draws"], Float[Tensor, "*draws"]]:
    """(C̄_π − C(α))/(C̄_π + C(α)) with C̄_π the mean over α's rows permuted over subtasks, and its
    p.

    Above 0 it matters *which* subtask goes where, beyond how sparse the gates are; gates that are
    all alike and K = 2 give 0, 0/0 is NaN. p = (1 + #{C_π ≤ C})/(1 + R), R the number of
    ``permutations``, the same for all draws.
    """
    kind, draws = ungated.dtype, ungated.shape[:-3]
    ungated = ungated.double().flatten(0, -4) if draws else ungated.double().unsqueeze(0)
    gates = gates.double()  # in float32 the same gates in another order differ beyond ties
    K = gates.shape[0]
    order = torch.rand(permutations, K, generator=generator).argsort(dim=1)
    order = torch.cat([torch.arange(K).unsqueeze(0), order]).to(gates.device)
    own, *permuted = torch.cat(
        [_contentions(ungated, gates[rows]) for rows in order.split(_at_once(ungated))]
    )
    p = torch.from_numpy(null.p_value(own.cpu(), torch.stack(permuted).cpu(), "less")).to(
        ungated.device
    )
    value = bounded_difference(torch.stack(permuted).mean(dim=0), own)
    p = torch.where(value.isnan(), torch.nan, p)
    if K == 2:  # two that swap places meet in the same experts
        value, p = (
            torch.where(value.isnan(), torch.nan, torch.full_like(value, known))
            for known in (0.0, 1.0)
        )
    return value.to(kind).reshape(draws), p.to(kind).reshape(draws)


def _contentions(ungated: Tensor, gates: Tensor) -> Tensor:
    """:func:`contention` of R draws, R×N×K×K, under each of P gates, P×K×N: P×R, by products of
    matrices.

    Gates are never below 0, so max(0, −Q_ai Q_bi h) is Q_ai Q_bi max(0, −h).
    """
    against = upper((-ungated).clamp(min=0)).flatten(1)
    a, b = torch.triu_indices(gates.shape[1], gates.shape[1], offset=1, device=gates.device)
    weights = (gates[:, a] * gates[:, b]).transpose(1, 2).flatten(1)
    squared = torch.einsum("pkn,rnk->prk", gates**2, ungated.diagonal(dim1=-2, dim2=-1))
    norm = squared.clamp(min=0).sqrt()
    return weights @ against.T / ((norm.sum(dim=-1) ** 2 - (norm**2).sum(dim=-1)) / 2)


@jaxtyped(typechecker=beartype)
def upper(table: Shaped[Tensor, "*draws K K"]) -> Shaped[Tensor, "*draws P"]:
    """The P = K(K − 1)/2 entries with a < b."""
    a, b = torch.triu_indices(table.shape[-2], table.shape[-1], offset=1, device=table.device)
    return table[..., a, b]


def _at_once(ungated: Tensor) -> int:
    """Permutations whose weights of all pairs and norms of all draws are held together: some 10
    million entries.
    """
    R, N, K, _ = ungated.shape
    return max(1, 10_000_000 // (K * K * N // 2 + R * K))
