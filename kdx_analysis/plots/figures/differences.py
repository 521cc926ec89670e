"""Paired differences of KD from every other objective, a forest plot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdx_analysis.drawing.style import (
    COLUMNS,
    GREY,
    Width,
    drawing,
    heading,
    in_order,
    panels,
    plain,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import METRICS, Metric, together
from kdx_analysis.plots.comparisons import against_kd, fewer_epochs, outside_ladder, without
from kdx_analysis.plots.figure import Drawn, comparable_explainers, figure
from kdx_analysis.plots.looks import look
from kdx_analysis.runs import RunSet, t_interval
from kdx_analysis.runs.statistics.paired import by_seed, coverage


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per metric, objective beside KD and seed.

    Columns metric, a, b, includes, seed, difference (a − b, of one seed), epochs, probed, left_out.

    Of the first ladder. A difference is the mean over the ``epochs`` of the ``probed`` ones at
    which both are defined; ``left_out`` names the objectives that do not share the ladder's
    settings.
    """
    kd, others = against_kd(explainers)
    rows = []
    for metric in together():
        table = explainers.by_epoch(metric.name)
        for other, includes in others.items():
            if {kd, other} <= set(table.columns):
                names = {"metric": metric.name, "a": kd, "b": other, "includes": includes}
                rows += [names | seed for seed in _of_seeds(table, metric, kd, other)]
    data = pd.DataFrame(rows).assign(left_out=outside_ladder(explainers))
    if data.empty:
        raise KdxError(
            f"{kd!r} shares no seed with {', '.join(others)}; train them with the same seeds"
        )
    return data


def _of_seeds(table: pd.DataFrame, metric: Metric, kd: str, other: str) -> list[dict[str, Any]]:
    """The difference of every seed that both have, with the epochs that it is taken over."""
    pairs = by_seed(table[[kd, other]], metric.pairs_make)
    over = coverage(table, [kd, other])
    return [
        {
            "seed": seed,
            "difference": pairs.loc[seed, kd] - pairs.loc[seed, other],
            "epochs": epochs,
            "probed": probed,
        }
        for seed, epochs, probed in zip(pairs.index, over.epochs, over.probed, strict=True)
    ]


@figure(
    title="Paired effects of KD, a forest plot: against every other objective, seed by seed",
    caption="Paired difference kd − other, which shares its settings, on every headline metric: "
    "each seed's point, the mean (upright) and the 95 % t-interval of the paired difference (none "
    "with one seed), not corrected for several comparisons, so exploratory. Figures of several "
    "epochs are compared epoch by epoch, over those at which both are defined. An interval that "
    "holds the line at 0 tells no difference. Only kd − kd_shuffled isolates class structure; "
    "against label_smoothing and hard the difference includes temperature and softness.",
    table=_table,
    wants=comparable_explainers,
    follows="ladder",
)
def differences(data: pd.DataFrame, width: Width = "page") -> Drawn:
    others = in_order(data["b"])
    includes = data.drop_duplicates("b").set_index("b")["includes"]
    kd = data["a"].iloc[0]
    metrics = [metric for metric in METRICS.values() if metric.name in set(data["metric"])]
    columns = COLUMNS[width]
    canvas = drawing(width, 0.8 + -(-len(metrics) // columns) * (0.65 + 0.17 * len(others)))
    axes = panels(canvas, len(metrics), columns, sharey=True)
    labels = [f"{kd} − {b}" + " †" * bool(includes[b]) for b in others]
    # else long labels of shared axes are cut
    canvas.set_layout_engine("constrained", rect=(0.02, 0, 0.98, 1))
    for ax, metric in zip(axes, metrics, strict=True):
        _panel(ax, data[data["metric"] == metric.name], others)
        ax.set_yticks(range(len(others)), [plain(label) for label in labels])
        ax.set_ylim(len(others) - 0.5, -0.5)
        wide = (canvas.get_figwidth() - 1) / columns - 0.3
        ax.set_title(wrapped(metric.title, wide), loc="left")
        ax.set_xlabel(wrapped(metric.unit, wide))
        ax.xaxis.set_major_locator(MaxNLocator(columns))
    note = "† " + includes[includes != ""].iloc[0] if (includes != "").any() else ""
    parts = [*_drawn(data), fewer_epochs(data), note, without(data)]
    heading(canvas, " · ".join(filter(None, parts)))
    return canvas, axes


def _panel(ax: Axes, data: pd.DataFrame, others: list[str]) -> None:
    """The differences of one metric, a row for each of the ``others``."""
    ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    for y, other in enumerate(others):
        values = data.loc[data["b"] == other, "difference"]
        if values.empty:
            continue
        drawn, interval = look(other), t_interval(values.to_numpy())
        if interval.n > 1:
            ax.hlines(y, interval.low, interval.high, color=drawn.colour, linewidth=1.2)
            ax.vlines(interval.mean, y - 0.28, y + 0.28, color=drawn.colour, linewidth=2)
        ax.plot(
            values,
            np.full(len(values), y),
            drawn.marker,
            color=drawn.colour,
            markersize=4,
            markerfacecolor="white",
            zorder=3,
        )
        ax.annotate(
            f"n = {interval.n}",
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=GREY,
        )


def _drawn(data: pd.DataFrame) -> list[str]:
    """What points and lines are, and how many intervals chance alone would keep from 0."""
    seeds = data.groupby(["metric", "b"])["seed"].nunique()
    if seeds.max() == 1:
        return ["points: differences of one seed, which have no interval"]
    intervals = int((seeds > 1).sum())
    return [
        "points: differences of one seed · upright: their mean · line: its 95 % t-interval",
        f"exploratory: of {intervals} such intervals {0.05 * intervals:.1f} leave out 0 by chance",
    ]
