"""Numbers as a reader meets them: a real minus sign, digits that the interval can bear, a dash for what is missing."""

from __future__ import annotations

import math
import re

from kdx_analysis.runs import Interval

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
    """Decimals that show the interval's half width, or the mean where there is none, to two digits; at least 2."""
    half = (interval.high - interval.low) / 2
    size = half if half > 1e-9 * abs(interval.mean) else abs(interval.mean)
    return 3 if size == 0 else min(6, max(2, 1 - math.floor(math.log10(size))))


def estimate(interval: Interval | None, *, signed: bool = False) -> str:
    """Mean and interval, as ``+0.12 [+0.10, +0.14]``; the mean alone where one value has none."""
    if interval is None:
        return MISSING
    decimals = decimals_for(interval)
    mean = number(interval.mean, decimals, signed=signed)
    if interval.n < 2:
        return mean
    low, high = (number(end, decimals, signed=signed) for end in (interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def percent(interval: Interval | None) -> str:
    """A share and its interval in per cent, as ``93.9 [92.1, 95.8]``."""
    if interval is None:
        return MISSING
    mean = number(100 * interval.mean, 1)
    return mean if interval.n < 2 else f"{mean} [{number(100 * interval.low, 1)}, {number(100 * interval.high, 1)}]"


def listed(items: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def tied(text: str) -> str:
    """``text`` that no line breaks in ``95 %``, ``n = 3``, ``[0.1, 0.2]`` and ``t-interval``."""
    return _TIES.sub("\u00a0", text).replace("t-interval", "t\u2011interval")


_TIES = re.compile(r"(?<=\d) (?=%)|(?<=\bn) (?==)|(?<==) (?=\d)|(?<=\d,) (?=[−+]?[\d.]+\])")
_LATEX = str.maketrans({
    "−": "$-$", "±": r"$\pm$", "–": "--", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
})  # fmt: skip


def latex(text: str) -> str:
    """``text`` as LaTeX source.

    >>> print(latex("hard_T: −0.25 at 95 %"))
    hard\\_T: $-$0.25 at 95 \\%
    """
    return text.translate(_LATEX)
