"""Accuracy against conflict, run by run."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdx_analysis import null
from kdx_analysis.drawing.marks import entitle
from kdx_analysis.drawing.style import (
    COLUMNS,
    Width,
    drawing,
    in_order,
    legend,
    panels,
    signed,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import METRICS, speaking_of_conflict
from kdx_analysis.plots.comparisons import headlines_of, range_of
from kdx_analysis.plots.figure import Drawn, comparable_explainers, figure
from kdx_analysis.plots.looks import handle, look
from kdx_analysis.runs import RunSet
from kdx_analysis.runs.statistics.correlation import FEWEST_RUNS, rank_correlation

_COLUMNS = ["metric", "objective", "seed", "accuracy", "value", "null", "n", "epochs", "probed"]
_CORRELATION = ["rho", "null_low", "null_high", "draws", "runs"]


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per metric of conflict and run.

    Columns metric, objective, seed, accuracy, value, null, n (probe images), epochs, probed, and a
    metric's.

    A value is the mean over the ``epochs`` of the ``probed`` ones at which all objectives of the
    seed are defined. Of a metric: rho (Spearman's over its ``runs``, NaN below four), null_low,
    null_high (accuracies dealt anew), draws.
    """
    frame = headlines_of(explainers)
    frame = frame[frame["split"] != "val"]
    run = ["objective", "seed"]
    accuracy = frame[frame["metric"] == "accuracy"].set_index(run)["value"].rename("accuracy")
    data = frame[frame["metric"].isin(speaking_of_conflict())].join(accuracy, on=run)
    data = data.dropna(subset=["value", "accuracy"])
    if data.empty:
        raise KdxError(
            "no run holds both test accuracy and conflict; give explainers of a study that was "
            "probed"
        )
    parts = []
    for metric in speaking_of_conflict():
        part = data[data["metric"] == metric]
        if len(part):
            parts.append(part.assign(**rank_correlation(part["value"], part["accuracy"])))
    return pd.concat(parts, ignore_index=True)[[*_COLUMNS, *_CORRELATION]]


@figure(
    title="Does less conflict go with more accuracy?",
    caption="Test accuracy of every explainer against its conflict (plain hard loss, train probe "
    "set, mean over the probed epochs at which all objectives of the seed are defined), every run "
    "a point. ρ is Spearman's rank correlation over all runs, with the range that holds it with "
    "95 % if accuracies are dealt anew to the runs; none below four runs. Runs of one objective "
    "are alike in more than their conflict, so a correlation over several of them is no effect of "
    "conflict on accuracy.",
    table=_table,
    wants=comparable_explainers,
    follows="differences",
)
def accuracy_conflict(data: pd.DataFrame, width: Width = "page") -> Drawn:
    metrics = [metric for metric in METRICS.values() if metric.name in set(data["metric"])]
    columns = COLUMNS[width]
    rows = -(-len(metrics) // columns)
    canvas = drawing(width, 0.8 + (1.75 if width == "column" else 1.95) * rows)
    axes = panels(canvas, len(metrics), columns, sharey=True)
    wide = canvas.get_figwidth() / columns - 0.5
    for i, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        chosen = data[data["metric"] == metric.name]
        _points(ax, chosen)
        entitle(ax, metric.title, [len(chosen)], "run")
        correlation = wrapped(_correlation(chosen.iloc[0]), wide)
        ax.set_xlabel("\n".join([metric.unit or range_of(metric), correlation]))
        ax.xaxis.set_major_locator(MaxNLocator(4))
        if i % columns == 0:
            ax.set_ylabel("accuracy, share of\ntest images")
    legend(canvas, [handle(o, linestyle="none") for o in in_order(data["objective"])])
    return canvas, axes


def _points(ax: Axes, data: pd.DataFrame) -> None:
    """Every run a point, in its objective's look."""
    for objective, runs in data.groupby("objective", sort=False):
        drawn = look(str(objective))
        ax.plot(
            runs["value"],
            runs["accuracy"],
            drawn.marker,
            color=drawn.colour,
            markersize=4.5,
            markeredgewidth=0,
            alpha=0.85,
        )


def _correlation(row: pd.Series) -> str:
    """ρ and its null in words, or why there is none."""
    if row["runs"] < FEWEST_RUNS:
        return "ρ: not below four runs"
    if np.isnan(row["rho"]):
        return "ρ undefined: one side is flat"
    return f"ρ = {signed(row['rho'])}; {null.shown(row['null_low'], row['null_high'], signed)}"
