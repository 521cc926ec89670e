"""Figures of single records."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from kdx_analysis.plots.style import drawing, styled
from kdx_analysis.probes.records import ConflictRecord, GateRecord


@styled
def conflict_record(record: ConflictRecord, ax: Axes | None = None) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Cosine of every pair over all levels below the diagonal, its null above it."""
    table = record.to_frame()
    table = table[table["level"] == "all"]
    names = list(dict.fromkeys((*table["a"], *table["b"])))
    matrix = np.full((len(names), len(names)), np.nan)
    matrix[table["b_index"], table["a_index"]] = table["cosine"]
    matrix[table["a_index"], table["b_index"]] = table["null_mean"]
    figure, ax = _canvas(ax)
    sns.heatmap(
        matrix, ax=ax, cmap="RdBu", vmin=-1, vmax=1, square=True, xticklabels=names, yticklabels=names,
        cbar_kws={"label": "gradient cosine, in [−1, 1]; red: opposed"},
    )  # fmt: skip
    probes = f"{record.probes} probe{'s' if record.probes > 1 else ''}"
    ax.set_title(f"cosine below, its null above the diagonal; {probes}, n = {record.pairs['n'].iloc[0]}", loc="left")
    return figure, np.array([ax])


@styled
def gate_record(record: GateRecord, ax: Axes | None = None) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Effective attention of the gates into the heads."""
    effective = record.effective[-1]
    rows = effective.mean(dim=0) if effective.ndim == 3 else effective
    figure, ax = _canvas(ax)
    sns.heatmap(
        rows.numpy(), ax=ax, cmap="viridis", vmin=0, vmax=1, yticklabels=list(record.classes),
        cbar_kws={"label": "effective attention A, in [0, 1]"},
    )  # fmt: skip
    ax.set(xlabel=f"expert of level {len(record.alpha)}", ylabel="subtask")
    ax.set_title(f"gates into the heads at τ = {record.temperature:.3g}, n = {len(record.labels)} images", loc="left")
    return figure, np.array([ax])


def _canvas(ax: Axes | None) -> tuple[matplotlib.figure.Figure, Axes]:
    if ax is None:
        ax = drawing("page", 4.5).subplots()
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax
