"""Through training: the entropy of gates, and the health of the training itself."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from kdx_analysis.drawing.style import (
    GREY,
    LIGHT,
    Width,
    counted,
    drawing,
    in_order,
    legend,
    plain,
    styled,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Drawn, Figure, explainers
from kdx_analysis.plots.looks import handle, look
from kdx_analysis.runs import RunSet

_FLOOR = 1e-6


def _entropy_data(runs: RunSet) -> pd.DataFrame:
    """Columns objective, seed, epoch, level, heads, attention, value, initial, n, tau; value and
    initial are H/ln N.
    """
    frame = explainers(runs).frame("gate_summary")
    frame = frame[(frame["of"] == "gates") & (frame["metric"] == "entropy_share")]
    heads = {run.id: run.record("gates")["level"].max() for run in explainers(runs)}
    frame = frame.assign(heads=frame["level"] == frame["run"].map(heads))
    if frame.empty:
        raise KdxError(
            "no gate has a choice, every level has one expert; give the explainers more experts"
        )
    columns = [
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
    return frame[columns].reset_index(drop=True)


@styled
def _draw_entropy(data: pd.DataFrame, width: Width = "page") -> Drawn:
    levels = sorted(data["level"].unique(), reverse=True)
    titles = {"effective": "effective attention A", "alpha": "gating attention α"}
    log = data["value"].min() < 0.1
    figure = drawing(width, 1.2 + 1.6 * len(levels))
    axes = figure.subplots(len(levels), 2, squeeze=False, sharex=True, sharey=True)
    for row, level in zip(axes, levels, strict=True):
        for ax, (attention, title) in zip(row, titles.items(), strict=True):
            chosen = data[(data["attention"] == attention) & (data["level"] == level)]
            for (objective, _), run in chosen.groupby(["objective", "seed"], sort=False):
                run = run.sort_values("epoch")
                ax.plot(
                    run["epoch"], run["initial"].clip(_FLOOR), color=LIGHT, linewidth=0.6, zorder=1
                )
                _line(ax, str(objective), run["epoch"], run["value"].clip(_FLOOR))
            gates = "the heads" if chosen["heads"].all() else f"level {level}"
            ax.set_title(f"gates into {gates},\n{title}", loc="left")
        row[0].set_ylabel("H / ln N, in [0, 1]" + ("\n(log scale)" if log else ""))
    if log:
        _log_scale(axes[0, 0])
    else:
        axes[0, 0].set_ylim(min(0.0, data["value"].min()), 1.02)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    reference = Line2D(
        [], [], color=LIGHT, linewidth=0.9, label="the run's initial gates at the same τ"
    )
    legend(figure, [*(handle(o) for o in in_order(data["objective"])), reference], _n(data))
    return figure, axes


def _line(ax: Axes, objective: str, epochs: pd.Series, values: pd.Series) -> None:
    """One run's values through its epochs, in its objective's look, with at most some six markers."""
    of = look(objective)
    every = max(1, len(epochs) // 6)
    ax.plot(
        epochs,
        values,
        color=of.colour,
        linestyle=of.line,
        marker=of.marker,
        markersize=3.5,
        markevery=every,
        linewidth=1,
        zorder=2,
    )


def _log_scale(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers, also where it spans less than a decade."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _n(data: pd.DataFrame) -> str:
    """How many seeds, each drawn as its own line."""
    return (
        f"n = {counted(data.groupby('objective')['seed'].nunique())} per objective, one line each"
    )


entropy = Figure(
    "entropy",
    "Gate entropy through training",
    "Share H / ln N of the largest entropy, mean over the gates of a level, one line per seed: of "
    "effective attention on the left and of α on the right. The temperature τ falls during "
    "training and lowers the entropy of any gates, so the grey lines show each run's initial gates "
    "at the same τ; only the difference from grey is learned. The "
    f"scale is logarithmic where values fall below 0.1 (those below {_FLOOR:.0e} drawn there).",
    _entropy_data,
    _draw_entropy,
)


_PANELS = {
    ("val", "accuracy"): "accuracy, share of\nvalidation images",
    ("train", "loss"): "training loss\n(log scale)",
}


def _training_data(runs: RunSet) -> pd.DataFrame:
    """Columns role, objective, seed, epoch, split, metric, value, n, selected (the epoch is the one
    selected).
    """
    frame = runs.frame("metrics")
    frame = frame[[pair in _PANELS for pair in zip(frame["split"], frame["metric"], strict=True)]]
    if not (frame["role"] != "teacher").any():
        raise KdxError(
            "the runs hold no training of a student or an explainer; give runs of a study"
        )
    selected = {run.id: run.selected_epoch for run in runs}
    frame = frame.assign(selected=frame["epoch"] == frame["run"].map(selected))
    columns = [
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
    return frame[columns].reset_index(drop=True)


@styled
def _draw_training(data: pd.DataFrame, width: Width = "page") -> Drawn:
    trained = data[data["role"] != "teacher"]
    roles = list(trained.groupby(["role", "vam"], sort=False))
    figure = drawing(width, 1.2 + 1.7 * len(roles))
    axes = figure.subplots(len(roles), 2, squeeze=False, sharex="row", sharey="col")
    for row, (keys, of_role) in zip(axes, roles, strict=True):
        for ax, ((split, metric), label) in zip(row, _PANELS.items(), strict=True):
            chosen = of_role[(of_role["split"] == split) & (of_role["metric"] == metric)]
            for (objective, _), run in chosen.groupby(["objective", "run"], sort=False):
                run = run.sort_values("epoch")
                _line(ax, str(objective), run["epoch"], run["value"])
            if metric == "accuracy":
                teacher = data[
                    (data["role"] == "teacher") & data["selected"] & (data["metric"] == metric)
                ]
                for value in teacher["value"]:
                    ax.axhline(value, color=GREY, linewidth=1, linestyle="--", zorder=0)
            else:
                _log_scale(ax)
            ax.set_title(plain(", ".join(str(key) for key in keys if key)), loc="left")
            ax.set_ylabel(label)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    handles = [handle(o) for o in in_order(trained["objective"])]
    if (data["role"] == "teacher").any():
        handles.append(
            Line2D(
                [],
                [],
                color=GREY,
                linewidth=1,
                linestyle="--",
                label="teacher, at its selected epoch",
            )
        )
    legend(figure, handles, _n(trained))
    return figure, axes


training = Figure(
    "training",
    "Health of the trainings",
    "Validation accuracy and training loss after every epoch, for the undivided students and the "
    "explainers, one line per seed; dashed the teacher's validation accuracy. Losses of different "
    "objectives are on different scales and can't be compared with each other. Accuracy by chance "
    "is 1/K.",
    _training_data,
    _draw_training,
)
