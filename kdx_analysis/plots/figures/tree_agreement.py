"""How far the trees of different runs agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kdx_analysis.drawing.style import (
    GREY,
    INK,
    LIGHT,
    Width,
    counted,
    drawing,
    heading,
    in_order,
    panels,
    plain,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Drawn, explainers, figure
from kdx_analysis.plots.looks import look
from kdx_analysis.runs import RunSet
from kdx_analysis.runs.trees import CORRELATION, DISTANCE, NEITHER, OBJECTIVE, SEED

_AXES = {
    DISTANCE: "Robinson–Foulds distance, in [0, 1]\n0: all groups shared",
    CORRELATION: "cophenetic correlation, in [−1, 1]\n1: the same depths",
}

Group = tuple[str, pd.DataFrame, str]


def _table(explainers: RunSet) -> pd.DataFrame:
    """Columns of :class:`~kdx_analysis.runs.TreePairs`, one row per pair of explainers."""
    if len(explainers) < 2:
        raise KdxError("one explainer makes no pair of trees; run several objectives or seeds")
    data = explainers.tree_pairs.table
    if data["value"].isna().all():
        raise KdxError(
            "no tree groups its subtasks, all are collapsed or have one subtask per expert"
        )
    return data


@figure(
    title="Are these trees reproducible?",
    caption="The trees of every two explainers compared. Robinson–Foulds distance: the groups of "
    "subtasks under an expert that stand in one tree only, as a share of the groups of both; a "
    "group counts only if it is the same to the last subtask. Cophenetic correlation: of the "
    "levels down to where two subtasks meet, over all pairs of subtasks, so that likeness counts "
    "by degrees. Above, runs of one objective that differ in the seed; below, runs of two "
    "objectives with the same seed (they begin with the same weights and gates) and runs that "
    "share neither. Pairs of few runs are not independent, so there is no interval. Grey: the null "
    "of the same trees with the subtasks of each permuted over its leaves, mean and 95 % of draws "
    "for one pair. A tree is a property of its objective only where the points above are more "
    "alike than grey and than those that share neither.",
    table=_table,
    wants=explainers,
    follows="tanglegram",
)
def tree_agreement(data: pd.DataFrame, width: Width = "page") -> Drawn:
    groups = _groups(data)
    columns = 2 if width == "page" else 1
    canvas = drawing(width, 0.7 + (0.6 + 0.36 * len(groups)) * 2 / columns)
    axes = panels(canvas, 2, columns, sharey=True)
    for ax, (metric, label) in zip(axes, _AXES.items(), strict=True):
        for y, (_, pairs, colour) in enumerate(groups):
            _draw_pairs(ax, y, pairs[pairs["measure"] == metric], colour)
        ax.axhline(len(groups) - 2.5, color=LIGHT, linewidth=0.6, linestyle=":")
        ax.set_yticks(range(len(groups)), [name for name, _, _ in groups])
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.set_xlabel(label)
    axes[0].set_xlim(-0.02, 1.02)
    low = min(0, data.loc[data["measure"] == CORRELATION, ["value", "null_low"]].min().min())
    axes[1].set_xlim(low - 0.03, 1.03)
    heading(
        canvas,
        "points: pairs of runs · upright: their mean · grey: with random leaf order, mean and 95 % "
        "of draws",
    )
    return canvas, axes


def _groups(data: pd.DataFrame) -> list[Group]:
    """The rows from the top down, each with its name, its pairs and its colour.

    First those of one objective, then of one seed, then with neither in common.
    """
    within = data[data["shared"] == OBJECTIVE]
    rows: list[Group] = []
    for objective in in_order(data["objective_a"]):
        pairs = within[within["objective_a"] == objective]
        if len(pairs):
            rows.append((f"{plain(objective)},\ntwo seeds", pairs, look(objective).colour))
    if not rows:
        rows = [("one objective,\ntwo seeds", within[within["value"].isna()], GREY)]
    seed, neither = (data[data["shared"] == shared] for shared in (SEED, NEITHER))
    names = "two objectives,\none seed", "neither\nin common"
    return [*rows, (names[0], seed, INK), (names[1], neither, INK)]


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
        # side by side, so that none covers another
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
