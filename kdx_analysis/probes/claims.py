"""Conflicts between what subtasks claim: samples that two want, samples that none wants.

Pure functions; axes: B samples, K subtasks, leading axes free. A subtask claims a sample where
p_k > ½, that is m_k > 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from beartype import beartype
from jaxtyping import Bool, Float, jaxtyped
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.probes.conflict.formulas import upper
from kdx_analysis.probes.contract import Frames, Moment, Probe, probe_of
from kdx_analysis.probes.subtasks import OVER_PAIRS, PAIR, pair_columns
from kdx_analysis.records import (
    DRAWS,
    EPOCH,
    IMAGES,
    SPLIT,
    UNDEFINED,
    kind,
    number,
    text,
    with_undefined,
)

kind(
    "output_conflict",
    "One share of images: those that two subtasks claim, of each pair or any, or that none claims.",
    keys=(EPOCH, SPLIT, text("metric", "double_claims, orphans or claimed_by_both"), *PAIR),
    values=(number("value", "share of images", low=0, high=1), UNDEFINED, DRAWS, IMAGES),
    null=True,
    home=__name__,
)


@jaxtyped(typechecker=beartype)
def claimed(margins: Float[Tensor, "*draws B K"]) -> Bool[Tensor, "*draws B K"]:
    """Which subtask claims which sample, 1[m_k > 0].

    >>> claimed(torch.tensor([[0.5, -2.0, 0.0]])).int()
    tensor([[1, 0, 0]], dtype=torch.int32)
    """
    return margins > 0


@jaxtyped(typechecker=beartype)
def double_claims(claims: Bool[Tensor, "*draws B K"]) -> Float[Tensor, "*draws"]:
    """Share of samples that two subtasks or more claim, in [0, 1].

    >>> claims = torch.tensor([[True, True], [True, False], [False, False], [False, False]])
    >>> double_claims(claims).item()
    0.25
    """
    # Shares are in float64, in which nulls are read.
    return (claims.sum(dim=-1) > 1).double().mean(dim=-1)


@jaxtyped(typechecker=beartype)
def orphans(claims: Bool[Tensor, "*draws B K"]) -> Float[Tensor, "*draws"]:
    """Share of samples that no subtask claims, in [0, 1].

    >>> claims = torch.tensor([[True, True], [True, False], [False, False], [False, False]])
    >>> orphans(claims).item()
    0.5
    """
    return (~claims.any(dim=-1)).double().mean(dim=-1)


@jaxtyped(typechecker=beartype)
def claimed_by_both(claims: Bool[Tensor, "*draws B K"]) -> Float[Tensor, "*draws K K"]:
    """Share of samples that both a and b claim, in [0, 1]; on the diagonal, that a claims.

    >>> claims = torch.tensor([[True, True], [True, False], [False, False], [False, False]])
    >>> claimed_by_both(claims)
    tensor([[0.5000, 0.2500],
            [0.2500, 0.2500]], dtype=torch.float64)
    """
    ones = claims.double()
    return ones.transpose(-1, -2) @ ones / claims.shape[-2]


@jaxtyped(typechecker=beartype)
def permuted_claims(
    claims: Bool[Tensor, "B K"], draws: int, generator: torch.Generator
) -> Bool[Tensor, "draws B K"]:
    """The null, ``draws`` times: every subtask claims as many samples as it does, but any.

    >>> claims = torch.tensor([[True, True], [True, False], [False, False]])
    >>> permuted_claims(claims, 4, torch.Generator().manual_seed(0)).sum(dim=1)
    tensor([[2, 1],
            [2, 1],
            [2, 1],
            [2, 1]])
    """
    order = torch.rand(draws, *claims.shape, generator=generator).argsort(dim=1)
    return claims.expand(draws, -1, -1).gather(1, order.to(claims.device))


def output_table(margins: Tensor, classes: Sequence[str], draws: int, seed: int) -> pd.DataFrame:
    """Double claims, orphans, and samples claimed by both subtasks of every pair.

    Args:
        margins: B×K.
        classes: the K subtasks' names.
        draws: of the null, which deals each subtask's claims to other samples.
        seed: of the null.

    Returns:
        metric, a, b, a_index, b_index, value, null_…, null_draws, n.
    """
    actual = claimed(margins.cpu())
    permuted = permuted_claims(actual, draws, torch.Generator().manual_seed(seed))
    every = torch.cat([actual[None], permuted])
    shares = {"double_claims": double_claims(every), "orphans": orphans(every)}
    whole = pd.DataFrame(
        [{"metric": name, **OVER_PAIRS, **null.with_value(share)} for name, share in shares.items()]
    )
    both = upper(claimed_by_both(every))
    columns = {"value": both[0].numpy(), **null.beside(both[1:])}
    pairs = pd.DataFrame({"metric": "claimed_by_both", **pair_columns(classes), **columns})
    return pd.concat([whole, pairs], ignore_index=True).assign(null_draws=draws, n=len(margins))


@probe_of(
    "claims",
    title="claims of subtasks",
    roles=("explainer", "tree"),
    afterwards=("teacher", "student"),
    kinds=("output_conflict",),
)
class ClaimProbe(Probe):
    """Which images do two subtasks claim, and which does none?"""

    def __call__(self, moment: Moment) -> Frames:
        """Shares of images beside their null."""
        config = self.setting.config
        table = output_table(
            moment.margins.float(), self.setting.data.classes, config.null_draws, config.seed
        )
        return {"output_conflict": with_undefined(table, ["value"])}
