"""Neural trees: one for each objective, and how far the trees of different runs agree."""

from __future__ import annotations

import io
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from kdx_analysis.drawing.classes import LINE, LONGEST, letter_width, routed_clusters, shortened
from kdx_analysis.drawing.style import (
    COLUMNS,
    GREY,
    INK,
    LIGHT,
    Width,
    counted,
    drawing,
    heading,
    in_order,
    inches,
    one_run,
    panels,
    plain,
    style,
    styled,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.models.tree import Tree
from kdx_analysis.plots.figure import Drawn, Figure, explainers, of_first_seed
from kdx_analysis.plots.looks import look
from kdx_analysis.runs import RunSet, tree_pairs
from kdx_analysis.runs.trees import CORRELATION, DISTANCE, NEITHER, OBJECTIVE, SEED

_HIGHEST = 8.5  # inches, of a figure that fits a page
_GAP = 0.6
_MEASURES = {
    DISTANCE: "Robinson–Foulds distance, in [0, 1]\n0: all groups shared",
    CORRELATION: "cophenetic correlation, in [−1, 1]\n1: the same depths",
}


def tree_of(tree: Tree, ax: Axes | None = None) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """One tree as (figure, axes), its subtasks in the order of its classes as far as the tree
    allows.

    It is drawn into ``ax`` if one is given; that should be about 0.11 inches high for every class.
    """
    edges = edges_of(tree, range(len(tree.classes)))
    if ax is None:
        return _draw_alone(edges)
    _draw_one_tree(
        ax, edges, INK, _leaves(edges, inches("column"), LINE * max(30, len(tree.classes)))
    )
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
    """One row per edge: objective, seed, epoch, child_level, child, child_y, parent, parent_y,
    name, subtasks, share.

    Levels count from the trunk, 1; the classes are the last child_level. ``y`` counts leaves from
    the top.
    """
    order = routed_clusters(explainers(runs)).order
    keys = ["objective", "seed", "epoch"]
    frames = [
        edges_of(run.tree, order).assign(
            objective=run.objective, seed=run.seed, epoch=run.selected_epoch
        )
        for run in of_first_seed(runs)
    ]
    data = pd.concat(frames, ignore_index=True)
    return data[keys + [column for column in data.columns if column not in keys]]


def edges_of(tree: Tree, order: Sequence[int]) -> pd.DataFrame:
    """The edges of a tree with the places of their ends; leaves follow ``order`` as far as the tree
    allows.
    """
    paths = [(*path, k) for k, path in enumerate(tree.paths)]
    place = _places(paths, order)
    used: defaultdict[tuple[int, int, int], int] = defaultdict(int)
    for path in paths:
        for level, (parent, child) in enumerate(pairwise(path), 2):
            used[level, parent, child] += 1
    leaves = len(tree.experts) + 1
    return pd.DataFrame(
        {
            "child_level": level,
            "child": child,
            "child_y": place[level, child],
            "parent": parent,
            "parent_y": place[level - 1, parent],
            "name": tree.classes[child] if level == leaves else "",
            "subtasks": subtasks,
            "share": subtasks / len(paths),
        }
        for (level, parent, child), subtasks in sorted(used.items())
    )


def _places(paths: list[tuple[int, ...]], order: Sequence[int]) -> dict[tuple[int, int], float]:
    """Height of every node (level, index): leaves of one expert together, experts midway between
    their leaves.
    """
    rank = {k: i for i, k in enumerate(order)}
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for k, path in enumerate(paths):
        for level in range(1, len(path) + 1):
            groups[path[:level]].append(rank[k])
    keys = [
        [float(np.mean(groups[path[:level]])) for level in range(1, len(path) + 1)]
        for path in paths
    ]
    leaves = sorted(
        range(len(paths)), key=lambda k: [(m, paths[k][i]) for i, m in enumerate(keys[k])]
    )
    heights: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for y, k in enumerate(leaves):
        for level, index in enumerate(paths[k], 1):
            heights[level, index].append(y)
    return {node: (min(ys) + max(ys)) / 2 for node, ys in heights.items()}


@dataclass(frozen=True)
class _Leaves:
    """Where a tree's leaves are drawn, in rows from the top, and what names them.

    Attributes:
        places: the row of every leaf, from the upper one down.
        names: row and text of every name, or of every block of names beside their common expert.
        rows: their height.
        row: inches of a row.
        named: how many of the leaves are.
    """

    places: np.ndarray
    names: tuple[tuple[float, str], ...]
    rows: float
    row: float
    named: int


def _leaves(edges: pd.DataFrame, wide: float, most: float) -> _Leaves:
    """Leaves one a row where their names fit into ``most`` inches, else in blocks, each beside its
    expert.

    Blocks that would be too high together end early, with the number of subtasks that they leave
    unnamed.
    """
    leaves = edges[edges["child_level"] == edges["child_level"].max()].sort_values("child_y")
    K, letter = len(leaves), letter_width(leaves["name"])
    row = min(0.17, most / K)
    if row >= LINE:
        letters = min(LONGEST, int(0.45 * wide / letter))
        names = tuple((float(y), shortened(name, letters)) for y, name in enumerate(leaves["name"]))
        return _Leaves(np.arange(K), names, K, row, K)
    letters = int(0.52 * wide / letter)
    groups = [of["name"].tolist() for _, of in leaves.groupby("parent", sort=False)]
    blocks = [_block(names, letters) for names in groups]
    lines, gaps = sum(len(text) for text, _ in blocks), _GAP * (len(blocks) - 1)
    share = (most / LINE - gaps) / lines
    if share < 1:
        blocks = [
            _block(names, letters, max(1, int(share * len(text))))
            for names, (text, _) in zip(groups, blocks, strict=True)
        ]
    top, places, named = 0.0, list[float](), []
    for names, (text, _) in zip(groups, blocks, strict=True):
        places += ((np.arange(len(names)) + 0.5) * len(text) / len(names) + top - 0.5).tolist()
        named.append((top + (len(text) - 1) / 2, "\n".join(text)))
        top += len(text) + _GAP
    return _Leaves(
        np.array(places), tuple(named), top - _GAP, LINE, sum(count for _, count in blocks)
    )


def _block(names: Sequence[str], letters: int, lines: int | None = None) -> tuple[list[str], int]:
    """Names with commas between them, and how many are named where only so many ``lines`` may be
    taken.
    """
    whole = [shortened(name, letters - 1).replace(" ", "\N{NO-BREAK SPACE}") for name in names]
    for shown in range(len(whole), 0, -1):
        rest = f" +{len(whole) - shown}" if shown < len(whole) else ""
        text = textwrap.wrap(
            ", ".join(whole[:shown]) + rest, letters, break_long_words=False, break_on_hyphens=False
        )
        if lines is None or len(text) <= lines:
            return text, shown
    return [f"{len(whole)} subtasks"], 0


@styled
def _draw_tree(data: pd.DataFrame, width: Width = "page") -> Drawn:
    trees = dict(list(data.groupby("objective", sort=False)))
    rows = -(-len(trees) // COLUMNS[width])
    columns = -(-len(trees) // rows)
    wide = inches(width) / columns
    leaves = {o: _leaves(edges, wide, (_HIGHEST - 1) / rows - 0.6) for o, edges in trees.items()}
    highest = max(of.rows * of.row for of in leaves.values())
    figure = drawing(width, 1 + rows * (0.6 + highest))
    axes = panels(figure, len(trees), columns)
    for ax, (objective, edges) in zip(axes, trees.items(), strict=True):
        _draw_one_tree(ax, edges, look(str(objective)).colour, leaves[objective])
        ax.set_ylim(highest / leaves[objective].row - 0.3, -0.7)
        ax.set_title(wrapped(plain(objective), wide), fontweight="bold", loc="left")
    _share_legend(figure)
    unnamed = max(len(of.places) - of.named for of in leaves.values())
    note = (
        f"+n: so many more subtasks, up to {unnamed} a tree; the data name all" if unnamed else ""
    )
    heading(figure, " · ".join(filter(None, [one_run(data), note])))
    return figure, axes


@styled
def _draw_alone(edges: pd.DataFrame) -> Drawn:
    leaves = _leaves(edges, inches("column"), _HIGHEST)
    figure = drawing("column", 0.9 + leaves.rows * leaves.row)
    axes = panels(figure, 1, 1)
    _draw_one_tree(axes[0], edges, INK, leaves)
    _share_legend(figure)
    return figure, axes


def _share_legend(figure: matplotlib.figure.Figure) -> None:
    shares = [
        Line2D([], [], color="#888888", linewidth=_width(s), label=f"{s:.0%}")
        for s in (0.1, 0.5, 1.0)
    ]
    figure.legend(handles=shares, title="share of subtasks", loc="outside lower center", ncols=3)


def _draw_one_tree(ax: Axes, edges: pd.DataFrame, colour: str, leaves: _Leaves) -> None:
    last = int(edges["child_level"].max())
    rows = np.arange(len(leaves.places))
    parent_y, child_y = (
        np.interp(edges[end], rows, leaves.places) for end in ("parent_y", "child_y")
    )
    at = edges.assign(parent_y=parent_y, child_y=child_y)
    ax.add_collection(branches(at, colour, range(1, last + 1)), autolim=False)
    trunk = at.loc[at["child_level"] == 2, ["parent", "parent_y"]].assign(level=1)
    experts = (
        at.loc[at["child_level"] != last, ["child_level", "child", "child_y"]].to_numpy().tolist()
    )
    for level, expert, y in [
        *trunk[["level", "parent", "parent_y"]].drop_duplicates().to_numpy().tolist(),
        *experts,
    ]:
        node(ax, level, y, f"{expert:.0f}", colour)
    place: dict[str, Any] = {
        "xytext": (2, 0),
        "textcoords": "offset points",
        "va": "center",
        "annotation_clip": False,
    }
    for y, name in leaves.names:
        ax.annotate(plain(name), (last, y), fontsize=7, linespacing=1.07, **place)
    ax.set_xlim(0.7, last)
    ax.set_ylim(leaves.rows - 0.3, -0.7)
    ax.set_xticks(
        range(1, last + 1), [*(str(level) for level in range(1, last)), "subtask"], fontsize=7
    )
    ax.get_xticklabels()[-1].set_horizontalalignment("left")
    ax.set_xlabel("level (1: trunk)", loc="left", labelpad=1)
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def branches(edges: pd.DataFrame, colour: str, at: Sequence[float]) -> LineCollection:
    """Edges from parent_y on one level to child_y on the next, each as thick as its share; ``at``
    are x of levels.
    """
    step = np.linspace(0, 1, 24)
    ease = step**2 * (3 - 2 * step)
    curves = []
    for level, top, bottom in edges[["child_level", "parent_y", "child_y"]].to_numpy():
        parent, child = at[int(level) - 2], at[int(level) - 1]
        curves.append(
            np.column_stack([parent + (child - parent) * step, top + (bottom - top) * ease])
        )
    widths = [_width(share) for share in edges["share"]]
    return LineCollection(curves, colors=colour, alpha=0.45, linewidths=widths, zorder=1)


def node(ax: Axes, x: float, y: float, number: str, colour: str) -> None:
    """An expert's number in a box."""
    box = {
        "boxstyle": "round,pad=0.1,rounding_size=0.5",
        "facecolor": "white",
        "edgecolor": colour,
        "linewidth": 0.8,
    }
    text = f"\N{HAIR SPACE}{number}\N{HAIR SPACE}"
    ax.text(x, y, text, ha="center", va="center", fontsize=7, zorder=3, bbox=box)


def _width(share: float) -> float:
    return 0.6 + 6 * share


tree = Figure(
    "tree",
    "The neural tree",
    "The gates of one seed made hard: every subtask and every expert takes the parent with the "
    "largest effective attention at the selected epoch. Live experts only, numbered within their "
    "level (numbers mean nothing across seeds); an edge is as thick as the share of subtasks that "
    "pass it. Where there are too many subtasks for a row each, those of one expert are named in a "
    "block beside it. One tree has no null by itself; how far trees agree "
    f"beyond chance is another figure's subject, tree_agreement. Names of more than {LONGEST} "
    "letters are cut; the "
    "data hold them whole.",
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
        raise KdxError(
            "no tree groups its subtasks, all are collapsed or have one subtask per expert"
        )
    return data


@styled
def _draw_agreement(data: pd.DataFrame, width: Width = "page") -> Drawn:
    within = data[data["shared"] == OBJECTIVE]
    rows = [
        (f"{plain(o)},\ntwo seeds", within["objective_a"] == o, look(o).colour)
        for o in in_order(data["objective_a"])
    ]
    rows = [row for row in rows if row[1].any()] or [
        ("one objective,\ntwo seeds", within["value"].isna(), GREY)
    ]
    names = [*(name for name, _, _ in rows), "two objectives,\none seed", "neither\nin common"]
    groups = [*((within[chosen], colour) for _, chosen, colour in rows)]
    groups += [(data[data["shared"] == shared], INK) for shared in (SEED, NEITHER)]
    columns = 2 if width == "page" else 1
    figure = drawing(width, 0.7 + (0.6 + 0.36 * len(names)) * 2 / columns)
    axes = panels(figure, 2, columns, sharey=True)
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
    heading(
        figure,
        "points: pairs of runs · upright: their mean · grey: with random leaf order, mean and 95 % "
        "of draws",
    )
    return figure, axes


def _draw_pairs(ax: Axes, y: int, pairs: pd.DataFrame, colour: str) -> None:
    """One row: the null's range and mean, the pairs and their mean, and how many they are."""
    known = pairs.dropna(subset="value")
    if len(known):
        low, high = known["null_low"].mean(), known["null_high"].mean()
        ax.fill_between([low, high], y - 0.36, y + 0.36, color="#E4E4E4", linewidth=0, zorder=0)
        ax.vlines(
            known["null_mean"].mean(),
            y - 0.36,
            y + 0.36,
            color=GREY,
            linewidth=1,
            linestyle=(0, (2, 1)),
        )
        at = y + (np.linspace(-0.26, 0.26, len(known)) if len(known) > 1 else np.zeros(1))
        ax.plot(
            known["value"],
            at,
            "o",
            color=colour,
            markersize=3.5,
            alpha=0.7,
            markeredgewidth=0,
            clip_on=False,
        )
        ax.vlines(known["value"].mean(), y - 0.36, y + 0.36, color=colour, linewidth=2)
    undefined = len(pairs) - len(known)
    n = f"n = {counted([len(known)], 'pair')}" if len(pairs) else "not available"
    ax.annotate(
        n + (f"\n{undefined} undefined" if undefined else ""),
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        color=GREY,
    )


tree_agreement = Figure(
    "tree_agreement",
    "Are these trees reproducible?",
    "The trees of every two explainers compared. Robinson–Foulds distance: the groups of subtasks "
    "under an expert that stand in one tree only, as a share of the groups of both; a group counts "
    "only if it is the same to the last subtask. Cophenetic correlation: of the levels down to "
    "where two subtasks meet, over all pairs of subtasks, so that likeness counts by degrees. "
    "Above, runs of one objective that differ in the seed; below, runs of two objectives with the "
    "same seed (they begin with the same weights and gates) and runs that share neither. Pairs of "
    "few runs are not independent, so there is no interval. Grey: the null of the same trees with "
    "the subtasks of each permuted over its leaves, mean and 95 % of draws for one pair. A tree is "
    "a property of its objective only where the points above are more alike than grey and than "
    "those that share neither.",
    _agreement_data,
    _draw_agreement,
)
