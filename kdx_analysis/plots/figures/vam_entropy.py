"""The entropy of VAM's attention through training."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdx_analysis.drawing.style import LIGHT, Width, counted, drawing, in_order, legend, plain
from kdx_analysis.plots.curves import line
from kdx_analysis.plots.figure import Drawn, figure, with_vam
from kdx_analysis.plots.looks import handle
from kdx_analysis.runs import RunSet

_SHOWN = {"alpha": "attention α", "share": "share of flow A"}
_KEYS = ["student", "run", "objective", "vam", "seed", "epoch", "attention"]


def _table(students: RunSet) -> pd.DataFrame:
    """One row per run, epoch and kind of attention.

    Columns student, run, objective, vam, seed, epoch, attention, value, initial, n (rows of all
    layers: a mean).
    """
    frame = students.frame("vam_entropy")
    frame["student"] = frame["run"].map({run.id: run.info["config"]["model"] for run in students})
    means = frame.groupby(_KEYS, sort=False).agg(
        value=("value", "mean"), initial=("initial", "mean"), n=("row", "size")
    )
    return means.reset_index()


@figure(
    title="VAM: entropy of attention through training",
    caption="H/ln M, mean over all rows of all layers, of α (what the penalty γ acts on) and of "
    "the shares of flow A; one line a run. Grey: the same weights at uniform attention, which is 1 "
    "for α.",
    table=_table,
    wants=with_vam,
    follows="vam_attention",
)
def vam_entropy(data: pd.DataFrame, width: Width = "page") -> Drawn:
    arms = list(data.groupby(["student", "vam"], sort=False))
    canvas = drawing(width, 1.2 + 1.8 * len(arms))
    axes = canvas.subplots(len(arms), len(_SHOWN), sharex=True, sharey=True, squeeze=False)
    for row, (keys, of_arm) in zip(axes, arms, strict=True):
        for ax, (attention, label) in zip(row, _SHOWN.items(), strict=True):
            _lines(ax, of_arm[of_arm["attention"] == attention])
            names = [str(key) for key in keys if key]
            ax.set_title(plain("\n".join([*names, label])), loc="left")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        row[0].set_ylabel("entropy H / ln M,\nmean over rows")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    label = "uniform attention on the same weights"
    reference = Line2D([], [], color=LIGHT, linewidth=0.9, label=label)
    n = counted(data.groupby(["student", "vam", "objective"])["run"].nunique(), "run")
    handles = [*(handle(o) for o in in_order(data["objective"])), reference]
    legend(canvas, handles, f"n = {n} per panel and objective, one line each")
    return canvas, axes


def _lines(ax: Axes, data: pd.DataFrame) -> None:
    """Every run a line, over that of uniform attention."""
    for (objective, _), run in data.groupby(["objective", "run"], sort=False):
        run = run.sort_values("epoch")
        ax.plot(run["epoch"], run["initial"], color=LIGHT, linewidth=0.6, zorder=1)
        line(ax, str(objective), run["epoch"], run["value"])
