"""Paired statistics over seeds, as pure functions: n, interval, every raw point (method, §7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import stats

from kdx_analysis.errors import KdxError

# Sums of some thousand float64 terms in another order differ by less than this share of their size.
_ROUNDING = 1e-12
# An interval narrower than this share of its mean is rounding: the value is the same in every seed.
_POINT = 1e-9


@dataclass(frozen=True)
class Coverage:
    """What a mean over epochs rests on, and what could not go into it.

    Attributes:
        epochs: for every seed, the number of epochs that its value or difference is a mean over.
        probed: for every seed, the number of epochs at which it was probed.
        seeds_left_out: seeds that have no epoch at which both sides are defined.
        pairs_left_out, pairs: values of pairs of subtasks, over these seeds and epochs, that are
            undefined on one side or both, and how many there are; 0 where pairs are not kept apart.
    """

    epochs: tuple[int, ...] = ()
    probed: tuple[int, ...] = ()
    seeds_left_out: int = 0
    pairs_left_out: int = 0
    pairs: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing was left out."""
        return self.epochs == self.probed and not self.seeds_left_out and not self.pairs_left_out

    def __str__(self) -> str:
        """As ``3 of 4 epochs``; '' for what is measured once.

        >>> print(Coverage((3, 4, 4), (4, 4, 4), pairs_left_out=2, pairs=66))
        3 to 4 of 4 epochs, 2 of 66 values of pairs left out
        """
        parts = []
        if max(self.probed, default=1) > 1:
            counts, probed = (_span(each) for each in (self.epochs, self.probed))
            parts.append(
                f"{probed} epochs" if self.epochs == self.probed else f"{counts} of {probed} epochs"
            )
            if self.seeds_left_out:
                total = len(self.probed) + self.seeds_left_out
                parts.append(f"{self.seeds_left_out} of {total} seeds left out")
        if self.pairs_left_out:
            parts.append(f"{self.pairs_left_out} of {self.pairs} values of pairs left out")
        return ", ".join(parts)


def _span(counts: Sequence[int]) -> str:
    """``4``, or ``3 to 4`` where they differ; ``no`` for none."""
    return " to ".join(map(str, dict.fromkeys((min(counts), max(counts))))) if counts else "no"


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds with its t-interval; ``low`` and ``high`` are NaN for n = 1."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def is_point(self) -> bool:
        """Whether its width is zero, but for rounding: the same value in every seed."""
        return self.high - self.low <= _POINT * abs(self.mean)

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is left out; an interval of width zero leaves nothing out."""
        return self.high - self.low > _POINT * abs(self.mean) and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Paired(Interval):
    """Mean difference of pairs.

    Attributes:
        differences: one a pair.
        correlation: of the two sides; NaN below n = 3 or without variance.
        levels: the means of the two sides, over the same pairs and the same epochs as the
            difference.
        coverage: what went into the difference of each pair.
    """

    differences: tuple[float, ...]
    correlation: float
    levels: tuple[float, float] = (float("nan"), float("nan"))
    coverage: Coverage = Coverage()

    def at(self, confidence: float) -> Paired:
        """The same differences with their t-interval at another ``confidence``."""
        interval = t_interval(self.differences, confidence)
        return replace(self, low=interval.low, high=interval.high)


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean ± t_{n−1} s/√n. Values that are NaN are left out; raises KdxError if none is left.

    It covers at its confidence from n = 2 on where values are normal; for several comparisons at
    once see :func:`bonferroni`.

    >>> interval = t_interval([0.5, 0.6, 0.7])
    >>> interval.n, round(interval.low, 3), round(interval.high, 3)
    (3, 0.352, 0.848)
    """
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        raise KdxError("no value to average; all are missing")
    if len(x) == 1:
        return Interval(1, float(x[0]), float("nan"), float("nan"))
    half = t_quantile(confidence, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(len(x), float(x.mean()), float(x.mean() - half), float(x.mean() + half))


@lru_cache(maxsize=1024)
def t_quantile(confidence: float, degrees: int) -> float:
    """t of a two-sided interval with so many degrees of freedom.

    Kept, because SciPy takes longer to find it than all else of an interval.

    >>> round(t_quantile(0.95, 2), 3)
    4.303
    """
    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Paired:
    """t-interval at ``confidence`` of a − b over pairs, which stand in the same order.

    Pairs with a NaN are left out.

    >>> difference = paired_difference([0.5, 0.6, 0.7], [0.4, 0.45, 0.5])
    >>> round(difference.mean, 3), round(difference.low, 3), round(difference.high, 3)
    (0.15, 0.026, 0.274)

    Raises KdxError where the two are not equally many, or no pair is left.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise KdxError(f"{len(x)} values can't be paired with {len(y)}")
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    # Equal values that were summed in another order differ by rounding, which decides nothing.
    difference = np.where(np.abs(x - y) <= _ROUNDING * np.maximum(np.abs(x), np.abs(y)), 0, x - y)
    interval = t_interval(difference, confidence)
    varied = len(x) > 2 and x.std() > 0 and y.std() > 0
    correlation = float(np.corrcoef(x, y)[0, 1]) if varied else float("nan")
    levels = float(x.mean()), float(y.mean())
    differences = tuple(difference.tolist())
    return Paired(
        interval.n, interval.mean, interval.low, interval.high, differences, correlation, levels
    )


def bonferroni(comparisons: int, confidence: float = 0.95) -> float:
    """Confidence 1 − (1 − c)/m of each of m intervals that hold together at confidence c.

    m is ``comparisons``, c is ``confidence`` (Dunn, JASA 1961).

    >>> bonferroni(5)
    0.99
    """
    return 1 - (1 - confidence) / max(1, comparisons)


def joint_confidence(differences: Iterable[Interval | None], confidence: float = 0.95) -> float:
    """:func:`bonferroni` over those ``differences`` that have an interval, from two seeds on.

    >>> two, one = Interval(2, 0.1, 0.0, 0.2), Interval(1, 0.1, float("nan"), float("nan"))
    >>> round(joint_confidence([two, two, one, None]), 3)
    0.975
    """
    return bonferroni(sum(each is not None and each.n > 1 for each in differences), confidence)
