"""The figure of one conflict record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdx_analysis.drawing.style import canvas, styled

if TYPE_CHECKING:
    from kdx_analysis.probes.conflict.record import ConflictRecord


@styled
def plot(record: ConflictRecord, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """Cosine of every pair over all levels below the diagonal, its null above it."""
    table = record.to_frame()
    table = table[table["level"] == "all"]
    names = list(dict.fromkeys((*table["a"], *table["b"])))
    # NaN is left blank: the diagonal, and pairs without a cosine.
    matrix = np.full((len(names), len(names)), np.nan)
    matrix[table["b_index"], table["a_index"]] = table["cosine"]
    matrix[table["a_index"], table["b_index"]] = table["null_mean"]
    figure, ax = canvas(ax, "page", 4.5)
    sns.heatmap(
        matrix,
        ax=ax,
        cmap="RdBu",
        vmin=-1,
        vmax=1,
        square=True,
        xticklabels=names,
        yticklabels=names,
        cbar_kws={"label": "gradient cosine, in [−1, 1]; red: opposed"},
    )
    probes = f"{record.probes} probe{'s' if record.probes > 1 else ''}"
    ax.set_title(
        f"cosine below, its null above the diagonal; {probes}, n = {record.pairs['n'].iloc[0]}",
        loc="left",
    )
    return figure, np.array([ax])
