"""Several values of one key against a reference, over the seeds that both have."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.runs.significance import LEAST_SEEDS, holm, paired_t_test
from kdx_analysis.runs.statistics import Paired, bonferroni, paired_difference


@dataclass(frozen=True)
class Effect:
    """The paired difference a − b of one metric, one of several comparisons with b.

    Attributes:
        difference: over seeds, its interval at ``confidence``.
        confidence: 1 − 0.05/m for m comparisons.
        p: of the paired t-test, adjusted by Holm over the comparisons that have one; it rests on normality. NaN below
            six seeds and where every seed has the same difference.
    """

    a: Hashable
    b: Hashable
    difference: Paired
    confidence: float
    p: float


def by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """One row per seed: the mean over its objectives, of the pairs that have every column.

    Only seeds that have all objectives that occur are kept, so that all means are over the same ones.

    Raises:
        KdxError: no seed has all of them.
    """
    complete = table.dropna()
    if complete.index.nlevels > 1 and len(complete):
        objectives = complete.index.get_level_values("objective").unique()
        held = complete.groupby("seed").size()
        whole = held.index[held == len(objectives)]
        if whole.empty:
            raise KdxError(f"no seed has all of {', '.join(map(str, objectives))}; filter the runs by objective")
        complete = complete[complete.index.isin(whole, level="seed")]
    return complete.groupby("seed").mean()


def effects(table: pd.DataFrame, against: Hashable, confidence: float = 0.95) -> tuple[Effect, ...]:
    """Every other column of ``table`` minus ``against``, with Bonferroni's intervals and Holm's p-values.

    Columns that share no seed with ``against`` are left out, and not counted among the comparisons. Seeds count as in
    :func:`by_seed`.

    Args:
        table: of :meth:`RunSet.values`, a metric of pairs (rows, keyed by seed) by values (columns).
        against: the column that the others are compared with.
        confidence: of all intervals together.
    """
    pairs = {a: by_seed(table[[a, against]]) for a in table.columns if a != against}
    pairs = {a: both for a, both in pairs.items() if len(both)}
    each = bonferroni(len(pairs), confidence)
    found = [paired_difference(both[a].to_numpy(), both[against].to_numpy(), each) for a, both in pairs.items()]
    p = holm([paired_t_test(d.differences) if d.n >= LEAST_SEEDS else np.nan for d in found])
    return tuple(
        Effect(a, against, difference, each, float(p_holm))
        for a, difference, p_holm in zip(pairs, found, p, strict=True)
    )
