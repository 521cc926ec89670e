import math

import pytest

from kdx_analysis.runs import Interval
from kdx_analysis.runs.tables.numbers import (
    decimals_for,
    estimate,
    latex_escaped,
    listed,
    number,
    percent,
    tied,
)

ONE = Interval(1, 0.25, math.nan, math.nan)


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.1234, False, "0.12"),
        (-0.1234, False, "−0.12"),
        (0.1234, True, "+0.12"),
        (-0.0001, True, "0.00"),
        (0.0, True, "0.00"),
        (math.nan, False, "–"),
        (None, False, "–"),
    ],
)
def test_number(value, signed, text):
    assert number(value, 2, signed=signed) == text


def test_an_interval_decides_the_digits():
    assert estimate(Interval(3, 0.12345, 0.11, 0.13), signed=True) == "+0.123 [+0.110, +0.130]"
    assert estimate(Interval(3, 0.12345, -0.8, 1.0)) == "0.12 [−0.80, 1.00]"
    assert decimals_for(Interval(3, 0.5, 0.5, 0.5 + 1e-12)) == 2


def test_one_value_has_no_interval():
    assert estimate(ONE) == "0.25"
    assert percent(ONE) == "25.0"
    assert percent(Interval(2, 0.5, 0.25, 0.75)) == "50.0 [25.0, 75.0]"
    assert estimate(None) == percent(None) == "–"


def test_listed():
    assert [listed(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_no_line_breaks_inside_an_estimate():
    assert tied("by 0.1 [−0.2, +0.3] (95 % t-interval, n = 3 seeds)") == (
        "by 0.1 [−0.2,\u00a0+0.3] (95\u00a0% t\u2011interval, n\u00a0=\u00a03 seeds)"
    )


def test_latex():
    assert latex_escaped(r"a_b & 5 %: −1 ± 2 – $x{y}^z~\#") == (
        r"a\_b \& 5 \%: $-$1 $\pm$ 2 -- \$x\{y\}\textasciicircum{}z\textasciitilde{}\textbackslash{}\#"
    )
