"""What gating attention says: entropy, expert use, specialisation, routing distance.

Pure functions; axes: K subtasks, N experts, leading axes free. Experts have no identity across seeds, so only
what does not change when experts are permuted may be averaged over runs: everything returned here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor

from kdx_analysis.models import gates

DEAD_BELOW = 0.01


@jaxtyped(typechecker=beartype)
def expert_use(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws N"]:
    """u_i = mean_k P_ki, the share of all subtasks that expert i carries; sums to 1."""
    return paths.mean(dim=-2)


@jaxtyped(typechecker=beartype)
def use_cv2(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws"]:
    """Squared population coefficient of variation of expert use: 0 when even, N − 1 when one carries all.

    1/Σu² = N/(1 + CV²) is the number of experts in effective use.
    """
    use = expert_use(paths)
    return use.var(dim=-1, correction=0) / use.mean(dim=-1) ** 2


@jaxtyped(typechecker=beartype)
def dead_share(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws"]:
    """Share of experts whose use is below a hundredth of an even share, u_i < 0.01/N; in [0, 1]."""
    N = paths.shape[-1]
    return (expert_use(paths) < DEAD_BELOW / N).to(paths.dtype).mean(dim=-1)


@jaxtyped(typechecker=beartype)
def specialisation(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws"]:
    """I(subtask; expert)/ln min(K, N) = (H(mean_k P_k) − mean_k H(P_k))/ln min(K, N); in [0, 1], NaN for N = 1."""
    K, N = paths.shape[-2:]
    if min(K, N) == 1:
        return paths.new_full(paths.shape[:-2], torch.nan)
    information = gates.entropy(expert_use(paths)) - gates.entropy(paths).mean(dim=-1)
    return information / math.log(min(K, N))


@jaxtyped(typechecker=beartype)
def routing_distance(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws K K"]:
    """JSD(P_a, P_b)/ln 2 for all pairs of subtasks; in [0, 1], 0 for the same path, symmetric."""
    a, b = paths.unsqueeze(-2), paths.unsqueeze(-3)
    mixed = gates.entropy((a + b) / 2) - (gates.entropy(a) + gates.entropy(b)) / 2
    return mixed.clamp(min=0) / math.log(2)


@jaxtyped(typechecker=beartype)
def pair_mean(table: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws"]:
    """Mean over pairs a < b; NaN for K = 1."""
    a, b = torch.triu_indices(table.shape[-2], table.shape[-1], offset=1)
    return table[..., a, b].mean(dim=-1)


def summarise(attention: Sequence[Tensor]) -> dict[tuple[str, int, str], tuple[Tensor, int]]:
    """Every gate metric of a model's attention, keyed by (of, level, metric), with the n that it averages.

    Args:
        attention: α^l or A^l for l = 2…L+1, each *draws×N_l×N_{l−1} (the last one K×N_L).

    ``of`` is ``gates`` for metrics of the rows into a level (averaged over its rows: entropy in nats, its share
    of ln N, effective experts exp H) and ``pathways`` for those of P on a level of experts. Gates with a single
    parent, as those into level 2, have nothing to choose and are left out.
    """
    table: dict[tuple[str, int, str], tuple[Tensor, int]] = {}
    for level, rows in enumerate(attention, 2):
        if rows.shape[-1] == 1:
            continue
        n = rows.shape[-2]
        table["gates", level, "entropy"] = gates.entropy(rows).mean(dim=-1), n
        table["gates", level, "entropy_share"] = gates.entropy_share(rows).mean(dim=-1), n
        table["gates", level, "effective_experts"] = gates.entropy(rows).exp().mean(dim=-1), n
    for level, paths in enumerate(gates.pathways(attention), 1):
        K, N = paths.shape[-2:]
        if N == 1:
            continue
        table["pathways", level, "use_cv2"] = use_cv2(paths), N
        table["pathways", level, "dead_share"] = dead_share(paths), N
        table["pathways", level, "specialisation"] = specialisation(paths), K
        table["pathways", level, "routing_distance"] = pair_mean(routing_distance(paths)), K * (K - 1) // 2
    return table


def random_logits(like: Sequence[Tensor], draws: int, generator: torch.Generator) -> list[Tensor]:
    """Gate logits as an untrained explainer draws them, uniform in [0, 1), ``draws`` times; the null of gates."""
    return [torch.rand(draws, *logits.shape, generator=generator).to(logits) for logits in like]


def effective(attention: Sequence[Tensor], spreads: Sequence[Tensor]) -> list[Tensor]:
    """A^l for every α^l; ``spreads`` are s of levels 1…L, each N_l."""
    return [
        gates.effective_attention(alpha, s.expand(alpha.shape[-1])) for alpha, s in zip(attention, spreads, strict=True)
    ]


def quantiles(values: Tensor) -> Mapping[str, float]:
    """Mean and central 95 % range over draws, as the columns null_mean, null_low, null_high; NaN draws left out."""
    valid = values[~values.isnan()].double()
    if len(valid) == 0:
        return dict.fromkeys(("null_mean", "null_low", "null_high"), math.nan)
    low, high = torch.quantile(valid, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"null_mean": float(valid.mean()), "null_low": low, "null_high": high}
