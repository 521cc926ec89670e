"""Two trees face to face: what another objective, or another seed, regroups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from kdx_analysis import null
from kdx_analysis.drawing.classes import LINE, pitch, shortened, unnamed
from kdx_analysis.drawing.style import (
    GREY,
    INK,
    LETTER,
    Width,
    drawing,
    heading,
    in_order,
    inches,
    panels,
    plain,
    signed,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.models.tree.drawing import branches, edges_of, node, nodes
from kdx_analysis.plots.comparisons import against_kd
from kdx_analysis.plots.figure import Drawn, explainers, figure
from kdx_analysis.plots.looks import look
from kdx_analysis.plots.routing import first_seed, routed_clusters
from kdx_analysis.runs import Run, RunSet

_PERMUTATIONS = 199
_KEYS = ["pair", "side", "objective", "seed"]


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per edge of either tree of a pair, with the columns of the tree's figure.

    Columns pair (its panel's title), side (left, right), objective, seed, child_level, child,
    child_y, parent, parent_y, name, subtasks, share, and of the pair correlation (cophenetic, NaN
    where undefined), null_mean, null_low, null_high (leaves permuted), permutations.
    """
    order = routed_clusters(explainers).order
    generator = torch.Generator().manual_seed(0)  # the same runs have the same null
    frames = []
    for a, b in _pairs(explainers):
        left = edges_of(a.tree, order)
        leaves = left[left["child_level"] == left["child_level"].max()].sort_values("child_y")
        right = edges_of(b.tree, leaves["child"].tolist())
        likeness = a.tree.null("cophenetic_correlation", b.tree, _PERMUTATIONS, generator)
        of_pair: dict[str, Any] = {
            "pair": f"{a.objective}, seed {a.seed} | {b.objective}, seed {b.seed}",
            "correlation": likeness.value,
            "null_mean": likeness.null_mean,
            "null_low": likeness.null_low,
            "null_high": likeness.null_high,
            "permutations": likeness.permutations,
        }
        for side, run, edges in (("left", a, left), ("right", b, right)):
            of_run: dict[str, Any] = {"side": side, "objective": run.objective, "seed": run.seed}
            frames.append(edges.assign(**of_run, **of_pair))
    data = pd.concat(frames, ignore_index=True)
    return data[_KEYS + [column for column in data.columns if column not in _KEYS]]


def _pairs(explainers: RunSet) -> list[tuple[Run, Run]]:
    """KD with another seed, with its nearest control and with hard labels.

    Without KD, the same of the first objective.
    """
    first = {run.objective: run for run in first_seed(explainers)}
    try:
        base, others = against_kd(RunSet(tuple(first.values())))
    except KdxError:
        base, *rest = first
        others = dict.fromkeys(rest, "")
    seeds = explainers.filter(objective=base).runs
    ends = dict.fromkeys([*others][:1] + [*others][-1:])
    pairs = [(seeds[0], seeds[1])] if len(seeds) > 1 else []
    pairs += [(first[base], first[other]) for other in ends]
    if not pairs:
        raise KdxError("one explainer makes no pair of trees; run several objectives or seeds")
    return pairs


@figure(
    title="Tree against tree",
    caption="KD's tree beside its tree with another seed, beside that of the nearest control with "
    "the same seed, and beside that of hard labels (or of the objective farthest from KD that was "
    "run): a tanglegram. Lines join every subtask to itself and change their grey from one expert "
    "of the left tree to the next; the right tree's leaves are turned, as far as it allows, to "
    "follow the left one's. Edges are as thick as the share of subtasks that pass them; the trunks "
    "are outermost, experts are numbered within their level. Below: the cophenetic correlation of "
    "the two trees and the range that holds it with 95 % if leaves are permuted. The first panel "
    "says how much of what the others show another seed does too.",
    table=_table,
    wants=explainers,
    follows="tree",
)
def tanglegram(data: pd.DataFrame, width: Width = "page") -> Drawn:
    pairs = in_order(data["pair"])
    K = int(data.groupby(["pair", "side"])["child"].max().max()) + 1
    K = max(K, data.loc[data["name"] != "", "name"].nunique())
    columns = len(pairs) if width == "page" else 1
    rows = -(-len(pairs) // columns)
    row = pitch(K, min(7.0, 8.2 / rows - 0.75))
    canvas = drawing(width, 0.5 + rows * (row * K + 0.75))
    axes = panels(canvas, len(pairs), columns)
    wide = inches(width) / columns - 0.15
    # rounded, since a quotient just above a whole number by rounding would skip a name too many
    step = int(np.ceil(round(LINE / row, 6)))
    for ax, pair in zip(axes, pairs, strict=True):
        _draw_pair(ax, data[data["pair"] == pair], wide, step)
        ax.set_ylim(K - 0.3, -0.7)
    follow = (
        "names follow the left tree; lines lead to the same subtask in the right one (n = 1 pair a "
        "panel)"
    )
    heading(canvas, " · ".join(filter(None, [follow, unnamed(step)])))
    return canvas, axes


def _draw_pair(ax: Axes, data: pd.DataFrame, wide: float, step: int) -> None:
    """x is in inches: the left tree, the names, the lines, the right tree."""
    letters = min(24, int(0.38 * wide / LETTER))
    names = [shortened(name, letters) for name in data["name"].unique()]
    named = LETTER * max(map(len, names)) + 0.06
    tree = 0.38 * (wide - named)
    ends = {}
    for side, edges in data.groupby("side", sort=False):
        x = np.linspace(0.08, tree, int(edges["child_level"].max()))
        _draw_tree(ax, edges, x if side == "left" else wide - x, numbered=step == 1)
        leaves = edges[edges["child_level"] == edges["child_level"].max()]
        ends[side] = leaves.set_index("name")[["child_y", "parent"]]
    left, right = ends["left"].sort_values("child_y"), ends["right"]["child_y"]
    for name, y in list(left["child_y"].items())[::step]:
        ax.text(tree + 0.03, y, plain(shortened(name, letters)), fontsize=7, va="center")
    group = (left["parent"] != left["parent"].shift()).cumsum() % 2
    lines = [
        [(tree + named, y), (wide - tree, place)]
        for y, place in zip(left["child_y"], right.reindex(left.index), strict=True)
    ]
    colours = [INK if odd else "#999999" for odd in group]
    joined = LineCollection(lines, colors=colours, linewidths=0.8 if step == 1 else 0.5)
    ax.add_collection(joined, autolim=False)
    first = data.iloc[0]
    ax.set_title(wrapped(plain(first["pair"]), wide), fontweight="bold", loc="left")
    ax.set_xlabel(wrapped(_correlation(first), wide), loc="left", color=GREY)
    ax.set_xlim(0, wide)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _draw_tree(ax: Axes, edges: pd.DataFrame, x: np.ndarray, *, numbered: bool) -> None:
    """One of the two trees, with its levels at ``x``."""
    colour = look(edges["objective"].iloc[0]).colour
    ax.add_collection(branches(edges, colour, x.tolist()), autolim=False)
    for level, expert, y in nodes(edges) if numbered else ():
        node(ax, float(x[int(level) - 1]), y, f"{expert:.0f}", colour)


def _correlation(row: pd.Series) -> str:
    """How alike the two trees are, and its null, in words."""
    if np.isnan(row["correlation"]):
        return "cophenetic correlation undefined: a tree groups nothing"
    return (
        f"cophenetic correlation {signed(row['correlation'])}, "
        f"{null.shown(row['null_low'], row['null_high'], signed)}"
    )
