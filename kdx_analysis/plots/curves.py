"""What figures of values through training share."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from kdx_analysis.drawing.style import counted
from kdx_analysis.plots.looks import look


def line(ax: Axes, objective: str, epochs: pd.Series, values: pd.Series) -> None:
    """One run's values through its epochs, in its objective's look, with some six markers."""
    drawn = look(objective)
    ax.plot(
        epochs,
        values,
        color=drawn.colour,
        linestyle=drawn.line,
        marker=drawn.marker,
        markersize=3.5,
        markevery=max(1, len(epochs) // 6),
        linewidth=1,
        zorder=2,
    )


def log_scale(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers, also where it spans less than a decade."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def seeds_per_objective(data: pd.DataFrame) -> str:
    """How many seeds, each drawn as its own line."""
    seeds = data.groupby("objective")["seed"].nunique()
    return f"n = {counted(seeds)} per objective, one line each"
