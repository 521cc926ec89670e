"""Numbers as a reader meets them, in text and as LaTeX.

They have a real minus sign, the digits that the interval can bear, and a dash for what is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from kdx_analysis.intervals import Interval

MISSING = "–"

# Half an interval this narrow, as a share of the mean, is rounding: the values are all the same.
_SAME = 1e-9
# More decimals than these don't fit a cell; fewer than these hide what two seeds differ by.
_MOST, _LEAST, _OF_ZERO = 6, 2, 3
_TIES = re.compile(r"(?<=\d) (?=%)|(?<=\bn) (?==)|(?<==) (?=\d)|(?<=\d,) (?=[−+]?[\d.]+\])")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",
        "*": "{*}",
        "−": "$-$",
        "–": "--",
        "±": r"$\pm$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "×": r"$\times$",
        "τ": r"$\tau$",
        "λ": r"$\lambda$",
        "ε": r"$\varepsilon$",
    }
)


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
    """Decimals that show half the interval's width to two digits, or the mean's where it has none.

    >>> decimals_for(Interval(3, 0.123, 0.112, 0.134)), decimals_for(Interval(3, 0.1, -0.8, 1.0))
    (3, 2)
    """
    half = (interval.high - interval.low) / 2
    size = half if half > _SAME * abs(interval.mean) else abs(interval.mean)
    return _OF_ZERO if size == 0 else min(_MOST, max(_LEAST, 1 - math.floor(math.log10(size))))


def estimate(
    interval: Interval | None, decimals: int | None = None, *, signed: bool = False
) -> str:
    """Mean and interval, as ``+0.12 [+0.10, +0.14]``; the mean alone where one value has none.

    ``decimals`` are by default those that the interval can bear.

    >>> estimate(Interval(3, 0.123, 0.112, 0.134), signed=True)
    '+0.123 [+0.112, +0.134]'
    """
    if interval is None:
        return MISSING
    decimals = decimals_for(interval) if decimals is None else decimals
    mean = number(interval.mean, decimals, signed=signed)
    if interval.n < 2:
        return mean
    low, high = (number(end, decimals, signed=signed) for end in (interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def percent(interval: Interval | None) -> str:
    """A share and its interval in per cent.

    >>> percent(Interval(3, 0.939, 0.921, 0.958))
    '93.9 [92.1, 95.8]'
    """
    if interval is None:
        return MISSING
    mean, low, high = (
        number(100 * value, 1) for value in (interval.mean, interval.low, interval.high)
    )
    return mean if interval.n < 2 else f"{mean} [{low}, {high}]"


def size_of_change(effect: Interval, decimals: int | None = None) -> str:
    """What something is raised or lowered by, without sign, its interval the right way round.

    >>> size_of_change(Interval(3, -0.12, -0.14, -0.10))
    '0.120 [0.100, 0.140]'
    """
    lowered = Interval(effect.n, -effect.mean, -effect.high, -effect.low)
    return estimate(effect if effect.mean > 0 else lowered, decimals)


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def tied(text: str) -> str:
    """``text`` that no line breaks in ``95 %``, ``n = 3``, ``[0.1, 0.2]`` and ``t-interval``."""
    return _TIES.sub("\u00a0", text).replace("t-interval", "t\u2011interval")


def latex_escaped(text: str) -> str:
    """``text`` on one line as LaTeX source that pdfTeX takes.

    Letters beyond Latin, but for those of the method's formulas, need XeTeX or LuaTeX.

    >>> print(latex_escaped("hard_T: −0.25 at 95 %"))
    hard\\_T: $-$0.25 at 95 \\%
    """
    return " ".join(text.replace('"', "''").split()).translate(_LATEX)


def markdown_escaped(text: str) -> str:
    """``text`` on one line as Markdown in which nothing is markup."""
    return re.sub(r"([\\`*_\[\]<>|~#$])", r"\\\1", " ".join(text.split()))
