"""What stands for the runs of one objective: every seed's point, their mean and interval, and the
null; with n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from kdx_analysis.drawing.style import GREY, n_equals, plain, wrapped
from kdx_analysis.runs import Interval, t_interval

NULL = (0, (2, 1))


def shifts(seeds: Sequence[int]) -> dict[int, float]:
    """Where each seed's points stand beside their objective's place, so that none covers another."""
    return dict(
        zip(seeds, np.linspace(-0.13, 0.13, len(seeds)) if len(seeds) > 1 else [0], strict=True)
    )


def estimate(
    ax: Axes,
    rows: pd.DataFrame,
    x: float,
    shift: Mapping[int, float],
    *,
    colour: str,
    marker: str,
    paler: bool = False,
) -> Interval:
    """The runs of one objective at ``x``: seeds, mean, null (dashed) and, unless ``paler``, the
    interval.

    ``rows`` has the columns seed, value and null, of which the values are all defined.
    """
    alpha = 0.4 if paler else 1
    at = x + rows["seed"].map(shift) * (0.5 if paler else 1)
    ax.plot(
        at,
        rows["value"],
        marker,
        color=colour,
        markersize=4,
        alpha=alpha,
        markeredgewidth=0,
        zorder=3,
    )
    interval = t_interval(rows["value"].to_numpy())
    if interval.n > 1:
        ax.hlines(
            interval.mean, x - 0.18, x + 0.18, color=colour, linewidth=1.8, alpha=alpha, zorder=4
        )
        if not paler:
            ax.vlines(x, interval.low, interval.high, color=colour, linewidth=0.9, zorder=2)
    if rows["null"].notna().any():
        ax.hlines(
            rows["null"].mean(),
            x - 0.18,
            x + 0.18,
            color=GREY,
            linewidth=1,
            linestyle=NULL,
            alpha=alpha,
        )
    return interval


def estimate_handles(*, several: bool) -> list[Line2D]:
    """What the legend says of :func:`estimate`; with one seed there is no mean or interval to tell."""
    null = Line2D(
        [],
        [],
        color=GREY,
        linewidth=1,
        linestyle=NULL,
        label="null" + ", mean over seeds" * several,
    )
    mean = Line2D(
        [], [], color=GREY, linewidth=1.8, label="mean over seeds; upright: 95 % t-interval"
    )
    one = Line2D([], [], linestyle="none", label="one seed: no interval")
    return [mean if several else one, null]


def name_places(ax: Axes, places: Mapping[str, float], *, shown: bool = True) -> None:
    """Name what stands at these places along x, as objectives do, slanting, or leave their ticks
    alone.
    """
    names = [plain(name) for name in places] if shown else []
    ax.set_xticks(
        [*places.values()],
        names or [""] * len(places),
        rotation=40,
        ha="right",
        rotation_mode="anchor",
    )
    ax.set_xlim(-0.5, max(places.values()) + 0.5)


def entitle(ax: Axes, title: str, counts: Iterable[int] | None = None, what: str = "seed") -> None:
    """The panel's title, with its n where ``counts`` are given, in as many lines as it takes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    wide = figure.get_figwidth() / ax.get_gridspec().ncols - 0.55  # type: ignore[union-attr]
    n = "" if counts is None else f" ({n_equals(counts, what)})"
    ax.set_title(wrapped(title + n, wide), loc="left")
