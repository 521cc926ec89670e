"""Accuracy against conflict, run by run."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from scipy import stats

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
    styled,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import METRICS
from kdx_analysis.plots.comparisons import UNITS, headlines_of
from kdx_analysis.plots.figure import Drawn, Figure, explainers
from kdx_analysis.plots.looks import handle, look
from kdx_analysis.runs import RunSet

_DRAWS = 999
_FEWEST = 4


def _accuracy_data(runs: RunSet) -> pd.DataFrame:
    """Columns metric, objective, seed, accuracy, value, null, n (probe images), epochs, probed, and
    a metric's.

    A value is the mean over the ``epochs`` of the ``probed`` ones at which all objectives of the
    seed are defined. Of a metric: rho (Spearman's over its ``runs``, NaN below four), null_low,
    null_high (accuracies dealt anew), draws.
    """
    frame = headlines_of(explainers(runs, comparable=True))
    frame = frame[frame["split"] != "val"]
    run = ["objective", "seed"]
    accuracy = frame[frame["metric"] == "accuracy"].set_index(run)["value"].rename("accuracy")
    conflict = [metric.name for metric in METRICS.values() if metric.conflict]
    data = frame[frame["metric"].isin(conflict)].join(accuracy, on=run)
    data = data.dropna(subset=["value", "accuracy"])
    if data.empty:
        raise KdxError(
            "no run holds both test accuracy and conflict; give explainers of a study that was "
            "probed"
        )
    parts = [data[data["metric"] == metric] for metric in conflict]
    data = pd.concat(
        [part.assign(**_likeness(part)) for part in parts if len(part)], ignore_index=True
    )
    columns = ["metric", "objective", "seed", "accuracy", "value", "null", "n", "epochs", "probed"]
    return data[[*columns, "rho", "null_low", "null_high", "draws", "runs"]]


def _likeness(runs: pd.DataFrame) -> dict[str, float]:
    """Spearman's ρ of conflict and accuracy over runs, and what holds it with 95 % if accuracies
    are dealt anew.
    """
    x, y = stats.rankdata(runs["value"]), stats.rankdata(runs["accuracy"])
    n = len(runs)
    if n < _FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"rho": np.nan, "null_low": np.nan, "null_high": np.nan, "draws": 0, "runs": n}
    dealt = np.random.default_rng(0).permuted(np.tile(y, (_DRAWS, 1)), axis=1)
    beside = null.beside_one((dealt - dealt.mean()) @ (x - x.mean()) / (n * x.std() * y.std()))
    ends = {end: beside[end] for end in ("null_low", "null_high")}
    return {"rho": float(np.corrcoef(x, y)[0, 1]), **ends, "draws": _DRAWS, "runs": n}


@styled
def _draw_accuracy(data: pd.DataFrame, width: Width = "page") -> Drawn:
    metrics = [metric for metric in METRICS.values() if metric.name in set(data["metric"])]
    columns = COLUMNS[width]
    figure = drawing(
        width, 0.8 + (1.75 if width == "column" else 1.95) * -(-len(metrics) // columns)
    )
    axes = panels(figure, len(metrics), columns, sharey=True)
    for i, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        chosen = data[data["metric"] == metric.name]
        for objective, of in chosen.groupby("objective", sort=False):
            as_ = look(str(objective))
            ax.plot(
                of["value"],
                of["accuracy"],
                as_.marker,
                color=as_.colour,
                markersize=4.5,
                markeredgewidth=0,
                alpha=0.85,
            )
        entitle(ax, metric.title, [len(chosen)], "run")
        first = chosen.iloc[0]
        found = (
            "ρ: not below four runs"
            if first["runs"] < _FEWEST
            else "ρ undefined: one side is flat"
            if np.isnan(first["rho"])
            else f"ρ = {signed(first['rho'])}; {null.shown(first['null_low'], first['null_high'], signed)}"
        )
        unit, of_range = UNITS[metric.name]
        wide = figure.get_figwidth() / columns - 0.5
        ax.set_xlabel("\n".join([unit or of_range, wrapped(found, wide)]))
        ax.xaxis.set_major_locator(MaxNLocator(4))
        if i % columns == 0:
            ax.set_ylabel("accuracy, share of\ntest images")
    legend(figure, [handle(o, linestyle="none") for o in in_order(data["objective"])])
    return figure, axes


accuracy_conflict = Figure(
    "accuracy_conflict",
    "Does less conflict go with more accuracy?",
    "Test accuracy of every explainer against its conflict (plain hard loss, train probe set, mean "
    "over the probed epochs at which all objectives of the seed are defined), every run a point. ρ "
    "is Spearman's rank correlation over all runs, with the range that holds it with 95 % if "
    "accuracies are dealt anew to the runs; none below four runs. Runs of one objective are alike "
    "in more than their conflict, so a correlation over several of them is no effect of conflict "
    "on accuracy.",
    _accuracy_data,
    _draw_accuracy,
)
