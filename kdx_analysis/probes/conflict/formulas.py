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
_ENTRIES_AT_ONCE = 10_000_000  # 80 MB in float64


@jaxtyped(typechecker=beartype)
def cosine(gram: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws K K"]:
    """c_ab = G_ab/√(G_aa G_bb) in [−1, 1]; NaN where a gradient is zero.

    >>> cosine(torch.tensor([[4.0, -1.0], [-1.0, 1.0]]))
    tensor([[ 1.0000, -0.5000],
            [-0.5000,  1.0000]])
    """
    norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    # Rounding alone carries a quotient beyond 1, by Cauchy and Schwarz.
    return (gram / (norm.unsqueeze(-1) * norm.unsqueeze(-2))).clamp(-1, 1)


@jaxtyped(typechecker=beartype)
def magnitude_similarity(gram: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws K K"]:
    """2‖g_a‖‖g_b‖/(‖g_a‖² + ‖g_b‖²) in [0, 1]; 0/0 is NaN.

    1: equally long, 0: one gradient is zero.

    >>> magnitude_similarity(torch.tensor([[4.0, -1.0], [-1.0, 1.0]]))
    tensor([[1.0000, 0.8000],
            [0.8000, 1.0000]])
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
    describes="share of pairs of subtasks whose gradients of the hard loss over trunk and experts "
    "oppose each other",
    definition="mean over pairs of 1[c_ab < 0]",
    conflict=True,
    better="lower",
    words=_WORDS,
    over_pairs="mean",
    of_pair=lambda cosine: np.where(np.isnan(cosine), np.nan, cosine < 0),
)
@jaxtyped(typechecker=beartype)
def conflict_rate(cosines: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws"]:
    """Share of pairs with c_ab < 0, in [0, 1]; NaN pairs left out, NaN if none is left.

    >>> nan = torch.nan
    >>> conflict_rate(torch.tensor([[1.0, -0.5, 0.2], [-0.5, 1.0, nan], [0.2, nan, 1.0]]))
    tensor(0.5000)
    """
    pairs = upper(cosines)
    # A comparison with NaN is False, which would count the pair as one at peace.
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
    """Mean over pairs of max(0, −c_ab), in [0, 1]; NaN pairs left out, NaN if none is left.

    >>> nan = torch.nan
    >>> severity(torch.tensor([[1.0, -0.5, 0.2], [-0.5, 1.0, nan], [0.2, nan, 1.0]]))
    tensor(0.2500)
    """
    # The clamp is the formula's max, and keeps NaN.
    return (-upper(cosines)).clamp(min=0).nanmean(dim=-1)


@jaxtyped(typechecker=beartype)
def mean_cosine(cosines: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws"]:
    """Mean of c_ab over pairs, in [−1, 1]; NaN pairs left out, NaN if none is left.

    >>> nan = torch.nan
    >>> mean_cosine(torch.tensor([[1.0, -0.5, 0.2], [-0.5, 1.0, nan], [0.2, nan, 1.0]]))
    tensor(-0.1500)
    """
    return upper(cosines).nanmean(dim=-1)


@metric(
    "contention",
    title="contention",
    reads="grams and gates",
    unit="share of gradient",
    range=(0, 1),
    describes="share of the last level's gradient that pulls against another subtask's inside an "
    "expert",
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

    Two subtasks that oppose each other in both of two experts, 2 · ¾ · ¼ over (¾)² + (¼)²:

    >>> opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 1, 1)
    >>> contention(opposed, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    tensor(0.6000)
    """
    q = gates.transpose(-1, -2)
    return contention_inside(q.unsqueeze(-1) * q.unsqueeze(-2) * ungated)


@jaxtyped(typechecker=beartype)
def contention_inside(grams: Float[Tensor, "*draws N K K"]) -> Float[Tensor, "*draws"]:
    """C = Σ_i Σ_{a<b} max(0, −G^i_ab) / Σ_{a<b} √(G_aa G_bb), in [0, 1]; 0/0 is NaN.

    That is :func:`contention` of the actual gradients, for levels and gates where G^i does not
    factorise into gates and the rest; ``grams`` are G^i.

    >>> contention_inside(torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]]))
    tensor(0.2500)
    """
    return contention_by_expert(grams).sum(dim=-1)


@jaxtyped(typechecker=beartype)
def contention_by_expert(grams: Float[Tensor, "*draws N K K"]) -> Float[Tensor, "*draws N"]:
    """C^i = Σ_{a<b} max(0, −G^i_ab) / Σ_{a<b} √(G_aa G_bb), in [0, 1]; 0/0 is NaN.

    That is what every expert adds to C. ``grams`` are G^i of the actual gradients, G their sum over
    experts.

    >>> contention_by_expert(torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]]))
    tensor([0.2500, 0.0000])
    """
    # The clamp is the formula's max: gradients that agree do not make up for those that don't.
    against = upper((-grams).clamp(min=0)).sum(dim=-1)
    norm = grams.sum(dim=-3).diagonal(dim1=-2, dim2=-1).sqrt()
    return against / upper(norm.unsqueeze(-1) * norm.unsqueeze(-2)).sum(dim=-1, keepdim=True)


@jaxtyped(typechecker=beartype)
def bounded_difference(
    reference: Float[Tensor, "*draws"], value: Float[Tensor, "*draws"]
) -> Float[Tensor, "*draws"]:
    """(reference − value)/(reference + value) in [−1, 1], for contentions; 0/0 is NaN.

    It is 0 where the two are the same, and above where the value is lower.

    >>> bounded_difference(torch.tensor(0.6), torch.tensor(0.2))
    tensor(0.5000)
    """
    return (reference - value) / (reference + value)


@metric(
    "separation",
    title="separation",
    reads="grams and gates",
    range=(-1, 1),
    describes="how far the gates lower contention below that of uniform gates, in [−1, 1]; 0: no "
    "better than sharing all",
    definition="(C(uniform) − C(α)) / (C(uniform) + C(α))",
    conflict=True,
    better="higher",
    words=("gates keep conflicts less apart", "gates keep conflicts further apart"),
    below=(
        "gates make more conflict than uniform gates would, and more of it",
        "gates make more conflict than uniform gates would, but less of it",
    ),
    across="below 0 gates make more conflict than uniform gates would, above 0 they keep conflicts "
    "apart",
)
@jaxtyped(typechecker=beartype)
def separation(
    ungated: Float[Tensor, "*draws N K K"], gates: Float[Tensor, "K N"]
) -> Float[Tensor, "*draws"]:
    """(C(uniform) − C(α))/(C(uniform) + C(α)) in [−1, 1]; 0/0 is NaN.

    1: gates keep every conflict apart, 0: no better than sharing all.

    >>> opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 1, 1)
    >>> separation(opposed, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))  # C is 1 and 0.6
    tensor(0.2500)
    """
    uniform = torch.full_like(gates, 1 / gates.shape[1])
    return bounded_difference(contention(ungated, uniform), contention(ungated, gates))


@metric(
    "modulation",
    title="modulation",
    reads="grams and gates",
    range=(-1, 1),
    describes="how far contention lies below that of the same gates permuted over subtasks, in "
    "[−1, 1]; 0: it does not matter which subtask goes where",
    definition="(C̄_π − C(α)) / (C̄_π + C(α)), C̄_π the mean of C over α's rows permuted over "
    "subtasks",
    conflict=True,
    words=("it matters less which subtask goes where", "it matters more which subtask goes where"),
    below=(
        "gates put conflicting subtasks together, further beyond what a random assignment would do",
        "gates put conflicting subtasks together, but less far beyond what a random assignment "
        "would do",
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
    """(C̄_π − C(α))/(C̄_π + C(α)) in [−1, 1] and its p; C̄_π: mean over α's rows permuted.

    Above 0 it matters *which* subtask goes where, beyond how sparse the gates are; gates that are
    all alike and K = 2 give 0, 0/0 is NaN. p = (1 + #{C_π ≤ C})/(1 + R) in (0, 1], R the number of
    ``permutations`` of rows over subtasks, the same for all draws.

    Two camps, each with an expert to itself, have no contention at all; of two subtasks any order
    of the gates' rows gives the same:

    >>> camps = torch.tensor([1.0, 1.0, -1.0, -1.0])
    >>> opposed = torch.outer(camps, camps).repeat(2, 1, 1)
    >>> gates = torch.stack([camps > 0, camps < 0], dim=1).float()
    >>> modulation(opposed, gates, 9, torch.Generator().manual_seed(0))[0]
    tensor(1.)
    >>> leaning, generator = torch.tensor([[0.75, 0.25], [0.25, 0.75]]), torch.Generator()
    >>> modulation(opposed[:, 1:3, 1:3], leaning, 9, generator)
    (tensor(0.), tensor(1.))
    """
    dtype, draws = ungated.dtype, ungated.shape[:-3]
    ungated = ungated.double().flatten(0, -4) if draws else ungated.double().unsqueeze(0)
    gates = gates.double()  # in float32 the same gates in another order differ beyond ties
    K = gates.shape[0]
    orders = torch.rand(permutations, K, generator=generator).argsort(dim=1)
    orders = torch.cat([torch.arange(K).unsqueeze(0), orders]).to(gates.device)
    actual, *permuted = torch.cat(
        [_contentions(ungated, gates[rows]) for rows in orders.split(_orders_at_once(ungated))]
    )
    rare = null.p_value(actual.cpu(), torch.stack(permuted).cpu(), "less")
    value = bounded_difference(torch.stack(permuted).mean(dim=0), actual)
    p = torch.from_numpy(rare).to(ungated.device)
    if K == 2:  # two that swap places meet in the same experts, but sums in another order round
        p = torch.ones_like(value)
        value = torch.where(value.isnan(), torch.nan, torch.zeros_like(value))
    p = torch.where(value.isnan(), torch.nan, p)  # nothing was tested where there is no contention
    return value.to(dtype).reshape(draws), p.to(dtype).reshape(draws)


def _contentions(ungated: Tensor, gates: Tensor) -> Tensor:
    """:func:`contention` of R draws under each of P gates, P×R, by products of matrices.

    Draws are R×N×K×K and gates P×K×N. These are never below 0, so max(0, −Q_ai Q_bi h) is
    Q_ai Q_bi max(0, −h).
    """
    against = upper((-ungated).clamp(min=0)).flatten(1)
    a, b = torch.triu_indices(gates.shape[1], gates.shape[1], offset=1, device=gates.device)
    weights = (gates[:, a] * gates[:, b]).transpose(1, 2).flatten(1)
    squared = torch.einsum("pkn,rnk->prk", gates**2, ungated.diagonal(dim1=-2, dim2=-1))
    norm = squared.clamp(min=0).sqrt()  # a root of what rounding left below 0 would be NaN
    # Σ_{a<b} n_a n_b = ((Σ_a n_a)² − Σ_a n_a²)/2 needs no table of pairs for each of P·R.
    return weights @ against.T / ((norm.sum(dim=-1) ** 2 - (norm**2).sum(dim=-1)) / 2)


@jaxtyped(typechecker=beartype)
def upper(table: Shaped[Tensor, "*draws K K"]) -> Shaped[Tensor, "*draws P"]:
    """The P = K(K − 1)/2 entries with a < b, row by row.

    >>> upper(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
    tensor([2, 3, 6])
    """
    a, b = torch.triu_indices(table.shape[-2], table.shape[-1], offset=1, device=table.device)
    return table[..., a, b]


def _orders_at_once(ungated: Tensor) -> int:
    """Permutations whose weights of all pairs and norms of all draws are in memory together."""
    R, N, K, _ = ungated.shape
    return max(1, _ENTRIES_AT_ONCE // (K * K * N // 2 + R * K))
