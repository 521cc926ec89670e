"""Paired statistics over seeds, as pure functions (method of section 7: n, interval, every raw point)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kdx_analysis.errors import KdxError


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds with its Student-t interval; ``low`` and ``high`` are NaN for n = 1."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is left out. An interval of width zero, the same value in every seed, leaves nothing out."""
        return self.high - self.low > 1e-9 * abs(self.mean) and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Paired(Interval):
    """Mean difference of pairs; ``correlation`` of the two sides (NaN below n = 3 or without variance)."""

    differences: tuple[float, ...]
    correlation: float


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean ± t_{n−1} s/√n. Values that are NaN are left out; raises KdxError if none is left.

    It covers at its confidence from n = 2 on where values are normal; for several comparisons at once see
    :func:`bonferroni`.
    """
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        raise KdxError("no value to average; all are missing")
    if len(x) == 1:
        return Interval(1, float(x[0]), float("nan"), float("nan"))
    half = stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(len(x), float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Paired:
    """t-interval at ``confidence`` of a − b over pairs, which stand in the same order; pairs with a NaN are left out.

    Raises KdxError where the two are not equally many, or no pair is left.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise KdxError(f"{len(x)} values can't be paired with {len(y)}")
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    interval = t_interval(x - y, confidence)
    varied = len(x) > 2 and x.std() > 0 and y.std() > 0
    correlation = float(np.corrcoef(x, y)[0, 1]) if varied else float("nan")
    return Paired(interval.n, interval.mean, interval.low, interval.high, tuple((x - y).tolist()), correlation)


def bonferroni(comparisons: int, confidence: float = 0.95) -> float:
    """Confidence 1 − (1 − c)/m of each of m intervals that shall hold together at confidence c (Dunn, JASA 1961).

    m is ``comparisons``, c is ``confidence``.

    >>> bonferroni(5)
    0.99
    """
    return 1 - (1 - confidence) / max(1, comparisons)
