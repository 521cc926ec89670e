"""Where the subtasks draw their features from: the gates as heat maps."""

from __future__ import annotations

from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from kdx_analysis.drawing.classes import dendrogram, name_classes, pitch, unnamed
from kdx_analysis.drawing.style import LETTER, RASTERED, Width, drawing, heading, in_order, plain
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Drawn, explainers, figure
from kdx_analysis.plots.routing import first_seed, one_run, routed_clusters
from kdx_analysis.runs import RunSet

_COLUMNS = [
    "objective",
    "seed",
    "epoch",
    "level",
    "heads",
    "child",
    "row",
    "joins_next",
    "parent",
    "effective",
    "alpha",
    "tau",
]


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per gate and parent, on levels with a choice.

    Columns objective, seed, epoch, level, heads, child, row, joins_next (of the gates into the
    heads: the routing distance at which the row's branch of the dendrogram joins that of the next
    row), parent, effective, alpha, tau.
    """
    frames = [
        run.at_selected("gates").assign(objective=run.objective, seed=run.seed)
        for run in first_seed(explainers)
    ]
    frame = pd.concat(frames, ignore_index=True)
    frame["heads"] = frame["level"] == frame.groupby("objective")["level"].transform("max")
    frame = frame[frame.groupby(["objective", "level"])["parent"].transform("max") > 0]
    if frame.empty:
        raise KdxError(
            "no gate has a choice, every level has one expert; give the explainers more experts"
        )
    clusters = routed_clusters(explainers)
    rows = {k: row for row, k in enumerate(clusters.order)}
    frame["row"] = frame["child_index"].where(~frame["heads"], frame["child_index"].map(rows))
    joins = dict(enumerate(clusters.joins))
    frame["joins_next"] = frame["row"].map(joins).where(frame["heads"])
    return frame[_COLUMNS].reset_index(drop=True)


@figure(
    title="Where every subtask draws its features from",
    caption="Effective attention A of the gates of one seed at the selected epoch (experts have no "
    "identity across seeds, so gates are never averaged over them); α stands in the data beside "
    "it. Rows: subtasks, clustered on the routing distance of their pathways, mean over all runs, "
    "in one order for all panels; the dendrogram on the left is that of the average linkage. "
    "Levels with a single parent have no choice and are left out. Even attention over N experts, "
    "as before training, is 1/N.",
    table=_table,
    wants=explainers,
    follows="entropy",
)
def gates(data: pd.DataFrame, width: Width = "page") -> Drawn:
    objectives, levels = in_order(data["objective"]), sorted(data["level"].unique(), reverse=True)
    rows = [int(data.loc[data["level"] == level, "row"].max()) + 1 for level in levels]
    heights = [max(0.6, pitch(K) * K) for K in rows]
    canvas = drawing(width, 1.2 + sum(heights) + 0.42 * len(levels))
    canvas.get_layout_engine().set(w_pad=0.02)  # type: ignore[union-attr, call-arg]
    ratios = {"height_ratios": heights, "width_ratios": [0.7, *[1] * len(objectives)], "wspace": 0}
    axes = canvas.subplots(len(levels), 1 + len(objectives), squeeze=False, gridspec_kw=ratios)
    panel = (canvas.get_figwidth() - 1.5) / (len(objectives) + 0.7)
    step = 1
    for row, level, K, height in zip(axes, levels, rows, heights, strict=True):
        of_level = data[data["level"] == level]
        _row(row, of_level, objectives, panel)
        step = max(step, _name_rows(row[-1], of_level, height / K, width))
        label = "subtask" if of_level["heads"].all() else f"gate into\nlevel {level}"
        row[1].set_ylabel(label)
        row[1 + len(objectives) // 2].set_xlabel(f"expert of level {level - 1}", labelpad=1)
    _title(axes[0, 1:], objectives, panel)
    _colorbar(canvas, axes)
    heading(canvas, " · ".join(filter(None, [one_run(data), unnamed(step)])))
    return canvas, axes


def _row(axes: np.ndarray, gates: pd.DataFrame, objectives: list[str], panel: float) -> None:
    """The gates into one level, a panel of so many inches for each objective.

    The dendrogram of the subtasks stands before them, if the gates are theirs.
    """
    aside, *across = axes
    if gates["heads"].all() and gates["joins_next"].notna().any():
        by_row = gates.drop_duplicates("row").sort_values("row")
        dendrogram(aside, by_row["joins_next"].dropna().tolist())
    else:
        aside.set_axis_off()
    for ax, objective in zip(across, objectives, strict=True):
        chosen = gates[gates["objective"] == objective]
        if chosen.empty:
            ax.set_axis_off()
        else:
            _heat(ax, chosen, panel)


def _heat(ax: Axes, gates: pd.DataFrame, inches: float) -> None:
    """The gates of one objective into one level; experts are numbered where there is room."""
    cells = gates.pivot(index="row", columns="parent", values="effective")
    sns.heatmap(
        cells,
        ax=ax,
        cmap="viridis",
        vmin=0,
        vmax=1,
        linewidths=0.3 if len(cells) <= 30 else 0,
        cbar=False,
        rasterized=cells.size > RASTERED,
    )
    ax.set(xlabel="", ylabel="", yticks=[])
    numbered = inches / cells.shape[1] > 0.075
    parents = range(cells.shape[1]) if numbered else range(0)
    ax.set_xticks(
        [parent + 0.5 for parent in parents], [str(parent) for parent in parents], rotation=0
    )
    ax.tick_params(length=0, axis="x", pad=1)


def _name_rows(ax: Axes, gates: pd.DataFrame, pitch: float, width: Width) -> int:
    """Name the rows on the right; every how many are named."""
    names = gates.drop_duplicates("row").sort_values("row")["child"].tolist()
    ax.yaxis.tick_right()
    page = width == "page"
    step = name_classes(
        ax, "y", names, pitch, start=0.5, letters=24 if page else 14, staggered=page
    )
    if step == 1 and not ax.get_yticklabels(minor=True):
        ax.tick_params(axis="y", length=0)
    return step


def _title(axes: np.ndarray, objectives: list[str], panel: float) -> None:
    """Name the objectives over panels of so many inches, turned where they are long."""
    wide = max(len(objective) for objective in objectives) * LETTER * 1.1 > panel
    slanting = {"rotation": 40, "ha": "left", "rotation_mode": "anchor", "x": 0.2}
    turned: dict[str, Any] = {} if not wide else slanting if panel > 0.7 else {"rotation": 90}
    for ax, objective in zip(axes, objectives, strict=True):
        ax.set_title(plain(objective), fontweight="bold", **turned)


def _colorbar(canvas: matplotlib.figure.Figure, axes: np.ndarray) -> None:
    bar = canvas.colorbar(
        axes[0, 1].collections[0],
        ax=axes,
        orientation="horizontal",
        shrink=0.5,
        aspect=30,
        pad=0.01,
    )
    bar.set_label("effective attention A, in [0, 1]")
    bar.outline.set_visible(False)
