"""Which experts every subtask's features flow through, level by level."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

from kdx_analysis.drawing.classes import LINE, name_classes, pitch, unnamed
from kdx_analysis.drawing.style import (
    COLUMNS,
    GREY,
    Width,
    drawing,
    heading,
    in_order,
    panels,
    plain,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Drawn, explainers, figure
from kdx_analysis.plots.looks import look
from kdx_analysis.plots.routing import first_seed, one_run, routed_clusters
from kdx_analysis.runs import Run, RunSet

_GAPS = 0.2  # of the height, between the experts of a level
_WIDE = 0.05  # of a node, in levels

Span = tuple[float, float]

_COLUMNS = [
    "objective",
    "seed",
    "epoch",
    "level",
    "heads",
    "source",
    "row",
    "target",
    "mass",
    "even",
]


def _stages(run: Run) -> pd.DataFrame:
    """Mass that flows from every subtask and expert to every expert one level nearer the image.

    It is at most 1 a level.

    Gates that read the input are composed per sample, so of them only the last gates' mean is a
    flow.
    """
    gates, paths = run.at_selected("gates"), run.at_selected("pathways")
    use = paths.groupby(["level", "expert"])["effective"].mean()
    heads = int(gates["level"].max())
    stages = []
    for level, rows in gates.groupby("level"):
        several = rows["parent"].nunique() > 1
        if several and (level == heads or "gates_by_class" not in run.kinds):
            index = rows["child_index"]
            carried = 1 / index.nunique() if level == heads else index.map(use[level])
            mass = carried * rows["effective"]
            stages.append(rows.assign(heads=level == heads, mass=mass, source_mass=carried))
    if not stages:
        raise KdxError(
            "no gate has a choice, every level has one expert; give the explainers more experts"
        )
    return pd.concat(stages).assign(objective=run.objective, seed=run.seed)


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per source and target, a source's targets being experts of the level below it.

    Columns objective, seed, epoch, level (of the source), heads, source, row (of a subtask's, in
    clustered order, else the expert's index), target, mass (shares of all subtasks), even (what
    even attention would make of it).
    """
    frame = pd.concat([_stages(run) for run in first_seed(explainers)], ignore_index=True)
    rows = {k: row for row, k in enumerate(routed_clusters(explainers).order)}
    frame["row"] = frame["child_index"].where(~frame["heads"], frame["child_index"].map(rows))
    experts = frame.groupby(["objective", "level"])["parent"].transform("nunique")
    frame["even"] = frame["source_mass"] / experts
    frame = frame.rename(columns={"child": "source", "parent": "target"})
    return frame[_COLUMNS].reset_index(drop=True)


@figure(
    title="How features flow to every subtask",
    caption="Pathways of effective attention A of one seed at the selected epoch, from the experts "
    "on the left to the subtasks on the right: a band is as high as the share of all subtasks' "
    "features that pass it, a node as high as the expert's use; darker, the strongest parent of "
    "each. Subtasks stand in the order of the gates' figure, experts where few bands cross, with "
    "their index (numbers mean nothing across seeds, so flows are never averaged over them). "
    "Levels with a single expert are left out. Of gates that read the input only the last are "
    "drawn, since their pathways are composed per sample. Even attention would send every band 1/N "
    "of its source, which stands in the data.",
    table=_table,
    wants=explainers,
    follows="gates",
)
def flow(data: pd.DataFrame, width: Width = "page") -> Drawn:
    objectives = in_order(data["objective"])
    names = data[data["heads"]].drop_duplicates("row").sort_values("row")["source"].tolist()
    rows = -(-len(objectives) // COLUMNS[width])
    columns = -(-len(objectives) // rows)
    row = pitch(len(names), min(5.8, 8.0 / rows - 0.6))
    height = max(1.3, row * len(names))
    canvas = drawing(width, 0.7 + rows * (height + 0.6))
    axes = panels(canvas, len(objectives), columns)
    wide = canvas.get_figwidth() / columns
    step = 1
    for i, (ax, objective) in enumerate(zip(axes, objectives, strict=True)):
        _draw_one(ax, data[data["objective"] == objective], look(objective).colour, height)
        ax.set_title(wrapped(plain(objective), wide), fontweight="bold", loc="left")
        if i % columns == columns - 1 or i == len(objectives) - 1:
            ax.yaxis.tick_right()
            letters = 24 if width == "page" else 12
            step = name_classes(ax, "y", names, height / len(names), start=0.5, letters=letters)
            ax.tick_params(axis="y", length=0)
        else:
            ax.set_yticks([])
    parts = [one_run(data), "darker: to the strongest parent", unnamed(step)]
    heading(canvas, " · ".join(filter(None, parts)))
    return canvas, axes


def _draw_one(ax: Axes, data: pd.DataFrame, colour: str, inches: float) -> None:
    """Levels from left to right as in a tree, subtasks last; a band's height is its mass."""
    levels = sorted(data["level"].unique(), reverse=True)
    K = int(data.loc[data["heads"], "row"].max()) + 1
    spans: dict[int, Span] = {row: (row + _GAPS / 2, row + 1 - _GAPS / 2) for row in range(K)}
    for level in levels:
        stage = data[data["level"] == level]
        _nodes(ax, level, spans, colour)
        targets = _placed(stage, spans, K)
        _bands(ax, int(level), stage, spans, targets, K, colour)
        spans = targets
        for expert, (top, bottom) in spans.items():
            if (bottom - top) / K * inches >= LINE:
                ax.text(
                    level - 1 - 2 * _WIDE,
                    (top + bottom) / 2,
                    str(expert),
                    ha="right",
                    va="center",
                    fontsize=7,
                )
    lowest = int(levels[-1]) - 1
    _nodes(ax, lowest, spans, colour)
    ax.set_xlim(lowest - 0.3, levels[0] + _WIDE)
    ax.set_ylim(K, 0)
    below = [str(level) for level in range(lowest, int(levels[0]))]
    ax.set_xticks(range(lowest, int(levels[0]) + 1), [*below, "subtask"])
    ax.get_xticklabels()[-1].set_horizontalalignment("right")
    ax.set_xlabel("level", loc="left", labelpad=1)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _placed(stage: pd.DataFrame, sources: Mapping[int, Span], K: int) -> dict[int, Span]:
    """Every expert's span, as high as its mass; the order follows the middle of what flows in."""
    middle = stage["row"].map({row: sum(span) / 2 for row, span in sources.items()})
    mass = stage.groupby("target")["mass"].sum()
    centre = (stage["mass"] * middle).groupby(stage["target"]).sum() / mass.where(mass > 0)
    order = centre.fillna(K).sort_values(kind="stable").index
    gap = _GAPS * K / max(1, len(order) - 1)
    top, spans = 0.0, dict[int, Span]()
    for expert in order:
        spans[int(expert)] = (top, top + (1 - _GAPS) * K * mass[expert])
        top = spans[int(expert)][1] + gap
    return spans


def _bands(
    ax: Axes,
    level: int,
    stage: pd.DataFrame,
    sources: Mapping[int, Span],
    targets: Mapping[int, Span],
    K: int,
    colour: str,
) -> None:
    """Bands between a level and the one below, at each end in the order of the other end."""
    place = {node: i for i, node in enumerate(targets)}
    rank = {row: i for i, row in enumerate(sources)}
    high = (1 - _GAPS) * K * stage["mass"]
    ends = {"at": stage["target"].map(place), "from": stage["row"].map(rank), "high": high}
    stage = stage.assign(**ends).sort_values(["from", "at"])
    tops = stage["row"].map({row: top for row, (top, _) in sources.items()})
    leaves = tops + stage.groupby("row")["high"].cumsum() - stage["high"]
    tops = stage["target"].map({expert: top for expert, (top, _) in targets.items()})
    enters = tops + stage.groupby("target")["high"].cumsum() - stage["high"]
    strongest = stage["mass"] == stage.groupby("row")["mass"].transform("max")
    step = np.linspace(0, 1, 20)
    ease = step**2 * (3 - 2 * step)
    x = level - 1 + _WIDE + (1 - 2 * _WIDE) * step
    for chosen, alpha in ((~strongest, 0.18), (strongest, 0.55)):
        bands = []
        for start, end, high in zip(
            enters[chosen], leaves[chosen], stage.loc[chosen, "high"], strict=True
        ):
            upper = start + (end - start) * ease
            edges = [np.column_stack([x, upper]), np.column_stack([x, upper + high])[::-1]]
            bands.append(np.concatenate(edges))
        ax.add_collection(
            PolyCollection(
                bands, facecolors=colour, alpha=alpha, linewidths=0, rasterized=len(stage) > 200
            ),
            autolim=False,
        )


def _nodes(ax: Axes, level: int, spans: Mapping[int, Span], colour: str) -> None:
    for top, bottom in spans.values():
        ax.add_patch(
            Rectangle(
                (level - _WIDE, top),
                2 * _WIDE,
                bottom - top,
                facecolor=colour,
                edgecolor=GREY,
                linewidth=0.2,
            )
        )
