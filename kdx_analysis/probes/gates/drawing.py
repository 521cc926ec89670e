"""The figure of one gate record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdx_analysis.drawing.style import canvas, styled

if TYPE_CHECKING:
    from kdx_analysis.probes.gates.record import GateRecord


@styled
def plot(record: GateRecord, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """Effective attention of the gates into the heads."""
    effective = record.effective[-1]
    rows = effective.mean(dim=0) if effective.ndim == 3 else effective
    figure, ax = canvas(ax, "page", 4.5)
    sns.heatmap(
        rows.numpy(),
        ax=ax,
        cmap="viridis",
        vmin=0,
        vmax=1,
        yticklabels=list(record.classes),
        cbar_kws={"label": "effective attention A, in [0, 1]"},
    )
    ax.set(xlabel=f"expert of level {len(record.alpha)}", ylabel="subtask")
    ax.set_title(
        f"gates into the heads at τ = {record.temperature:.3g}, n = {len(record.labels)} images",
        loc="left",
    )
    return figure, np.array([ax])
