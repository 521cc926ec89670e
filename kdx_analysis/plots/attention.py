"""Where the subtasks draw their features from: the gates as heat maps."""

from __future__ import annotations

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from kdx_analysis.drawing.classes import dendrogram, name_classes, pitch, routed_clusters, unnamed
from kdx_analysis.drawing.style import (
    LETTER,
    RASTERED,
    Width,
    drawing,
    heading,
    in_order,
    one_run,
    plain,
    styled,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Drawn, Figure, explainers, of_first_seed
from kdx_analysis.runs import Run, RunSet

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


def _selected(run: Run) -> pd.DataFrame:
    """The gates of one run at its selected epoch."""
    gates = run.record("gates")
    return gates[gates["epoch"] == run.selected_epoch].assign(
        objective=run.objective, seed=run.seed
    )


def _gates_data(runs: RunSet) -> pd.DataFrame:
    """One row per gate and parent, on levels with a choice.

    Columns objective, seed, epoch, level, heads, child, row, joins_next (of the gates into the
    heads: the routing distance at which the row's branch of the dendrogram joins that of the next
    row), parent, effective, alpha, tau.
    """
    chosen = of_first_seed(runs)
    frame = pd.concat([_selected(run) for run in chosen], ignore_index=True)
    frame["heads"] = frame["level"] == frame.groupby("objective")["level"].transform("max")
    frame = frame[frame.groupby(["objective", "level"])["parent"].transform("max") > 0]
    if frame.empty:
        raise KdxError(
            "no gate has a choice, every level has one expert; give the explainers more experts"
        )
    clusters = routed_clusters(explainers(runs))
    rows = {k: row for row, k in enumerate(clusters.order)}
    frame["row"] = frame["child_index"].where(~frame["heads"], frame["child_index"].map(rows))
    joins = dict(enumerate(clusters.joins))
    frame["joins_next"] = frame["row"].map(joins).where(frame["heads"])
    return frame[_COLUMNS].reset_index(drop=True)


@styled
def _draw_gates(data: pd.DataFrame, width: Width = "page") -> Drawn:
    objectives, levels = in_order(data["objective"]), sorted(data["level"].unique(), reverse=True)
    rows = [int(data.loc[data["level"] == level, "row"].max()) + 1 for level in levels]
    heights = [max(0.6, pitch(K) * K) for K in rows]
    figure = drawing(width, 1.2 + sum(heights) + 0.42 * len(levels))
    figure.get_layout_engine().set(w_pad=0.02)  # type: ignore[union-attr, call-arg]
    ratios = {"height_ratios": heights, "width_ratios": [0.7, *[1] * len(objectives)], "wspace": 0}
    axes = figure.subplots(len(levels), 1 + len(objectives), squeeze=False, gridspec_kw=ratios)
    panel = (figure.get_figwidth() - 1.5) / (len(objectives) + 0.7)
    step = 1
    for (aside, *across), level, K, height in zip(axes, levels, rows, heights, strict=True):
        of_level = data[data["level"] == level]
        heads = bool(of_level["heads"].all())
        if heads and of_level["joins_next"].notna().any():
            by_row = of_level.drop_duplicates("row").sort_values("row")
            dendrogram(aside, by_row["joins_next"].dropna().tolist())
        else:
            aside.set_axis_off()
        for ax, objective in zip(across, objectives, strict=True):
            chosen = of_level[of_level["objective"] == objective]
            if chosen.empty:
                ax.set_axis_off()
                continue
            _heat(ax, chosen, panel)
        names = of_level.drop_duplicates("row").sort_values("row")["child"].tolist()
        across[-1].yaxis.tick_right()
        letters = 24 if width == "page" else 14
        named = name_classes(
            across[-1],
            "y",
            names,
            height / K,
            start=0.5,
            letters=letters,
            staggered=width == "page",
        )
        if named == 1 and not across[-1].get_yticklabels(minor=True):
            across[-1].tick_params(axis="y", length=0)
        step = max(step, named)
        across[0].set_ylabel("subtask" if heads else f"gate into\nlevel {level}")
        across[len(across) // 2].set_xlabel(f"expert of level {level - 1}", labelpad=1)
    wide = max(len(objective) for objective in objectives) * LETTER * 1.1 > panel
    slanting = {"rotation": 40, "ha": "left", "rotation_mode": "anchor", "x": 0.2}
    turned: dict[str, Any] = {} if not wide else slanting if panel > 0.7 else {"rotation": 90}
    for ax, objective in zip(axes[0, 1:], objectives, strict=True):
        ax.set_title(plain(objective), fontweight="bold", **turned)
    bar = figure.colorbar(
        axes[0, 1].collections[0],
        ax=axes,
        orientation="horizontal",
        shrink=0.5,
        aspect=30,
        pad=0.01,
    )
    bar.set_label("effective attention A, in [0, 1]")
    bar.outline.set_visible(False)
    heading(figure, " · ".join(filter(None, [one_run(data), unnamed(step)])))
    return figure, axes


def _heat(ax: Axes, gates: pd.DataFrame, inches: float) -> None:
    """The gates of one objective into one level; experts are numbered where there is room."""
    cells = gates.pivot(index="row", columns="parent", values="effective")
    lines = 0.3 if len(cells) <= 30 else 0
    sns.heatmap(
        cells,
        ax=ax,
        cmap="viridis",
        vmin=0,
        vmax=1,
        linewidths=lines,
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


gates = Figure(
    "gates",
    "Where every subtask draws its features from",
    "Effective attention A of the gates of one seed at the selected epoch (experts have no "
    "identity across seeds, so gates are never averaged over them); α stands in the data beside "
    "it. Rows: subtasks, clustered on the routing distance of their pathways, mean over all runs, "
    "in one order for all panels; the dendrogram on the left is that of the average linkage. "
    "Levels with a single parent have no choice and are left out. Even attention over N experts, "
    "as before training, is 1/N.",
    _gates_data,
    _draw_gates,
)
