"""The entropy of gates through training."""

from __future__ import annotations

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdx_analysis.drawing.style import LIGHT, Width, drawing, in_order, legend
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.curves import line, log_scale, seeds_per_objective
from kdx_analysis.plots.figure import Drawn, explainers, figure
from kdx_analysis.plots.looks import handle
from kdx_analysis.runs import RunSet

# A gate that is hard has entropy 0, which has no place on a logarithmic scale.
_FLOOR = 1e-6
_TITLES = {"effective": "effective attention A", "alpha": "gating attention α"}
_COLUMNS = [
    "objective",
    "seed",
    "epoch",
    "level",
    "heads",
    "attention",
    "value",
    "initial",
    "n",
    "tau",
]


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per run, epoch, level and kind of attention.

    Columns objective, seed, epoch, level, heads, attention, value, initial, n, tau; value and
    initial are H/ln N.
    """
    frame = explainers.frame("gate_summary")
    frame = frame[(frame["of"] == "gates") & (frame["metric"] == "entropy_share")]
    heads = {run.id: run.record("gates")["level"].max() for run in explainers}
    frame = frame.assign(heads=frame["level"] == frame["run"].map(heads))
    if frame.empty:
        raise KdxError(
            "no gate has a choice, every level has one expert; give the explainers more experts"
        )
    return frame[_COLUMNS].reset_index(drop=True)


@figure(
    title="Gate entropy through training",
    caption="Share H / ln N of the largest entropy, mean over the gates of a level, one line per "
    "seed: of effective attention on the left and of α on the right. The temperature τ falls "
    "during training and lowers the entropy of any gates, so the grey lines show each run's "
    "initial gates at the same τ; only the difference from grey is learned. The scale is "
    f"logarithmic where values fall below 0.1 (those below {_FLOOR:.0e} drawn there).",
    table=_table,
    wants=explainers,
    follows="accuracy_conflict",
)
def entropy(data: pd.DataFrame, width: Width = "page") -> Drawn:
    levels = sorted(data["level"].unique(), reverse=True)
    log = data["value"].min() < 0.1
    canvas = drawing(width, 1.2 + 1.6 * len(levels))
    axes = canvas.subplots(len(levels), 2, squeeze=False, sharex=True, sharey=True)
    for row, level in zip(axes, levels, strict=True):
        for ax, (attention, title) in zip(row, _TITLES.items(), strict=True):
            chosen = data[(data["attention"] == attention) & (data["level"] == level)]
            for (objective, _), run in chosen.groupby(["objective", "seed"], sort=False):
                run = run.sort_values("epoch")
                initial = run["initial"].clip(_FLOOR)
                ax.plot(run["epoch"], initial, color=LIGHT, linewidth=0.6, zorder=1)
                line(ax, str(objective), run["epoch"], run["value"].clip(_FLOOR))
            gates = "the heads" if chosen["heads"].all() else f"level {level}"
            ax.set_title(f"gates into {gates},\n{title}", loc="left")
        row[0].set_ylabel("H / ln N, in [0, 1]" + ("\n(log scale)" if log else ""))
    if log:
        log_scale(axes[0, 0])
    else:
        axes[0, 0].set_ylim(min(0.0, data["value"].min()), 1.02)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    label = "the run's initial gates at the same τ"
    handles = [handle(o) for o in in_order(data["objective"])]
    handles.append(Line2D([], [], color=LIGHT, linewidth=0.9, label=label))
    legend(canvas, handles, seeds_per_objective(data))
    return canvas, axes
