"""What figures of experts share: each run's experts by rank, and their level as a whole.

Experts have no identity across seeds, so each run's are ranked by what is drawn; a rank may be
compared over runs.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdx_analysis.drawing.marks import NULL, entitle, estimate_handles, name_places, shifts
from kdx_analysis.drawing.style import GREY, Width, drawing, in_order, legend
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.comparisons import INTERVAL, seeds_at
from kdx_analysis.plots.figure import Drawn
from kdx_analysis.plots.looks import handle, look

RUN = ["run", "objective", "seed", "level"]


def ranked(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """``frame`` of levels with several experts, with their rank by a column in every run and level.

    The largest has rank 1.

    Experts of which the column is NaN have no rank and are left out. Raises KdxError where none is
    left.
    """
    frame = frame[frame.groupby(RUN)["expert"].transform("nunique") > 1]
    if frame.empty:
        raise KdxError("no level has several experts; give the explainers more experts")
    frame = frame.dropna(subset=by)
    if frame.empty:
        raise KdxError(
            "what experts are ranked by is defined of none of them; look at the runs' gradients"
        )
    rank = frame.groupby(RUN)[by].rank(ascending=False, method="first")
    return frame.assign(rank=rank.astype(int)).sort_values("rank", kind="stable")


def draw_ranked(
    data: pd.DataFrame, width: Width, *, each: str, each_null: str, whole: str, whole_title: str
) -> Drawn:
    """A row a level: on the left each run's experts by rank, on the right its level as a whole.

    Args:
        data: objective, seed, level, rank, value and null of an expert, whole and whole_null of its
            level.
        width: of the figure.
        each, each_null: what an expert's value is, and its null.
        whole, whole_title: what the level's value is, on the axis and in the title.
    """
    objectives = in_order(data["objective"])
    levels = sorted(data["level"].unique(), reverse=True)
    places = {o: float(i) for i, o in enumerate(objectives)}
    shift = shifts(sorted(data["seed"].unique()))
    canvas = drawing(width, 1.4 + 1.6 * len(levels))
    axes = canvas.subplots(len(levels), 2, squeeze=False, sharex="col")
    for (left, right), level in zip(axes, levels, strict=True):
        of_level = data[data["level"] == level]
        _by_rank(left, of_level)
        left.set_ylabel(each)
        seeds = of_level.groupby("objective")["seed"].nunique()
        entitle(left, f"level {level}, experts of each run", seeds)
        runs = of_level[["objective", "seed", "whole", "whole_null"]].drop_duplicates()
        runs = runs.rename(columns={"whole": "value", "whole_null": "null"}).dropna(subset="value")
        counts = [
            seeds_at(right, rows, places[str(o)], shift)
            for o, rows in runs.groupby("objective", sort=False)
        ]
        right.set_ylabel(whole)
        entitle(right, f"level {level}, {whole_title}", counts)
        right.yaxis.set_major_locator(MaxNLocator(4))
        name_places(right, places, shown=level == levels[-1])
    axes[-1, 0].set_xlabel("rank of the expert in its run")
    null = Line2D([], [], color=GREY, linewidth=0.7, linestyle=NULL, label=f"left: {each_null}")
    marks = estimate_handles(INTERVAL, several=data["seed"].nunique() > 1)
    legend(canvas, [*(handle(o) for o in objectives), null, *marks])
    return canvas, axes


def _by_rank(ax: Axes, data: pd.DataFrame) -> None:
    """Every run of one level a line, over that of its null."""
    for (objective, _), run in data.groupby(["objective", "seed"], sort=False):
        drawn = look(str(objective))
        ax.plot(run["rank"], run["null"], color=GREY, linewidth=0.7, linestyle=NULL, zorder=1)
        ax.plot(
            run["rank"],
            run["value"],
            color=drawn.colour,
            linestyle=drawn.line,
            linewidth=1,
            marker=drawn.marker,
            markersize=3.5,
            zorder=2,
        )
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
