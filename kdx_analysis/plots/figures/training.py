"""The health of the training itself."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdx_analysis.drawing.style import GREY, Width, drawing, in_order, legend, plain
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.curves import line, log_scale, seeds_per_objective
from kdx_analysis.plots.figure import Drawn, figure
from kdx_analysis.plots.looks import handle
from kdx_analysis.runs import RunSet, own_teachers

_PANELS = {
    ("val", "accuracy"): "accuracy, share of\nvalidation images",
    ("train", "loss"): "training loss\n(log scale)",
}
_COLUMNS = [
    "role",
    "vam",
    "objective",
    "run",
    "seed",
    "epoch",
    "split",
    "metric",
    "value",
    "n",
    "selected",
]


def _table(runs: RunSet) -> pd.DataFrame:
    """One row per run, epoch and metric.

    Columns role, vam, objective, run, seed, epoch, split, metric, value, n, selected (the epoch is
    the one selected).
    """
    teachers = own_teachers(runs).runs
    runs = RunSet(tuple(run for run in runs if run.role != "teacher" or run in teachers))
    frame = runs.frame("metrics")
    frame = frame[[pair in _PANELS for pair in zip(frame["split"], frame["metric"], strict=True)]]
    if not (frame["role"] != "teacher").any():
        raise KdxError(
            "the runs hold no training of a student or an explainer; give runs of a study"
        )
    selected = {run.id: run.selected_epoch for run in runs}
    frame = frame.assign(selected=frame["epoch"] == frame["run"].map(selected))
    return frame[_COLUMNS].reset_index(drop=True)


@figure(
    title="Health of the trainings",
    caption="Validation accuracy and training loss after every epoch, for the undivided students "
    "and the explainers, one line per seed; dashed the teacher's validation accuracy. Losses of "
    "different objectives are on different scales and can't be compared with each other. Accuracy "
    "by chance is 1/K.",
    table=_table,
    follows="contention",
)
def training(data: pd.DataFrame, width: Width = "page") -> Drawn:
    trained = data[data["role"] != "teacher"]
    teacher = data[(data["role"] == "teacher") & data["selected"] & (data["metric"] == "accuracy")]
    roles = list(trained.groupby(["role", "vam"], sort=False))
    canvas = drawing(width, 1.2 + 1.7 * len(roles))
    axes = canvas.subplots(len(roles), 2, squeeze=False, sharex="row", sharey="col")
    for row, (keys, of_role) in zip(axes, roles, strict=True):
        for ax, ((split, metric), label) in zip(row, _PANELS.items(), strict=True):
            _lines(ax, of_role[(of_role["split"] == split) & (of_role["metric"] == metric)])
            if metric == "accuracy":
                for value in teacher["value"]:
                    ax.axhline(value, color=GREY, linewidth=1, linestyle="--", zorder=0)
            else:
                log_scale(ax)
            ax.set_title(plain(", ".join(str(key) for key in keys if key)), loc="left")
            ax.set_ylabel(label)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    handles = [handle(o) for o in in_order(trained["objective"])]
    if (data["role"] == "teacher").any():
        label = "teacher, at its selected epoch"
        handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle="--", label=label))
    legend(canvas, handles, seeds_per_objective(trained))
    return canvas, axes


def _lines(ax: Axes, data: pd.DataFrame) -> None:
    """Every run a line."""
    for (objective, _), run in data.groupby(["objective", "run"], sort=False):
        run = run.sort_values("epoch")
        line(ax, str(objective), run["epoch"], run["value"])
