"""Where the subtasks draw their features from: the gates as heat maps, and made hard as trees."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from kdx_analysis.errors import KdxError
from kdx_analysis.models.tree import Tree
from kdx_analysis.plots.classes import name_classes, routed_order
from kdx_analysis.plots.figure import Figure, explainers
from kdx_analysis.plots.style import drawing, in_order, look, panels, plain, styled
from kdx_analysis.runs import Run, RunSet

_PITCH = 0.108  # inches a row, room for a class name of 7 pt


def _of_first_seed(runs: RunSet) -> RunSet:
    found = explainers(runs)
    return found.filter(seed=found.seeds[0])


def _selected(run: Run) -> pd.DataFrame:
    """The gates of one run at its selected epoch."""
    gates = run.record("gates")
    return gates[gates["epoch"] == run.info["selection"]["epoch"]].assign(objective=run.objective, seed=run.seed)


def _gates_data(runs: RunSet) -> pd.DataFrame:
    """Columns objective, seed, epoch, level, heads, child, row, parent, effective, alpha, tau; levels with a choice."""
    chosen = _of_first_seed(runs)
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
    heights = [max(0.75, _pitch(K) * K) for K in (data.loc[data["level"] == v, "row"].max() + 1 for v in levels)]
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
    figure.suptitle(_one_run(data))
    return figure, axes


def _pitch(K: int) -> float:
    return _PITCH if K > 30 else 0.17


def _one_run(data: pd.DataFrame) -> str:
    epochs = ", ".join(str(epoch) for epoch in sorted(data["epoch"].unique()))
    return f"seed {data['seed'].iloc[0]}, epoch {epochs} (n = 1 run per objective)"


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


def _tree_data(runs: RunSet) -> pd.DataFrame:
    """One row per edge: objective, seed, epoch, child_level, child, child_y, parent, parent_y, name, subtasks, share.

    Levels count from the trunk, 1; the classes are the last child_level. ``y`` counts leaves from the top.
    """
    chosen, order = _of_first_seed(runs), routed_order(explainers(runs))
    rows = []
    for run in chosen:
        gates = _selected(run)
        attention = [
            torch.tensor(level.pivot(index="child_index", columns="parent", values="effective").to_numpy())
            for _, level in gates.groupby("level")
        ]
        tree = Tree.from_attention(attention, run.classes)
        paths = [(*tree.path(k), k) for k in range(len(run.classes))]
        place = _places(paths, order)
        used: defaultdict[tuple[int, int, int], int] = defaultdict(int)
        for path in paths:
            for level, (parent, child) in enumerate(pairwise(path), 2):
                used[level, parent, child] += 1
        leaves = len(tree.experts) + 1
        for (level, parent, child), subtasks in sorted(used.items()):
            rows.append({
                "objective": run.objective, "seed": run.seed, "epoch": run.info["selection"]["epoch"],
                "child_level": level, "child": child, "child_y": place[level, child],
                "parent": parent, "parent_y": place[level - 1, parent],
                "name": run.classes[child] if level == leaves else "",
                "subtasks": subtasks, "share": subtasks / len(paths),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _places(paths: list[tuple[int, ...]], order: list[int]) -> dict[tuple[int, int], float]:
    """Height of every node (level, index): leaves of one expert together, experts midway between their leaves."""
    rank = {k: i for i, k in enumerate(order)}
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for k, path in enumerate(paths):
        for level in range(1, len(path) + 1):
            groups[path[:level]].append(rank[k])
    keys = [[float(np.mean(groups[path[:level]])) for level in range(1, len(path) + 1)] for path in paths]
    leaves = sorted(range(len(paths)), key=lambda k: [(m, paths[k][i]) for i, m in enumerate(keys[k])])
    heights: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for y, k in enumerate(leaves):
        for level, index in enumerate(paths[k], 1):
            heights[level, index].append(y)
    return {node: (min(ys) + max(ys)) / 2 for node, ys in heights.items()}


@styled
def _draw_tree(data: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    objectives, leaves = in_order(data["objective"]), int(data["child_level"].max())
    K = int((data["child_level"] == leaves).groupby(data["objective"]).sum().max())
    columns = min(len(objectives), 6 if K > 30 else 3)
    rows = -(-len(objectives) // columns)
    figure = drawing(min(12, 3.7 * columns), 0.8 + rows * (0.6 + _pitch(K) * K))
    axes = panels(figure, len(objectives), columns)
    for ax, objective in zip(axes, objectives, strict=True):
        _draw_one_tree(ax, data[data["objective"] == objective], look(objective).colour)
        ax.set_title(plain(objective).replace(" ", "\n"), fontweight="bold", loc="left")
    shares = [Line2D([], [], color="#888888", linewidth=_width(s), label=f"{s:.0%}") for s in (0.1, 0.5, 1.0)]
    figure.legend(handles=shares, title="share of subtasks", loc="outside lower center", ncols=3, title_fontsize=8)
    figure.suptitle(_one_run(data))
    return figure, axes


def _draw_one_tree(ax: Axes, edges: pd.DataFrame, colour: str) -> None:
    leaves = int(edges["child_level"].max())
    step = np.linspace(0, 1, 24)
    ease = step**2 * (3 - 2 * step)
    for level, top, bottom, share in edges[["child_level", "parent_y", "child_y", "share"]].to_numpy():
        y = top + (bottom - top) * ease
        ax.plot(level - 1 + step, y, color=colour, alpha=0.45, linewidth=_width(share), zorder=1)
    is_leaf = edges["child_level"] == leaves
    trunk = edges.loc[edges["child_level"] == 2, ["parent", "parent_y"]].assign(level=1)
    experts = edges.loc[~is_leaf, ["child_level", "child", "child_y"]].to_numpy().tolist()
    for level, expert, y in [*trunk[["level", "parent", "parent_y"]].drop_duplicates().to_numpy().tolist(), *experts]:
        box = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": colour, "linewidth": 0.8}
        ax.text(level, y, f"{expert:.0f}", ha="center", va="center", fontsize=7, zorder=3, bbox=box)
    place: dict[str, Any] = {"xytext": (2, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    for name, y in edges.loc[is_leaf, ["name", "child_y"]].to_numpy():
        ax.annotate(plain(name), (leaves, y), fontsize=7, **place)
    ax.set_xlim(0.7, leaves)
    ax.set_ylim(edges["child_y"].max() + 0.7, -0.7)
    ax.set_xticks(range(1, leaves + 1), [*(str(level) for level in range(1, leaves)), "subtask"], fontsize=7)
    ax.get_xticklabels()[-1].set_horizontalalignment("left")
    ax.set_xlabel("level (1: trunk)", loc="left", labelpad=1)
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _width(share: float) -> float:
    return 0.6 + 6 * share


tree = Figure(
    "tree",
    "The neural tree",
    "The gates of one seed made hard: every subtask and every expert takes the parent with the largest effective "
    "attention at the selected epoch. Live experts only, numbered within their level (numbers mean nothing across "
    "seeds); an edge is as thick as the share of subtasks that pass it. There is no null for a tree: compare the "
    "clarity of its gates in the heat maps.",
    _tree_data,
    _draw_tree,
)
