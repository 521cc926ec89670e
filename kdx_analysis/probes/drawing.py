"""Figures of a recording, and of one record over several models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdx_analysis import null
from kdx_analysis.drawing.style import GREY, LIGHT, canvas, plain, styled

if TYPE_CHECKING:
    from kdx_analysis.probes.across_models import MetricRecord
    from kdx_analysis.probes.recording import Recording

_BLUE = "#0072B2"


@styled
def across_models(record: MetricRecord, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """Every run a dot, a row a metric, over the ranges of its nulls; of α and A those of A."""
    table = record.table
    if "attention" in table:
        table = table[table["attention"] == "effective"]
    keys = [key for key in record.keys if key != "attention"]
    rows = list(table.groupby(keys, sort=False))
    figure, ax = canvas(ax, "page", 0.9 + 0.2 * len(rows))
    for y, (_, runs) in enumerate(rows):
        ranged = runs.dropna(subset=["null_low", "null_high"])
        ax.hlines(
            [y] * len(ranged),
            ranged["null_low"],
            ranged["null_high"],
            color=LIGHT,
            linewidth=5,
            alpha=0.6,
        )
        places = y + np.linspace(-0.2, 0.2, len(runs))
        ax.plot(runs["value"], places, "o", color=_BLUE, markersize=3)
    names = [", ".join(_named(keys, key if isinstance(key, tuple) else (key,))) for key, _ in rows]
    ax.axvline(0, color=GREY, linewidth=0.6)
    ax.set_yticks(range(len(rows)), [plain(name) for name in names])
    ax.set(
        ylim=(len(rows) - 0.5, -0.5),
        xlabel=f"value; {null.legend(table.loc[table['value'].notna(), 'null_low'])}",
    )
    undefined = int(table["value"].isna().sum())
    left_out = f", {undefined} undefined value{'s' * (undefined > 1)} left out" if undefined else ""
    ax.set_title(f"n = {table['run'].nunique()} runs{left_out}", loc="left")
    return figure, np.array([ax])


@styled
def recording(record: Recording, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """Mean attention into the heads; without gates, what every activation is like.

    That is its median and its central 90 %.
    """
    return _gates(record, ax) if record.passes else _activations(record, ax)


def _gates(record: Recording, ax: Axes | None) -> tuple[Figure, np.ndarray]:
    heads = record.attention[-1]
    figure, ax = canvas(ax, "page", 4.5)
    sns.heatmap(
        heads.double().mean(dim=0).cpu().numpy(),  # NumPy has no bfloat16
        ax=ax,
        cmap="viridis",
        vmin=0,
        vmax=1,
        cbar_kws={"label": "attention α, in [0, 1]"},
    )
    ax.set(xlabel=f"expert of level {len(record.attention)}", ylabel="subtask")
    ax.set_title(f"mean gates into the heads, n = {len(heads)} passes or samples", loc="left")
    return figure, np.array([ax])


def _activations(record: Recording, ax: Axes | None) -> tuple[Figure, np.ndarray]:
    activations = record.activations
    figure, ax = canvas(ax, "page", 0.9 + 0.25 * len(activations))
    for y, values in enumerate(activations.values()):
        finite = values[values.isfinite()].double().cpu().numpy()  # NumPy has no bfloat16
        low, middle, high = np.quantile(finite, [0.05, 0.5, 0.95]) if len(finite) else [np.nan] * 3
        ax.hlines(y, low, high, color=_BLUE, linewidth=3)
        ax.plot(middle, y, "o", color="black", markersize=3)
    samples = {len(values) for values in activations.values()}
    ax.set_yticks(range(len(activations)), [plain(path) for path in activations])
    ax.set(ylim=(len(activations) - 0.5, -0.5), xlabel="activation: median and central 90 %")
    ax.set_title(f"{record.model}, n = {', '.join(map(str, sorted(samples)))} samples", loc="left")
    return figure, np.array([ax])


def _named(keys: list[str], values: tuple[object, ...]) -> list[str]:
    return [
        f"level {v}" if key == "level" else str(v).replace("_", " ")
        for key, v in zip(keys, values, strict=True)
    ]
