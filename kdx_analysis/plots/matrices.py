"""Which subtasks' gradients oppose each other, as matrices."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn as sns

from kdx_analysis.errors import KdxError
from kdx_analysis.plots.classes import clustered, name_classes, symmetric
from kdx_analysis.plots.figure import Figure, explainers
from kdx_analysis.plots.style import counted, drawing, in_order, panels, plain, styled
from kdx_analysis.runs import RunSet


def _conflict_data(runs: RunSet) -> pd.DataFrame:
    """Columns objective, a, b, a_row, b_row, cosine, null, values, undefined, seeds, epochs, n; one row per pair.

    Means over seeds and probed epochs; ``values`` went into them, ``undefined`` were NaN; n is probe images.
    """
    found = explainers(runs, comparable=True)
    frame = found.frame("conflict")
    frame = frame[(frame["split"] == "train") & (frame["term"] == "hard") & (frame["level"] == "all")]
    if not frame["cosine"].notna().any():
        raise KdxError("no cosine of the hard term on the train probe set is defined; look at the runs' gradients")
    order = clustered(1 - symmetric(frame, "cosine", len(found.classes), 1.0))
    rows = {k: row for row, k in enumerate(order)}
    pairs = frame.groupby(["objective", "a", "b", "a_index", "b_index"], sort=False)
    data = pairs.agg(
        cosine=("cosine", "mean"), null=("null_mean", "mean"), values=("cosine", "count"), seeds=("seed", "nunique"),
        undefined=("cosine", lambda c: int(c.isna().sum())), epochs=("epoch", "nunique"), n=("n", "first"),
    ).reset_index()  # fmt: skip
    data["a_row"], data["b_row"] = data["a_index"].map(rows), data["b_index"].map(rows)
    columns = ["cosine", "null", "values", "undefined", "seeds", "epochs", "n"]
    return data[["objective", "a", "b", "a_row", "b_row", *columns]]


@styled
def _draw_conflict(data: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    objectives = in_order(data["objective"])
    names = pd.concat([data.set_index("a_row")["a"], data.set_index("b_row")["b"]])
    names = names[~names.index.duplicated()].sort_index().tolist()
    K = len(names)
    columns = min(3, len(objectives))
    rows = -(-len(objectives) // columns)
    figure = drawing(1.6 + 3.3 * columns, 0.5 + 3.6 * rows)
    axes = panels(figure, len(objectives), columns, sharex=True, sharey=True)
    for i, (ax, objective) in enumerate(zip(axes, objectives, strict=True)):
        chosen = data[data["objective"] == objective]
        matrix = np.full((K, K), np.nan)
        high, low = chosen[["a_row", "b_row"]].max(axis=1), chosen[["a_row", "b_row"]].min(axis=1)
        matrix[high, low], matrix[low, high] = chosen["cosine"], chosen["null"]
        ax.set_facecolor("#DDDDDD")
        sns.heatmap(matrix, ax=ax, cmap="RdBu", vmin=-1, vmax=1, square=True, cbar=False)
        ax.plot([0, K], [0, K], color="white", linewidth=0.8)
        n = f"n = {counted(chosen['seeds'])} × {counted(chosen['epochs'], 'epoch')}"
        ax.set_title(f"{plain(objective)}\n{n}", loc="left")
        for which in ("x", "y"):
            name_classes(ax, which, names, 2.9 / K, start=0.5)
        ax.tick_params(labelbottom=True, labelleft=i % columns == 0)
    bar = figure.colorbar(axes[0].collections[0], ax=list(axes), shrink=min(1, 1.4 / rows), aspect=25, pad=0.01)
    bar.set_label("gradient cosine, in [−1, 1]; red: opposed")
    bar.outline.set_visible(False)
    figure.suptitle("below the diagonal: cosine of two subtasks' gradients · above: its null, residuals permuted")
    return figure, axes


conflict = Figure(
    "conflict",
    "Which subtasks oppose each other",
    "Cosine between the gradients of two subtasks' plain hard loss over trunk and experts, on the train probe set, "
    "mean over probed epochs and seeds. Below the diagonal the cosine, above it the null of the same pair (residuals "
    "permuted over samples with the model fixed). Classes stand in one order for all panels, clustered on the mean "
    "cosine; where there are too many to name, every few are, and the data hold all. Grey: not defined.",
    _conflict_data,
    _draw_conflict,
)
