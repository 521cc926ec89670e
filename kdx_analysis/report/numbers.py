"""Shares in per cent; other numbers are shown as :mod:`kdx_analysis.runs.numbers` does."""

from __future__ import annotations

from kdx_analysis.runs import Interval
from kdx_analysis.runs.numbers import MISSING, decimals_for, estimate, listed, number

__all__ = ["MISSING", "decimals_for", "estimate", "listed", "number", "percent"]


def percent(interval: Interval | None) -> str:
    """A share and its interval in per cent, as ``93.9 [92.1, 95.8]``."""
    if interval is None:
        return MISSING
    mean = number(100 * interval.mean, 1)
    return mean if interval.n < 2 else f"{mean} [{number(100 * interval.low, 1)}, {number(100 * interval.high, 1)}]"
