"""Shares in per cent; other numbers are shown as :mod:`kdx_analysis.runs.tables.numbers` does."""

from __future__ import annotations

import re

from kdx_analysis.runs import Interval
from kdx_analysis.runs.tables.numbers import MISSING, decimals_for, estimate, listed, number

__all__ = [
    "MISSING",
    "decimals_for",
    "estimate",
    "latex",
    "listed",
    "number",
    "percent",
    "size_of_change",
    "tied",
]


def percent(interval: Interval | None) -> str:
    """A share and its interval in per cent, as ``93.9 [92.1, 95.8]``."""
    if interval is None:
        return MISSING
    mean = number(100 * interval.mean, 1)
    return (
        mean
        if interval.n < 2
        else f"{mean} [{number(100 * interval.low, 1)}, {number(100 * interval.high, 1)}]"
    )


def size_of_change(effect: Interval, decimals: int | None = None) -> str:
    """What something is raised or lowered by, without sign, its interval the right way round."""
    lowered = Interval(effect.n, -effect.mean, -effect.high, -effect.low)
    return estimate(effect if effect.mean > 0 else lowered, decimals)


def tied(text: str) -> str:
    """``text`` that no line breaks in ``95 %``, ``n = 3``, ``[0.1, 0.2]`` and ``t-interval``."""
    return _TIES.sub("\u00a0", text).replace("t-interval", "t\u2011interval")


_TIES = re.compile(r"(?<=\d) (?=%)|(?<=\bn) (?==)|(?<==) (?=\d)|(?<=\d,) (?=[−+]?[\d.]+\])")
_LATEX = str.maketrans(
    {
        "−": "$-$",
        "±": r"$\pm$",
        "–": "--",
        "%": r"\%",
        "_": r"\_",
        "&": r"\&",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
)


def latex(text: str) -> str:
    """``text`` as LaTeX source.

    >>> print(latex("hard_T: −0.25 at 95 %"))
    hard\\_T: $-$0.25 at 95 \\%
    """
    return text.translate(_LATEX)
