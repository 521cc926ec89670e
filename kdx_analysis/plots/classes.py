"""Classes in an order that puts alike ones side by side, and their names on axes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from kdx_analysis.plots.style import plain
from kdx_analysis.runs import RunSet


def symmetric(pairs: pd.DataFrame, values: str, K: int, diagonal: float) -> np.ndarray:
    """K×K from one row per pair a_index < b_index; pairs that are not there are NaN, repeated ones averaged."""
    matrix = np.full((K, K), np.nan)
    mean = pairs.groupby(["a_index", "b_index"])[values].mean()
    a, b = mean.index.get_level_values(0), mean.index.get_level_values(1)
    matrix[a, b] = matrix[b, a] = mean
    np.fill_diagonal(matrix, diagonal)
    return matrix


def clustered(distances: np.ndarray) -> list[int]:
    """Classes by average linkage of their K×K ``distances``, leaves ordered optimally; NaN counts as the mean."""
    if len(distances) < 3:
        return list(range(len(distances)))
    known = distances[~np.isnan(distances)]
    condensed = squareform(np.where(np.isnan(distances), known.mean(), distances), checks=False)
    return [int(k) for k in leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))]


def routed_order(explainers: RunSet) -> list[int]:
    """Classes clustered on the routing distance of their pathways, mean over runs and levels at the last epoch."""
    K = len(explainers.classes)
    routing = explainers.frame("routing")
    routing = routing[(routing["attention"] == "effective") & (routing["epoch"] == routing["epoch"].max())]
    return clustered(symmetric(routing, "distance", K, 0.0))


def pitch(K: int) -> float:
    """Inches a row of K classes that are all named: room for a name of 7 pt."""
    return 0.108 if K > 30 else 0.17


def name_classes(ax: Axes, which: Literal["x", "y"], names: list[str], pitch: float, *, start: float = 0) -> None:
    """Name the classes at start, start + 1, … on an axis with ``pitch`` inches a class: all, or every few."""
    step = int(np.ceil(0.104 / pitch))
    at = range(0, len(names), step)
    axis, rotation = (ax.xaxis, 90) if which == "x" else (ax.yaxis, 0)
    axis.set_ticks([start + i for i in at], [plain(names[i]) for i in at], fontsize=7, rotation=rotation)
    axis.set_tick_params(length=1.5, pad=1.5)
