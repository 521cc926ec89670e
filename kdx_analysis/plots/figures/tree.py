"""Neural trees, one for each objective."""

from __future__ import annotations

import pandas as pd

from kdx_analysis.drawing.classes import LONGEST
from kdx_analysis.drawing.style import (
    COLUMNS,
    Width,
    drawing,
    heading,
    inches,
    panels,
    plain,
    wrapped,
)
from kdx_analysis.models.tree.drawing import (
    HIGHEST,
    draw_tree,
    edges_of,
    placed_leaves,
    share_legend,
)
from kdx_analysis.plots.figure import Drawn, explainers, figure
from kdx_analysis.plots.looks import look
from kdx_analysis.plots.routing import first_seed, one_run, routed_clusters
from kdx_analysis.runs import RunSet


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per edge.

    Columns objective, seed, epoch, child_level, child, child_y, parent, parent_y, name, subtasks,
    share.

    Levels count from the trunk, 1; the classes are the last child_level. ``y`` counts leaves from
    the top.
    """
    order = routed_clusters(explainers).order
    keys = ["objective", "seed", "epoch"]
    frames = [
        edges_of(run.tree, order).assign(
            objective=run.objective, seed=run.seed, epoch=run.selected_epoch
        )
        for run in first_seed(explainers)
    ]
    data = pd.concat(frames, ignore_index=True)
    return data[keys + [column for column in data.columns if column not in keys]]


@figure(
    title="The neural tree",
    caption="The gates of one seed made hard: every subtask and every expert takes the parent with "
    "the largest effective attention at the selected epoch. Live experts only, numbered within "
    "their level (numbers mean nothing across seeds); an edge is as thick as the share of subtasks "
    "that pass it. Where there are too many subtasks for a row each, those of one expert are named "
    "in a block beside it. One tree has no null by itself; how far trees agree beyond chance is "
    f"another figure's subject, tree_agreement. Names of more than {LONGEST} letters are cut; the "
    "data hold them whole.",
    table=_table,
    wants=explainers,
    follows="expert_use",
)
def tree(data: pd.DataFrame, width: Width = "page") -> Drawn:
    trees = dict(list(data.groupby("objective", sort=False)))
    rows = -(-len(trees) // COLUMNS[width])
    columns = -(-len(trees) // rows)
    wide, most = inches(width) / columns, (HIGHEST - 1) / rows - 0.6
    leaves = {o: placed_leaves(edges, wide, most) for o, edges in trees.items()}
    highest = max(placed.rows * placed.row for placed in leaves.values())
    canvas = drawing(width, 1 + rows * (0.6 + highest))
    axes = panels(canvas, len(trees), columns)
    for ax, (objective, edges) in zip(axes, trees.items(), strict=True):
        draw_tree(ax, edges, look(str(objective)).colour, leaves[objective])
        ax.set_ylim(highest / leaves[objective].row - 0.3, -0.7)
        ax.set_title(wrapped(plain(objective), wide), fontweight="bold", loc="left")
    share_legend(canvas)
    unnamed = max(len(placed.places) - placed.named for placed in leaves.values())
    note = f"+n: so many more subtasks, up to {unnamed} a tree; the data name all"
    heading(canvas, " · ".join([one_run(data), *([note] if unnamed else [])]))
    return canvas, axes
