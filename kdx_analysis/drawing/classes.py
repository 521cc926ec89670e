"""Classes in an order that puts alike ones side by side, and their names on axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from scipy.cluster.hierarchy import cophenet, leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from kdx_analysis.drawing.style import GREY, LETTER, LIGHT, plain

LINE = 0.104  # inches, of a line of 7 pt
LONGEST = 24


@dataclass(frozen=True)
class Clusters:
    """A dendrogram of K classes: the order of its leaves, and where their branches join.

    ``joins[i]`` is the height (distance) at which the branch of the i-th leaf joins that of the
    next, K − 1 in all; heights being ultrametric, the dendrogram follows from them.

    ``joins`` are the K − 1 heights (distances), from which, heights being ultrametric, the
    dendrogram follows.
    """

    order: tuple[int, ...]
    joins: tuple[float, ...]


def clustered(distances: np.ndarray) -> Clusters:
    """Classes by average linkage of their K×K ``distances``, leaves ordered optimally.

    NaN counts as the mean of the others.
    """
    K = len(distances)
    known = distances[~np.isnan(distances)]
    # a pair that no run defines says nothing, so it is neither near nor far
    filled = np.where(np.isnan(distances), known.mean() if len(known) else 0.0, distances)
    if K < 3:
        return Clusters(tuple(range(K)), tuple(float(filled[k, k + 1]) for k in range(K - 1)))
    condensed = squareform(filled, checks=False)
    joined = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
    order = [int(k) for k in leaves_list(joined)]
    heights = squareform(cophenet(joined))
    return Clusters(tuple(order), tuple(float(h) for h in heights[order[:-1], order[1:]]))


def dendrogram(ax: Axes, joins: Sequence[float]) -> None:
    """Draw the dendrogram of ``joins``, as :class:`Clusters` has them.

    Leaves are at 0.5, 1.5, … on the right, 0 at the top.
    """
    # place, height, first and last leaf
    branches = [(k + 0.5, 0.0, k, k) for k in range(len(joins) + 1)]
    of_leaf = list(range(len(branches)))
    lines = []
    for gap in np.argsort(joins, kind="stable"):
        upper, lower = branches[of_leaf[gap]], branches[of_leaf[gap + 1]]
        height = float(joins[gap])
        lines.append(
            [(upper[1], upper[0]), (height, upper[0]), (height, lower[0]), (lower[1], lower[0])]
        )
        branches.append(((upper[0] + lower[0]) / 2, height, upper[2], lower[3]))
        for leaf in range(upper[2], lower[3] + 1):
            of_leaf[leaf] = len(branches) - 1
    ax.add_collection(LineCollection(lines, colors=GREY, linewidths=0.6), autolim=False)
    highest = max(joins, default=0.0) or 1.0
    ax.set_xlim(1.04 * highest, 0)
    ax.set_ylim(len(joins) + 1, 0)
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(f"routing\ndistance,\n{highest:.2g} to 0", labelpad=3, loc="left")
    ax.spines["left"].set_visible(False)


def pitch(K: int, most: float = 5.8) -> float:
    """Inches a row of K classes.

    Room for a name of 7 pt, or less where K rows would be higher than ``most``.
    """
    return min(0.17, max(LINE, most / K) if K <= 30 else most / K)


def shortened(name: object, letters: int = LONGEST) -> str:
    """The name in one line, cut where it is longer than so many letters."""
    line = " ".join(str(name).split())
    return line if len(line) <= letters else f"{line[: letters - 1]}…"


def letter_width(names: Iterable[object]) -> float:
    """Inches of a letter of these names in 7 pt, on the average; ordinary words' at least."""
    text = " ".join(" ".join(str(name).split()) for name in names)
    font = FontProperties(family="DejaVu Sans", size=7)
    wide, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return max(LETTER, wide / 72 / max(1, len(text)))


def name_classes(
    ax: Axes,
    which: Literal["x", "y"],
    names: Sequence[str],
    pitch: float,
    *,
    start: float = 0,
    letters: int = LONGEST,
    staggered: bool = False,
) -> int:
    """Name the classes at start, start + 1, … on an axis with ``pitch`` inches a class.

    All are named, or every few.

    ``staggered`` names stand in two columns where one would not hold them. Returns 1 where all are
    named, 2 where every second is, and so on.
    """
    columns = 2 if staggered and pitch < LINE else 1
    # rounded, since a quotient just above a whole number by rounding would skip a name too many
    step = int(np.ceil(round(LINE / pitch / columns, 6)))
    shown = {start + i: plain(shortened(names[i], letters)) for i in range(0, len(names), step)}
    axis, rotation = (ax.xaxis, 90) if which == "x" else (ax.yaxis, 0)
    places = list(shown)
    for minor, at in (
        (False, places[::columns]),
        (True, places[1::columns] if columns == 2 else []),
    ):
        axis.set_ticks(
            at, [shown[place] for place in at], minor=minor, fontsize=7, rotation=rotation
        )
    axis.set_tick_params(length=1.5, pad=1.5)
    if columns == 2:
        longest = max(len(shown[place]) for place in places[::2])
        axis.set_tick_params(
            which="minor", length=72 * LETTER * longest + 4, pad=1.5, color=LIGHT, width=0.4
        )
    return step


def unnamed(step: int) -> str:
    """What to say where only every ``step``-th class is named; nothing where all are."""
    if step == 1:
        return ""
    return f"every {step}{ {2: 'nd', 3: 'rd'}.get(step, 'th') } class is named, the data name all"
