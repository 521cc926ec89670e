"""Neural trees: one for each objective, and how far the trees of different runs agree."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from kdx_analysis.errors import KdxError
from kdx_analysis.models.tree import Tree
from kdx_analysis.plots.classes import pitch, routed_order
from kdx_analysis.plots.figure import Figure, explainers, of_first_seed
from kdx_analysis.plots.style import (
    GREY,
    LIGHT,
    counted,
    drawing,
    in_order,
    look,
    one_run,
    panels,
    plain,
    style,
    styled,
)
from kdx_analysis.runs import RunSet, tree_pairs
from kdx_analysis.runs.trees import CORRELATION, DISTANCE, NEITHER, OBJECTIVE, SEED

_COLOUR = "#0072B2"
_LONGEST = 24
_MEASURES = {
    DISTANCE: "Robinson–Foulds distance, in [0, 1]; 0: all groups shared",
    CORRELATION: "cophenetic correlation, in [−1, 1]; 1: the same depths",
}


def tree_of(tree: Tree, ax: Axes | None = None) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """One tree as (figure, axes), its subtasks in the order of its classes as far as the tree allows.

    It is drawn into ``ax`` if one is given; that should be about 0.11 inches high for every class.
    """
    edges = _edges(tree, range(len(tree.classes)))
    if ax is None:
        return _draw_alone(edges)
    _draw_one_tree(ax, edges, _COLOUR)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, np.array([ax])


def svg(tree: Tree) -> str:
    """The figure of :func:`tree_of` as an SVG element."""
    figure, _ = tree_of(tree)
    with style(), io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return "<svg" + buffer.getvalue().partition("<svg")[2]


def _tree_data(runs: RunSet) -> pd.DataFrame:
    """One row per edge: objective, seed, epoch, child_level, child, child_y, parent, parent_y, name, subtasks, share.

    Levels count from the trunk, 1; the classes are the last child_level. ``y`` counts leaves from the top.
    """
    order = routed_order(explainers(runs))
    keys = ["objective", "seed", "epoch"]
    frames = [
        _edges(run.tree, order).assign(objective=run.objective, seed=run.seed, epoch=run.info["selection"]["epoch"])
        for run in of_first_seed(runs)
    ]
    data = pd.concat(frames, ignore_index=True)
    return data[keys + [column for column in data.columns if column not in keys]]


def _edges(tree: Tree, order: Sequence[int]) -> pd.DataFrame:
    """The edges of a tree with the places of their ends; leaves follow ``order`` as far as the tree allows."""
    paths = [(*path, k) for k, path in enumerate(tree.paths)]
    place = _places(paths, order)
    used: defaultdict[tuple[int, int, int], int] = defaultdict(int)
    for path in paths:
        for level, (parent, child) in enumerate(pairwise(path), 2):
            used[level, parent, child] += 1
    leaves = len(tree.experts) + 1
    return pd.DataFrame(
        {
            "child_level": level, "child": child, "child_y": place[level, child],
            "parent": parent, "parent_y": place[level - 1, parent],
            "name": tree.classes[child] if level == leaves else "",
            "subtasks": subtasks, "share": subtasks / len(paths),
        }
        for (level, parent, child), subtasks in sorted(used.items())
    )  # fmt: skip


def _places(paths: list[tuple[int, ...]], order: Sequence[int]) -> dict[tuple[int, int], float]:
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
    width = 1.2 + 0.058 * data["name"].map(_shown).str.len().max() if K > 30 else 3.9
    rows = -(-len(objectives) // int(12 / width))
    columns = -(-len(objectives) // rows)
    figure = drawing(max(4, width * columns), 0.8 + rows * (0.6 + pitch(K) * K))
    axes = panels(figure, len(objectives), columns, gridspec_kw={"wspace": 0.06})
    for ax, objective in zip(axes, objectives, strict=True):
        _draw_one_tree(ax, data[data["objective"] == objective], look(objective).colour)
        ax.set_title(plain(objective).replace(" ", "\n"), fontweight="bold", loc="left")
    _share_legend(figure)
    figure.suptitle(one_run(data))
    return figure, axes


@styled
def _draw_alone(edges: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    K = int((edges["child_level"] == edges["child_level"].max()).sum())
    figure = drawing(4.2, 0.8 + pitch(K) * K)
    axes = panels(figure, 1, 1)
    _draw_one_tree(axes[0], edges, _COLOUR)
    _share_legend(figure)
    return figure, axes


def _share_legend(figure: matplotlib.figure.Figure) -> None:
    shares = [Line2D([], [], color="#888888", linewidth=_width(s), label=f"{s:.0%}") for s in (0.1, 0.5, 1.0)]
    figure.legend(handles=shares, title="share of subtasks", loc="outside lower center", ncols=3, title_fontsize=8)


def _draw_one_tree(ax: Axes, edges: pd.DataFrame, colour: str) -> None:
    leaves = int(edges["child_level"].max())
    step = np.linspace(0, 1, 24)
    ease = step**2 * (3 - 2 * step)
    ends = edges[["child_level", "parent_y", "child_y"]].to_numpy()
    curves = [np.column_stack([level - 1 + step, top + (bottom - top) * ease]) for level, top, bottom in ends]
    widths = [_width(share) for share in edges["share"]]
    ax.add_collection(LineCollection(curves, colors=colour, alpha=0.45, linewidths=widths, zorder=1), autolim=False)
    is_leaf = edges["child_level"] == leaves
    trunk = edges.loc[edges["child_level"] == 2, ["parent", "parent_y"]].assign(level=1)
    experts = edges.loc[~is_leaf, ["child_level", "child", "child_y"]].to_numpy().tolist()
    for level, expert, y in [*trunk[["level", "parent", "parent_y"]].drop_duplicates().to_numpy().tolist(), *experts]:
        box = {"boxstyle": "round,pad=0.1,rounding_size=0.5", "facecolor": "white", "edgecolor": colour}
        ax.text(
            level,
            y,
            f"\N{HAIR SPACE}{expert:.0f}\N{HAIR SPACE}",
            ha="center",
            va="center",
            fontsize=7,
            zorder=3,
            bbox=box | {"linewidth": 0.8},
        )
    place: dict[str, Any] = {"xytext": (2, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    for name, y in edges.loc[is_leaf, ["name", "child_y"]].to_numpy():
        ax.annotate(plain(_shown(name)), (leaves, y), fontsize=7, **place)
    ax.set_xlim(0.7, leaves)
    ax.set_ylim(edges["child_y"].max() + 0.7, -0.7)
    ax.set_xticks(range(1, leaves + 1), [*(str(level) for level in range(1, leaves)), "subtask"], fontsize=7)
    ax.get_xticklabels()[-1].set_horizontalalignment("left")
    ax.set_xlabel("level (1: trunk)", loc="left", labelpad=1)
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _shown(name: str) -> str:
    """The name in one line, cut where it is so long that it would leave no room for the tree."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _width(share: float) -> float:
    return 0.6 + 6 * share


tree = Figure(
    "tree",
    "The neural tree",
    "The gates of one seed made hard: every subtask and every expert takes the parent with the largest effective "
    "attention at the selected epoch. Live experts only, numbered within their level (numbers mean nothing across "
    "seeds); an edge is as thick as the share of subtasks that pass it. One tree has no null by itself; how far trees "
    "agree beyond chance is the next figure's subject. Names of more than "
    f"{_LONGEST} letters are cut; the data hold them whole.",
    _tree_data,
    _draw_tree,
)


def _agreement_data(runs: RunSet) -> pd.DataFrame:
    """Columns of :class:`~kdx_analysis.runs.TreePairs`, one row per pair of explainers."""
    found = explainers(runs)
    if len(found) < 2:
        raise KdxError("one explainer makes no pair of trees; run several objectives or seeds")
    data = tree_pairs(found).table
    if data["value"].isna().all():
        raise KdxError("no tree groups its subtasks, all are collapsed or have one subtask per expert")
    return data


@styled
def _draw_agreement(data: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    within = data[data["shared"] == OBJECTIVE]
    rows = [
        (f"{plain(o)},\ntwo seeds", within["objective_a"] == o, look(o).colour) for o in in_order(data["objective_a"])
    ]
    rows = [row for row in rows if row[1].any()] or [("one objective,\ntwo seeds", within["value"].isna(), GREY)]
    names = [*(name for name, _, _ in rows), "two objectives,\none seed", "neither\nin common"]
    groups = [*((within[chosen], colour) for _, chosen, colour in rows)]
    groups += [(data[data["shared"] == shared], "#333333") for shared in (SEED, NEITHER)]
    figure = drawing(11, 1.1 + 0.42 * len(names))
    axes = panels(figure, 2, 2, sharey=True)
    for ax, (measure, label) in zip(axes, _MEASURES.items(), strict=True):
        for y, (pairs, colour) in enumerate(groups):
            _draw_pairs(ax, y, pairs[pairs["measure"] == measure], colour)
        ax.axhline(len(names) - 2.5, color=LIGHT, linewidth=0.6, linestyle=":")
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlabel(label)
    axes[0].set_xlim(-0.02, 1.02)
    low = min(0, data.loc[data["measure"] == CORRELATION, ["value", "null_low"]].min().min())
    axes[1].set_xlim(low - 0.03, 1.03)
    figure.suptitle(
        "points: pairs of runs · upright: their mean · grey: with random leaf order, mean and 95 % of draws"
    )
    return figure, axes


def _draw_pairs(ax: Axes, y: int, pairs: pd.DataFrame, colour: str) -> None:
    """One row: the null's range and mean, the pairs and their mean, and how many they are."""
    known = pairs.dropna(subset="value")
    if len(known):
        low, high = known["null_low"].mean(), known["null_high"].mean()
        ax.fill_between([low, high], y - 0.36, y + 0.36, color="#E4E4E4", linewidth=0, zorder=0)
        ax.vlines(known["null_mean"].mean(), y - 0.36, y + 0.36, color=GREY, linewidth=1, linestyle=(0, (2, 1)))
        at = y + (np.linspace(-0.26, 0.26, len(known)) if len(known) > 1 else np.zeros(1))
        ax.plot(known["value"], at, "o", color=colour, markersize=3.5, alpha=0.7, markeredgewidth=0, clip_on=False)
        ax.vlines(known["value"].mean(), y - 0.36, y + 0.36, color=colour, linewidth=2)
    undefined = len(pairs) - len(known)
    n = f"n = {counted([len(known)], 'pair')}" if len(pairs) else "not available"
    ax.annotate(
        n + (f"\n{undefined} undefined" if undefined else ""), (1, y), xycoords=("axes fraction", "data"),
        xytext=(6, 0), textcoords="offset points", va="center", fontsize=7, color=GREY,
    )  # fmt: skip


tree_agreement = Figure(
    "tree_agreement",
    "Are these trees reproducible?",
    "The trees of every two explainers compared. Robinson–Foulds distance: the groups of subtasks under an expert that "
    "stand in one tree only, as a share of the groups of both; a group counts only if it is the same to the last "
    "subtask. Cophenetic correlation: of the levels down to where two subtasks meet, over all pairs of subtasks, so "
    "that likeness counts by degrees. Above, runs of one objective that differ in the seed; "
    "below, runs of two objectives with the same seed (they begin with the same weights and gates) and runs that "
    "share neither. Pairs of few runs are not independent, so there is no interval. Grey: the null of the same trees "
    "with the subtasks of each permuted over its leaves, mean and the central 95 % of draws for one pair. A tree is a "
    "property of its objective only where the points above are more alike than grey and than those that share neither.",
    _agreement_data,
    _draw_agreement,
)
