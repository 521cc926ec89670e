"""Figures of one probed run: train and validation side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn as sns

from kdx_analysis import null
from kdx_analysis.drawing.classes import name_classes
from kdx_analysis.drawing.style import GREY, INK, drawing, heading, legend, panels, plain, styled

THROUGH_TRAINING = "affinity_through_training"
_SPLITS = {"train": ("o", INK), "val": ("s", "white")}


def probed_figures(
    tables: Mapping[str, pd.DataFrame], classes: Sequence[str]
) -> dict[str, matplotlib.figure.Figure]:
    """Name → figure of everything in ``tables`` that has one."""
    K = len(classes)
    figures: dict[str, matplotlib.figure.Figure] = {}
    if "conflict" in tables:
        conflict = tables["conflict"]
        conflict = conflict[(conflict["term"] == "hard") & (conflict["level"] == "all")]
        title = "gradient cosine of the hard loss; its null above the diagonal"
        matrices = _by_split(conflict, K, "cosine")
        figures["conflict"] = pair_matrices(matrices, classes, title, 1.0)[0]
    if "affinity" in tables:
        eta = tables["affinity"].query("metric == 'affinity'")["eta"].iloc[0]
        title = f"affinity Z of a step of {eta:g} for the row's subtask; red: it hurts"
        figures["affinity"] = pair_matrices(_steps(tables, K), classes, title, None)[0]
    if "output_conflict" in tables:
        both = tables["output_conflict"].query("metric == 'claimed_by_both'")
        title = "share of images that both claim; its null above the diagonal"
        matrices = _by_split(both, K, "value")
        figures["output_conflict"] = pair_matrices(matrices, classes, title, None)[0]
    if (metrics := _metrics(tables)) is not None:
        figures["measures"] = beside_nulls(metrics)[0]
    if "gates" in tables:
        heads = tables["gates"][tables["gates"]["level"] == tables["gates"]["level"].max()]
        figures["gates"] = gate_matrices(heads)[0]
    return figures


def _by_split(pairs: pd.DataFrame, K: int, column: str) -> dict[str, np.ndarray]:
    """Split → K×K, the values of a column below the diagonal, their nulls above it."""
    return {
        str(split): _split_matrix(rows, K, column, "null_mean")
        for split, rows in pairs.groupby("split")
    }


def _steps(tables: Mapping[str, pd.DataFrame], K: int) -> dict[str, np.ndarray]:
    """Panel → K×K of what a step for one subtask does to another.

    With the final weights and, where it was recorded, through training.
    """
    affinity = tables["affinity"].query("metric == 'affinity'")
    steps = {f"{split}, final weights alone": rows for split, rows in affinity.groupby("split")}
    if THROUGH_TRAINING in tables:
        through = tables[THROUGH_TRAINING].query("metric == 'affinity'")
        for split, rows in through.groupby("split"):
            steps[f"{split}, mean of {rows['epochs'].max()} probed epochs"] = rows
    return {name: _directed_matrix(steps[name], K) for name in sorted(steps)}


@styled
def pair_matrices(
    matrices: Mapping[str, np.ndarray], classes: Sequence[str], title: str, limit: float | None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """K×K matrices, two in a row, on one scale that is symmetric about 0.

    It reaches to ±``limit``, or to the largest value there is.
    """
    K, names = len(classes), [str(name) for name in classes]
    if limit is None:
        defined = [matrix for matrix in matrices.values() if np.isfinite(matrix).any()]
        # 1 where nothing is defined or all is 0, since a scale has to have a width
        limit = max((float(np.nanmax(np.abs(m))) for m in defined), default=1.0) or 1.0
    figure = drawing("page", 0.5 + 3.1 * -(-len(matrices) // 2))
    axes = panels(figure, len(matrices), 2)
    for ax, (split, matrix) in zip(axes, matrices.items(), strict=True):
        ax.set_facecolor("#DDDDDD")
        sns.heatmap(matrix, ax=ax, cmap="RdBu", vmin=-limit, vmax=limit, square=True, cbar=False)
        ax.set_title(split, loc="left")
        name_classes(ax, "x", names, 2.7 / K, start=0.5)
        name_classes(ax, "y", names, 2.7 / K, start=0.5)
    figure.colorbar(axes[0].collections[0], ax=list(axes), aspect=25, pad=0.01)
    heading(figure, title)
    return figure, axes


@styled
def gate_matrices(heads: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Effective attention of the gates into the heads, a split a panel."""
    splits = list(dict.fromkeys(heads["split"]))
    figure = drawing("page", 3.6)
    axes = panels(figure, len(splits), len(splits))
    for ax, split in zip(axes, splits, strict=True):
        gates = heads[heads["split"] == split]
        matrix = gates.pivot(index="child_index", columns="parent", values="effective")
        sns.heatmap(matrix, ax=ax, cmap="viridis", vmin=0, vmax=1, cbar=False)
        ax.set(xlabel="expert of the last level", ylabel="subtask")
        ax.set_title(split, loc="left")
        rows = gates.drop_duplicates("child_index").sort_values("child_index")
        names = rows["child"].astype(str).tolist()
        name_classes(ax, "y", names, 2.7 / len(names), start=0.5)
    figure.colorbar(axes[0].collections[0], ax=list(axes), aspect=25, pad=0.01)
    heading(figure, f"effective attention into the heads at τ = {heads['tau'].iloc[0]:.3g}")
    return figure, axes


@styled
def beside_nulls(data: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Every metric with the range of its null (grey bars), a row each.

    Columns of ``data``: name, split, value, null_low, null_high.
    """
    names = list(dict.fromkeys(data["name"]))
    figure = drawing("page", 0.9 + 0.2 * len(names))
    ax = figure.subplots()
    splits = list(dict.fromkeys(data["split"]))
    points = []
    for i, split in enumerate(splits):
        rows = data[data["split"] == split].drop_duplicates("name")
        rows = rows.set_index("name").reindex(names)
        y = np.arange(len(names)) + 0.18 * (i - (len(splits) - 1) / 2)
        marker, face = _SPLITS[split]
        ranged = rows["null_low"].notna().to_numpy() & rows["null_high"].notna().to_numpy()
        ax.hlines(
            y[ranged],
            rows["null_low"][ranged],
            rows["null_high"][ranged],
            color=GREY,
            alpha=0.35,
            linewidth=4,
        )
        points += ax.plot(
            rows["value"], y, marker, color=INK, markerfacecolor=face, markersize=4, label=split
        )
    ax.axvline(0, color=GREY, linewidth=0.6)
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(f"value; {null.legend(data.loc[data['value'].notna(), 'null_low'])}")
    legend(figure, points)
    return figure, np.array([ax])


def _metrics(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """All metrics of one run under the names that their rows have; None where there is none."""
    parts = []
    for kind in ("conflict_summary", "contention"):
        if kind in tables:
            table = tables[kind][tables[kind]["term"] == "hard"]
            where = table["level"].map(_at_level) if "level" in table else ""
            parts.append(table.assign(name=table["metric"].str.replace("_", " ") + where))
    if "agreement" in tables:
        table = tables["agreement"].query("attention == 'effective' and method == 'spearman'")
        name = "routing like " + table["reference"].str.replace("_", " ") + ", level "
        parts.append(table.assign(name=name + table["level"].astype(str)))
    if "faithfulness_agreement" in tables:
        table = tables["faithfulness_agreement"].query("attention == 'effective'")
        name = table["measure"] + " by ablation like attention, level " + table["level"].astype(str)
        parts.append(table.assign(name=name))
    for kind, note in (("affinity", ", final weights"), ("output_conflict", "")):
        if kind in tables:
            whole = tables[kind].query("a == ''")
            parts.append(whole.assign(name=whole["metric"].str.replace("_", " ") + note))
    if not parts:
        return None
    return pd.concat(parts, ignore_index=True)[["name", "split", "value", "null_low", "null_high"]]


def _at_level(level: str) -> str:
    return ", all levels" if level == "all" else f", level {level}"


def _split_matrix(pairs: pd.DataFrame, K: int, below: str, above: str) -> np.ndarray:
    matrix = np.full((K, K), np.nan)
    matrix[pairs["b_index"], pairs["a_index"]] = pairs[below]
    matrix[pairs["a_index"], pairs["b_index"]] = pairs[above]
    return matrix


def _directed_matrix(pairs: pd.DataFrame, K: int) -> np.ndarray:
    matrix = np.full((K, K), np.nan)
    matrix[pairs["a_index"], pairs["b_index"]] = pairs["value"]
    return matrix
