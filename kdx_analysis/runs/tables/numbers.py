"""Numbers as a reader meets them: a real minus sign, digits that the interval can bear, a dash for
what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdx_analysis.runs.statistics.intervals import Interval

MISSING = "–"


def number(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """``value`` with that many decimals; a dash for None and NaN.

    >>> number(-0.25, 2), number(0.25, 2, signed=True), number(float("nan"))
    ('−0.25', '+0.25', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    text = f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")
    return text.replace("+", "").replace("−", "") if float(f"{value:.{decimals}f}") == 0 else text


def decimals_for(interval: Interval) -> int:
    """Decimals that show the interval's half width, or the mean where there is none, to two digits;
    at least 2.
    """
    half = (interval.high - interval.low) / 2
    size = half if half > 1e-9 * abs(interval.mean) else abs(interval.mean)
    return 3 if size == 0 else min(6, max(2, 1 - math.floor(math.log10(size))))


def estimate(
    interval: Interval | None, decimals: int | None = None, *, signed: bool = False
) -> str:
    """Mean and interval, as ``+0.12 [+0.10, +0.14]``; the mean alone where one value has none.

    ``decimals`` are by default those that the interval can bear.
    """
    if interval is None:
        return MISSING
    decimals = decimals_for(interval) if decimals is None else decimals
    mean = number(interval.mean, decimals, signed=signed)
    if interval.n < 2:
        return mean
    low, high = (number(end, decimals, signed=signed) for end in (interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)
