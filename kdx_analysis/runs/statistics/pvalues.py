"""p-values over seeds, and none below six seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from kdx_analysis.errors import KdxError

LEAST_SEEDS = 6
Values = Sequence[float] | np.ndarray

# Differences that are this near each other, as a share of their size, are the same number summed in
# another order; a t of them would be rounding.
_SAME = 1e-9


def check_seeds(n: int) -> None:
    """Raise KdxError below six seeds, where no p-value over seeds is given, of any test.

    With n seeds a two-sided sign-flip test can't go below 2/2ⁿ: 0.25 at 3, 0.0625 at 5 (method,
    §7).
    """
    if n < LEAST_SEEDS:
        raise KdxError(
            f"no p-value over seeds is given below n = {LEAST_SEEDS}, of any test, and here n = "
            f"{n}; report the interval and every point, or train more seeds"
        )


def paired_t_test(differences: Values) -> float:
    """Two-sided p of t = d̄√n/s with n − 1 degrees of freedom, in [0, 1].

    It rests on differences being normal. NaN where all differences are the same but not 0, for
    which t is infinite; 1 where all are 0. NaN are left out.

    >>> round(paired_t_test([0.02, 0.05, -0.01, 0.04, 0.03, 0.015]), 3)
    0.038

    Raises:
        KdxError: n < 6.
    """
    d = np.asarray(differences, dtype=float)
    d = d[~np.isnan(d)]
    check_seeds(len(d))
    if np.ptp(d) <= _SAME * abs(d.mean()):
        return float("nan") if d.any() else 1.0
    return float(stats.ttest_1samp(d, 0).pvalue)


def holm(p: Values) -> np.ndarray:
    """Adjusted p-values of a family of m, max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎).

    An adjusted value ≤ α rejects with a probability of any false rejection ≤ α, whatever the
    dependence (Holm, Scand. J. Stat. 1979). NaN stay NaN and don't count in m.

    >>> holm([0.02, 0.2, 0.01, float("nan")]).round(6).tolist()
    [0.04, 0.2, 0.03, nan]
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full_like(values, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, factors * values[order]))
    return adjusted
