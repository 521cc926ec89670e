"""Figures of one probed run."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from kdx_analysis.plots import probed


@pytest.mark.parametrize(
    ("lows", "said"),
    [
        ([0.1, 0.2], "value; grey: 95 % of its null"),
        ([0.1, math.nan], "value; grey: 95 % of its null, where it has a range (from 39 draws)"),
        ([math.nan] * 2, "value; no null has a range (from 39 draws)"),
    ],
)
def test_a_null_without_a_range_is_left_out_and_said_to_have_none(
    lows: list[float], said: str
) -> None:
    data = pd.DataFrame(
        {
            "name": ["conflict rate", "severity"],
            "split": "train",
            "value": [0.3, 0.1],
            "null_low": lows,
        }
    )
    figure, (ax,) = probed.beside_nulls(data.assign(null_high=data["null_low"] + 0.5))
    bars = [path for lines in ax.collections for path in lines.get_paths()]
    assert len(bars) == sum(not math.isnan(low) for low in lows)
    assert ax.get_xlabel() == said
    plt.close(figure)
