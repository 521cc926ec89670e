"""Where the subtasks draw their features from: the gates as heat maps."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn as sns

from kdx_analysis.errors import KdxError
from kdx_analysis.plots.classes import name_classes, pitch, routed_order
from kdx_analysis.plots.figure import Figure, explainers, of_first_seed
from kdx_analysis.plots.style import drawing, in_order, one_run, plain, styled
from kdx_analysis.runs import Run, RunSet


def _selected(run: Run) -> pd.DataFrame:
    """The gates of one run at its selected epoch."""
    gates = run.record("gates")
    return gates[gates["epoch"] == run.info["selection"]["epoch"]].assign(objective=run.objective, seed=run.seed)


def _gates_data(runs: RunSet) -> pd.DataFrame:
    """Columns objective, seed, epoch, level, heads, child, row, parent, effective, alpha, tau; levels with a choice."""
    chosen = of_first_seed(runs)
    frame = pd.concat([_selected(run) for run in chosen], ignore_index=True)
    frame["heads"] = frame["level"] == frame.groupby("objective")["level"].transform("max")
    frame = frame[frame.groupby(["objective", "level"])["parent"].transform("max") > 0]
    if frame.empty:
        raise KdxError("no gate has a choice, every level has one expert; give the explainers more experts")
    rows = {k: row for row, k in enumerate(routed_order(explainers(runs)))}
    frame["row"] = frame["child_index"].where(~frame["heads"], frame["child_index"].map(rows))
    columns = ["objective", "seed", "epoch", "level", "heads", "child", "row", "parent", "effective", "alpha", "tau"]
    return frame[columns].reset_index(drop=True)


@styled
def _draw_gates(data: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    objectives, levels = in_order(data["objective"]), sorted(data["level"].unique(), reverse=True)
    heights = [max(0.75, pitch(K) * K) for K in (data.loc[data["level"] == v, "row"].max() + 1 for v in levels)]
    figure = drawing(min(12, 1.9 + 1.5 * len(objectives)), 0.9 + sum(heights) + 0.55 * len(levels))
    axes = figure.subplots(len(levels), len(objectives), squeeze=False, gridspec_kw={"height_ratios": heights})
    for i, level in enumerate(levels):
        for j, objective in enumerate(objectives):
            ax, chosen = axes[i, j], data[(data["level"] == level) & (data["objective"] == objective)]
            if chosen.empty:
                ax.set_axis_off()
                continue
            cells = chosen.pivot(index="row", columns="parent", values="effective")
            sns.heatmap(cells, ax=ax, cmap="viridis", vmin=0, vmax=1, linewidths=0.3, cbar=False)
            names = chosen.drop_duplicates("row").sort_values("row")["child"].tolist()
            if j == 0:
                name_classes(ax, "y", names, heights[i] / len(names), start=0.5)
                ax.set_ylabel("subtask" if chosen["heads"].all() else f"gate into level {level}")
            else:
                ax.set_yticks([])
            parents = range(int(chosen["parent"].max()) + 1)
            ax.set_xticks([p + 0.5 for p in parents], [str(p) for p in parents], fontsize=7)
            ax.tick_params(length=0, axis="x", pad=1)
            ax.set_xlabel(f"expert of level {level - 1}", labelpad=1)
            if j > 0:
                ax.set_ylabel("")
            if i == 0:
                ax.set_title(plain(objective).replace(" ", "\n"), fontweight="bold")
    bar = figure.colorbar(axes[0, 0].collections[0], ax=axes, shrink=min(1, 2 / sum(heights)), aspect=18, pad=0.01)
    bar.set_label("effective attention A, in [0, 1]")
    bar.outline.set_visible(False)
    figure.suptitle(one_run(data))
    return figure, axes


gates = Figure(
    "gates",
    "Where every subtask draws its features from",
    "Effective attention A of the gates of one seed at the selected epoch (experts have no identity across seeds, so "
    "gates are never averaged over them); α stands in the data beside it. Rows: subtasks, clustered on the routing "
    "distance of their pathways, mean over all runs, in one order for all panels; levels with a single parent have no "
    "choice and are left out. Even attention over N experts, as before training, is 1/N.",
    _gates_data,
    _draw_gates,
)
