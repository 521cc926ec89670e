"""What figures of pairs of subtasks share: their cosines, and matrices of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from kdx_analysis.drawing.classes import clustered, name_classes, unnamed
from kdx_analysis.drawing.style import (
    COLUMNS,
    INK,
    RASTERED,
    Width,
    counted,
    drawing,
    heading,
    in_order,
    inches,
    n_equals,
    panels,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Drawn
from kdx_analysis.runs import RunSet

_DOTTED = 30


def symmetric(pairs: pd.DataFrame, values: str, K: int, diagonal: float) -> np.ndarray:
    """K×K from one row per pair a_index < b_index.

    Pairs that are not there are NaN, repeated ones averaged.
    """
    matrix = np.full((K, K), np.nan)
    mean = pairs.groupby(["a_index", "b_index"])[values].mean()
    a, b = mean.index.get_level_values(0), mean.index.get_level_values(1)
    matrix[a, b] = matrix[b, a] = mean
    np.fill_diagonal(matrix, diagonal)
    return matrix


def cosines(explainers: RunSet) -> pd.DataFrame:
    """Conflict records of the plain hard loss on the train probe set, over all levels.

    There is no null without its cosine.

    Raises KdxError where none of them is defined.
    """
    frame = explainers.frame("conflict", split="train", term="hard", level="all")
    if not frame["cosine"].notna().any():
        raise KdxError(
            "no cosine of the hard term on the train probe set is defined; look at the runs' "
            "gradients"
        )
    return frame.assign(null_mean=frame["null_mean"].where(frame["cosine"].notna()))


def with_rows(data: pd.DataFrame, frame: pd.DataFrame, K: int) -> pd.DataFrame:
    """``data`` with a_row and b_row, in the order of classes clustered by cosines in ``frame``."""
    clusters = clustered(1 - symmetric(frame, "cosine", K, 1.0))
    rows = {k: row for row, k in enumerate(clusters.order)}
    return data.assign(a_row=data["a_index"].map(rows), b_row=data["b_index"].map(rows))


def draw_matrices(
    data: pd.DataFrame, width: Width, *, drawn: str, scale: str, limit: float
) -> Drawn:
    """One matrix a panel, all on one scale that diverges from 0.

    Below 0 the cells have dots, for readers and prints without colour, where they are large enough.

    Args:
        data: a, b, a_row, b_row, seeds, epochs, ``panel``, and what is ``below`` and ``above`` the
            diagonal.
        width: of the figure.
        drawn: what is drawn on either side of the diagonal.
        scale: what colours are.
        limit: the value of the deepest colours.
    """
    names = pd.concat([data.set_index("a_row")["a"], data.set_index("b_row")["b"]])
    names = names[~names.index.duplicated()].sort_index().tolist()
    K, titles = len(names), in_order(data["panel"])
    counts = data.groupby("panel")[["seeds", "epochs"]].max()
    apart = len(counts.drop_duplicates()) > 1
    columns = min(COLUMNS[width], len(titles))
    rows = -(-len(titles) // columns)
    letters = 14 if width == "page" else 12
    margin = 0.12 + 0.058 * min(letters, max(map(len, names)))
    side = min(2.6, (inches(width) - margin) / columns - 0.12)
    canvas = drawing(width, 1.1 + margin + rows * (side + 0.45))
    axes = panels(canvas, len(titles), columns, sharex=True, sharey=True)
    step = 1
    for i, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        _matrix(ax, data[data["panel"] == title], K, limit)
        n = f"\n{_runs(counts.loc[[title]])}" if apart else ""
        ax.set_title(wrapped(title, side) + n, loc="left")
        for which in ("x", "y"):
            step = max(step, name_classes(ax, which, names, side / K, start=0.5, letters=letters))
        ax.tick_params(labelbottom=i // columns == rows - 1, labelleft=i % columns == 0)
    bar = canvas.colorbar(
        axes[0].collections[0],
        ax=list(axes),
        orientation="horizontal",
        shrink=0.6,
        aspect=30,
        pad=0.01,
    )
    bar.set_label(wrapped(scale, 0.9 * canvas.get_figwidth()))
    bar.outline.set_visible(False)
    dots = "dotted: below 0" if K <= _DOTTED else ""
    parts = ["" if apart else _runs(counts), drawn, dots, unnamed(step)]
    heading(canvas, " · ".join(filter(None, parts)))
    return canvas, axes


def _matrix(ax: Axes, data: pd.DataFrame, K: int, limit: float) -> None:
    """K×K cells from −limit to limit, and dots on those below 0."""
    matrix = np.full((K, K), np.nan)
    high, low = data[["a_row", "b_row"]].max(axis=1), data[["a_row", "b_row"]].min(axis=1)
    matrix[high, low], matrix[low, high] = data["below"], data["above"]
    ax.set_facecolor("#DDDDDD")
    sns.heatmap(
        matrix,
        ax=ax,
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
        square=True,
        cbar=False,
        rasterized=K * K > RASTERED,
    )
    ax.plot([0, K], [0, K], color="white", linewidth=0.8)
    if K <= _DOTTED:
        y, x = np.nonzero(matrix < 0)
        ax.plot(x + 0.5, y + 0.5, ".", color=INK, markersize=1.6, markeredgewidth=0)


def _runs(counts: pd.DataFrame) -> str:
    """Seeds × epochs that a mean is over."""
    epochs = counted(counts["epochs"], "epoch").replace(" ", "\N{NO-BREAK SPACE}")
    return f"{n_equals(counts['seeds'])} × {epochs}"
