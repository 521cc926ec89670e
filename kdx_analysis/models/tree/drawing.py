"""A neural tree drawn from its trunk on the left to its subtasks on the right."""

from __future__ import annotations

import io
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdx_analysis.drawing.classes import LINE, LONGEST, letter_width, shortened
from kdx_analysis.drawing.style import INK, canvas, drawing, inches, panels, plain, style, styled
from kdx_analysis.models.tree.tree import Tree

HIGHEST = 8.5  # inches, of a figure that fits a page
_GAP = 0.6  # of a row, between two blocks of names


def plot(tree: Tree, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """One tree as (figure, axes), its subtasks in the order of its classes where it allows.

    It is drawn into ``ax`` if one is given; that should be about 0.11 inches high for every class.
    """
    edges = edges_of(tree, range(len(tree.classes)))
    if ax is None:
        return _draw_alone(edges)
    # at least as many rows as make a common figure, so that few classes are not named in blocks
    rows = max(30, len(tree.classes))
    draw_tree(ax, edges, INK, placed_leaves(edges, inches("column"), LINE * rows))
    return canvas(ax, "column", 0)[0], np.array([ax])


def svg(tree: Tree) -> str:
    """The figure of :func:`plot` as an SVG element."""
    figure, _ = plot(tree)
    with style(), io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return "<svg" + buffer.getvalue().partition("<svg")[2]


def edges_of(tree: Tree, order: Sequence[int]) -> pd.DataFrame:
    """The edges of a tree with the places of their ends.

    Leaves follow ``order`` as far as the tree allows.
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
    """Height of every node (level, index).

    Leaves of one expert stand together, experts midway between their leaves.
    """
    rank = {k: i for i, k in enumerate(order)}
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for k, path in enumerate(paths):
        for level in range(1, len(path) + 1):
            groups[path[:level]].append(rank[k])
    middle = {node: float(np.mean(ranks)) for node, ranks in groups.items()}

    def key(k: int) -> list[tuple[float, int]]:
        """Level by level where the expert's leaves are in the middle, and then its number."""
        path = paths[k]
        return [(middle[path[:level]], path[level - 1]) for level in range(1, len(path) + 1)]

    leaves = sorted(range(len(paths)), key=key)
    heights: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for y, k in enumerate(leaves):
        for level, index in enumerate(paths[k], 1):
            heights[level, index].append(y)
    return {node: (min(ys) + max(ys)) / 2 for node, ys in heights.items()}


@dataclass(frozen=True)
class Leaves:
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


def placed_leaves(edges: pd.DataFrame, wide: float, most: float) -> Leaves:
    """Leaves one a row where their names fit into ``most`` inches, else in blocks.

    A block stands beside its expert, in a figure that is ``wide`` inches wide.

    Blocks that would be too high together end early, with the number of subtasks that they leave
    unnamed.
    """
    leaves = edges[edges["child_level"] == edges["child_level"].max()].sort_values("child_y")
    K, letter = len(leaves), letter_width(leaves["name"])
    row = min(0.17, most / K)
    if row >= LINE:
        letters = min(LONGEST, int(0.45 * wide / letter))
        names = tuple((float(y), shortened(name, letters)) for y, name in enumerate(leaves["name"]))
        return Leaves(np.arange(K), names, K, row, K)
    letters = int(0.52 * wide / letter)
    groups = [group["name"].tolist() for _, group in leaves.groupby("parent", sort=False)]
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
    count = sum(shown for _, shown in blocks)
    return Leaves(np.array(places), tuple(named), top - _GAP, LINE, count)


def _block(names: Sequence[str], letters: int, lines: int | None = None) -> tuple[list[str], int]:
    """Names with commas between them, and how many are named.

    All are, unless only so many ``lines`` may be taken.
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
def _draw_alone(edges: pd.DataFrame) -> tuple[Figure, np.ndarray]:
    leaves = placed_leaves(edges, inches("column"), HIGHEST)
    figure = drawing("column", 0.9 + leaves.rows * leaves.row)
    axes = panels(figure, 1, 1)
    draw_tree(axes[0], edges, INK, leaves)
    share_legend(figure)
    return figure, axes


def share_legend(figure: Figure) -> None:
    """Say how thick edges are."""
    shares = [
        Line2D([], [], color="#888888", linewidth=_width(share), label=f"{share:.0%}")
        for share in (0.1, 0.5, 1.0)
    ]
    figure.legend(handles=shares, title="share of subtasks", loc="outside lower center", ncols=3)


def draw_tree(ax: Axes, edges: pd.DataFrame, colour: str, leaves: Leaves) -> None:
    """Draw the ``edges`` of a tree, as :func:`edges_of` has them, and name its ``leaves``."""
    last = int(edges["child_level"].max())
    rows = np.arange(len(leaves.places))
    parent_y, child_y = (
        np.interp(edges[end], rows, leaves.places) for end in ("parent_y", "child_y")
    )
    at = edges.assign(parent_y=parent_y, child_y=child_y)
    ax.add_collection(branches(at, colour, range(1, last + 1)), autolim=False)
    for level, expert, y in nodes(at):
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


def nodes(edges: pd.DataFrame) -> list[tuple[float, float, float]]:
    """Level, number and height of all experts at the ends of ``edges``, the trunk first."""
    last = edges["child_level"].max()
    trunk = edges.loc[edges["child_level"] == 2, ["parent", "parent_y"]].assign(level=1)
    trunk = trunk[["level", "parent", "parent_y"]].drop_duplicates()
    experts = edges.loc[edges["child_level"] != last, ["child_level", "child", "child_y"]]
    return [*trunk.to_numpy().tolist(), *experts.to_numpy().tolist()]


def branches(edges: pd.DataFrame, colour: str, at: Sequence[float]) -> LineCollection:
    """Edges from parent_y on one level to child_y on the next, each as thick as its share.

    ``at`` are x of levels.
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
