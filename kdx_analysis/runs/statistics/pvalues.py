"""p-values over seeds: exact where arrangements can be enumerated, and none below six seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, inf

import numpy as np
from scipy import stats

from kdx_analysis.errors import KdxError

LEAST_SEEDS = 6
ENUMERATED = 2**14
DRAWS = 9_999
Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class PValue:
    """A two-sided p-value over ``n`` seeds (of two groups, the smaller one).

    ``exact``: it is a share of all ``arrangements`` of the data; otherwise these were drawn, and
    the observed one is counted among them, (1 + #)/(1 + R), so that p is never 0.
    """

    p: float
    n: int
    arrangements: int
    exact: bool


def check_seeds(n: int) -> None:
    """Raise KdxError below six seeds, where no p-value over seeds is given, of any test (method,
    §7).

    With n seeds a two-sided sign-flip test can't go below 2/2ⁿ: 0.25 at 3, 0.0625 at 5.
    """
    if n < LEAST_SEEDS:
        raise KdxError(
            f"no p-value over seeds is given below n = {LEAST_SEEDS}, of any test, and here n = "
            f"{n}; report the "
            "interval and every point, or train more seeds"
        )


def sign_flip_test(differences: Values, *, seed: int = 0) -> PValue:
    """Are paired differences symmetric about 0? Every one is as likely with either sign (Fisher's
    randomisation test).

    p is twice the smaller tail of the mean, at most 1, over all 2ⁿ signs for n ≤ 14, beyond that
    over 9,999 drawn. It assumes no normality. NaN are left out.

    Args:
        differences: n paired differences.
        seed: of the signs drawn where they are too many.

    Raises:
        KdxError: n < 6.
    """
    d = _defined(differences)
    check_seeds(len(d))
    return _permuted((d,), np.mean, "samples", 2 ** len(d), len(d), seed)


def permutation_test(a: Values, b: Values, *, seed: int = 0) -> PValue:
    """Do groups ``a`` and ``b`` of unpaired seeds have one distribution? All splits into these
    sizes are as likely.

    p is twice the smaller tail of the difference of means, at most 1, over all splits if there are
    no more than 16,384, beyond that over 9,999 drawn. For runs that share seeds,
    :func:`sign_flip_test` is the sharper one.

    Raises:
        KdxError: a group has n < 6.
    """
    x, y = _defined(a), _defined(b)
    n = min(len(x), len(y))
    check_seeds(n)
    return _permuted(
        (x, y), _mean_difference, "independent", comb(len(x) + len(y), len(x)), n, seed
    )


def paired_t_test(differences: Values) -> float:
    """Two-sided p of t = d̄√n/s with n − 1 degrees of freedom. It rests on differences being
    normal.

    NaN where all differences are the same but not 0, for which t is infinite; 1 where all are 0.
    NaN are left out.

    Raises:
        KdxError: n < 6.
    """
    d = _defined(differences)
    check_seeds(len(d))
    if np.ptp(d) <= 1e-9 * abs(d.mean()):
        return float("nan") if d.any() else 1.0
    return float(stats.ttest_1samp(d, 0).pvalue)


def holm(p: Values) -> np.ndarray:
    """Adjusted p-values of a family of m, max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎) (Holm, Scand.
    J. Stat. 1979).

    An adjusted value ≤ α rejects with a probability of any false rejection ≤ α, whatever the
    dependence. NaN stay NaN and don't count in m.
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full_like(values, np.nan)
    held = np.flatnonzero(~np.isnan(values))
    order = held[np.argsort(values[held])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, factors * values[order]))
    return adjusted


def _defined(values: Values) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    return x[~np.isnan(x)]


def _mean_difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    return x.mean(axis=axis) - y.mean(axis=axis)


def _permuted(
    data: tuple, statistic: object, kind: str, arrangements: int, n: int, seed: int
) -> PValue:
    exact = arrangements <= ENUMERATED
    found = stats.permutation_test(
        data,
        statistic,
        permutation_type=kind,
        vectorized=True,
        n_resamples=inf if exact else DRAWS,
        batch=2**12,
        rng=np.random.default_rng(seed),
    )
    return PValue(float(found.pvalue), n, arrangements if exact else DRAWS + 1, exact)
