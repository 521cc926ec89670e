"""Several values of one key against a reference, over the seeds that both have."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.intervals import Coverage, Paired, bonferroni, paired_difference
from kdx_analysis.pairing import shared
from kdx_analysis.runs.statistics.pvalues import LEAST_SEEDS, holm, paired_t_test

Reduction = Literal["mean", "median"]


@dataclass(frozen=True)
class Effect:
    """The paired difference a − b of one metric, one of several comparisons with b.

    Attributes:
        difference: over seeds, its interval at ``confidence``.
        confidence: 1 − 0.05/m for m comparisons.
        p: of the paired t-test, adjusted by Holm over the comparisons that have one; it rests on
            normality. NaN below six seeds and where every seed has the same difference.
    """

    a: Hashable
    b: Hashable
    difference: Paired
    confidence: float
    p: float


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with NaN at epochs that not all columns of a seed and objective have.

    It is one of :meth:`RunSet.by_epoch`; see :func:`kdx_analysis.pairing.shared`.
    """
    return shared(table, [name for name in table.index.names if name in ("objective", "seed")])


def over_epochs(table: pd.DataFrame, over_pairs: Reduction = "mean") -> pd.DataFrame:
    """Means over epochs of what pairs of subtasks make in each; NaN are left out."""
    for level, reduction in (("pair", over_pairs), ("epoch", "mean")):
        names = list(table.index.names)
        if level in names:
            table = table.groupby([name for name in names if name != level], sort=False).agg(
                reduction
            )
    return table


def by_seed(table: pd.DataFrame, over_pairs: Reduction = "mean") -> pd.DataFrame:
    """One row per seed, from the rows in which every column is defined.

    Pairs of subtasks are reduced within an epoch, epochs are averaged within an objective,
    objectives within a seed, so that all columns of a seed are over the same of each. Only seeds
    that have all objectives that occur are kept.

    Args:
        table: of :meth:`RunSet.values` or :meth:`RunSet.by_epoch`: rows keyed by seed and, where
            there are several, by objective, epoch and pair.
        over_pairs: how pairs of subtasks make a figure, ``mean`` or ``median``.

    Raises:
        KdxError: no seed has all objectives.
    """
    complete = over_epochs(table.dropna(), over_pairs)
    if "objective" not in complete.index.names or complete.empty:
        return complete
    objectives = complete.index.get_level_values("objective").unique()
    counts = complete.groupby("seed").size()
    whole = counts.index[counts == len(objectives)]
    if whole.empty:
        raise KdxError(
            f"no seed has all of {', '.join(map(str, objectives))}; filter the runs by objective"
        )
    return complete[complete.index.isin(whole, level="seed")].groupby("seed").mean()


def coverage(
    table: pd.DataFrame, columns: Sequence[Hashable], taken: pd.DataFrame | None = None
) -> Coverage:
    """How many of the epochs, seeds and pairs of subtasks in ``table`` have all of ``columns``.

    Rows as for :func:`by_seed`, of which those went into the figure that ``taken``, by default the
    table, has; seeds in which none of the columns has a value are not counted.
    """
    names = list(table.index.names)
    if "epoch" not in names:
        return Coverage()
    defined = table[list(columns)].notna()
    whole = (table if taken is None else taken)[list(columns)].notna().all(axis=1)
    by_epoch = [name for name in names if name != "pair"]
    by_run = [name for name in by_epoch if name != "epoch"]
    epochs = whole.groupby(by_epoch, sort=False).any().groupby(by_run, sort=False)
    counts, probed = epochs.sum(), epochs.size()
    there = defined.any(axis=1).groupby(by_run, sort=False).any()
    compared = there & (counts > 0)
    left_out = total = 0
    if "pair" in names:
        at_compared = whole.groupby(by_epoch, sort=False).transform("any")
        left_out, total = int((at_compared & ~whole).sum()), int(at_compared.sum())
    return Coverage(
        tuple(counts[compared].astype(int)),
        tuple(probed[compared]),
        _seeds_left_out(there, compared),
        left_out,
        total,
    )


def _seeds_left_out(there: pd.Series, compared: pd.Series) -> int:
    """Seeds that have a value, but not one of every objective that can be compared at all."""
    if "objective" not in there.index.names:
        return int((there & ~compared).sum())
    objectives = compared[compared].index.get_level_values("objective").nunique()
    kept = compared.groupby("seed").sum() == objectives
    return int((there.groupby("seed").any() & ~kept).sum())


def paired(
    table: pd.DataFrame,
    a: Hashable,
    b: Hashable,
    confidence: float = 0.95,
    over_pairs: Reduction = "mean",
) -> Paired | None:
    """Difference a − b of two columns over seeds, each seed's over what both have.

    None where no seed has both.

    Args:
        table, over_pairs: as for :func:`by_seed`.
        confidence: of the t-interval.

    >>> rows = pd.MultiIndex.from_product([[0, 1], [1, 9]], names=["seed", "epoch"])
    >>> values = {"kd": [0.1, 0.5, 0.2, 0.6], "hard": [np.nan, 0.4, np.nan, 0.4]}
    >>> table = pd.DataFrame(values, index=rows)
    >>> difference = paired(table, "kd", "hard")
    >>> round(difference.mean, 3), str(difference.coverage)
    (0.15, '1 of 2 epochs')
    """
    if not {a, b} <= set(table.columns):
        return None
    both = table if table.index.nlevels == 1 else by_seed(table[[a, b]], over_pairs)
    values = both.to_numpy()  # columns of a frame one by one take longer than all else
    x, y = (values[:, both.columns.get_loc(side)] for side in (a, b))
    if np.isnan(x - y).all():
        return None
    return replace(paired_difference(x, y, confidence), coverage=coverage(table, [a, b]))


def comparisons(table: pd.DataFrame, against: Hashable, over_pairs: Reduction = "mean") -> int:
    """The number of columns of ``table`` that share a seed with ``against``."""
    return len(_differences(table, against, over_pairs))


def effects(
    table: pd.DataFrame,
    against: Hashable,
    confidence: float = 0.95,
    *,
    family: int | None = None,
    over_pairs: Reduction = "mean",
) -> tuple[Effect, ...]:
    """Every other column of ``table`` minus ``against``, Bonferroni's intervals and Holm's p.

    Columns that share no seed with ``against`` are left out, and not counted among the comparisons.
    Seeds count as in :func:`by_seed`.

    Args:
        table, over_pairs: as for :func:`by_seed`; columns are the values compared.
        against: the column that the others are compared with.
        confidence: of all intervals together.
        family: the number of comparisons that are shown together; by default those of this table.
    """
    differences = _differences(table, against, over_pairs)
    each = bonferroni(len(differences) if family is None else family, confidence)
    return _effects(differences, against, each)


def effects_together(
    tables: Mapping[str, pd.DataFrame],
    against: Hashable,
    confidence: float = 0.95,
    over_pairs: Mapping[str, Reduction] | None = None,
) -> dict[str, tuple[Effect, ...]]:
    """:func:`effects` of several metrics, whose intervals hold together over all of them.

    Holm's p-values are over all of them too.

    Args:
        tables: metric → its table; one without the column ``against`` has no effects.
        against, confidence: as for :func:`effects`.
        over_pairs: metric → how its pairs of subtasks are reduced; by default their mean.
    """
    reductions = over_pairs or {}
    differences = {
        name: _differences(table, against, reductions.get(name, "mean"))
        for name, table in tables.items()
    }
    pooled = [difference for several in differences.values() for difference in several]
    following = iter(_effects(pooled, against, bonferroni(len(pooled), confidence)))
    return {name: tuple(islice(following, len(several))) for name, several in differences.items()}


def _differences(
    table: pd.DataFrame, against: Hashable, over_pairs: Reduction
) -> list[tuple[Hashable, Paired]]:
    """Every column that shares a seed with ``against``, less that."""
    pairs = (
        (a, paired(table, a, against, over_pairs=over_pairs)) for a in table.columns if a != against
    )
    return [(a, difference) for a, difference in pairs if difference is not None]


def _effects(
    differences: Sequence[tuple[Hashable, Paired]], against: Hashable, confidence: float
) -> tuple[Effect, ...]:
    """With intervals at ``confidence`` and Holm's p-values over all of them."""
    tested = [
        paired_t_test(d.differences) if d.n >= LEAST_SEEDS else np.nan for _, d in differences
    ]
    return tuple(
        Effect(a, against, difference.at(confidence), confidence, float(p))
        for (a, difference), p in zip(differences, holm(tested), strict=True)
    )
