"""Do two figures of runs go together?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from kdx_analysis.null import beside_one

# Of three runs the six orders of their ranks give ρ four values alone, so that none is rare.
FEWEST_RUNS = 4
_DRAWS = 999


def rank_correlation(x: ArrayLike, y: ArrayLike, draws: int = _DRAWS) -> dict[str, float]:
    """Spearman's ρ of two figures of the same runs, beside a null in which one is dealt anew.

    ρ is the Pearson correlation of ranks, ties at their mean rank: in [−1, 1], 0 without any
    likeness. (Spearman 1904, The proof and measurement of association between two things.)

    >>> likeness = rank_correlation([1, 2, 3, 4], [10, 20, 40, 30])
    >>> round(likeness["rho"], 6), round(likeness["null_low"], 6), likeness["runs"]
    (0.8, -1.0, 4)
    >>> rank_correlation([1, 2, 3, 4], [5, 5, 5, 5])["rho"]
    nan

    Args:
        x, y: one value a run.
        draws: how often ``y`` is dealt anew to the runs.

    Returns:
        rho, null_low and null_high (which hold a fresh draw with 95 %), draws, and runs, how many
        there are. Below four runs, or where one side is flat, rho and its null are NaN and there
        are no draws.
    """
    a, b = rankdata(x), rankdata(y)
    runs = len(a)
    if runs < FEWEST_RUNS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {"rho": np.nan, "null_low": np.nan, "null_high": np.nan, "draws": 0, "runs": runs}
    # a seed of its own, so that the same runs have the same null
    dealt = np.random.default_rng(0).permuted(np.tile(b, (draws, 1)), axis=1)
    null = beside_one((dealt - dealt.mean()) @ (a - a.mean()) / (runs * a.std() * b.std()))
    ends = {end: null[end] for end in ("null_low", "null_high")}
    return {"rho": float(np.corrcoef(a, b)[0, 1]), **ends, "draws": draws, "runs": runs}
