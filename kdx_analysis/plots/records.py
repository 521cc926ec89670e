"""Figures of single records."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from kdx_analysis import null
from kdx_analysis.drawing.style import GREY, LIGHT, drawing, plain, styled
from kdx_analysis.probes.across_models import MeasureRecord
from kdx_analysis.probes.conflict.record import ConflictRecord
from kdx_analysis.probes.gates.record import GateRecord
from kdx_analysis.probes.planted.validation import YARDSTICKS, Validation
from kdx_analysis.probes.recording import Recording


@styled
def conflict_record(
    record: ConflictRecord, ax: Axes | None = None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Cosine of every pair over all levels below the diagonal, its null above it."""
    table = record.to_frame()
    table = table[table["level"] == "all"]
    names = list(dict.fromkeys((*table["a"], *table["b"])))
    matrix = np.full((len(names), len(names)), np.nan)
    matrix[table["b_index"], table["a_index"]] = table["cosine"]
    matrix[table["a_index"], table["b_index"]] = table["null_mean"]
    figure, ax = _canvas(ax)
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


@styled
def gate_record(
    record: GateRecord, ax: Axes | None = None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Effective attention of the gates into the heads."""
    effective = record.effective[-1]
    rows = effective.mean(dim=0) if effective.ndim == 3 else effective
    figure, ax = _canvas(ax)
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


@styled
def measure_record(
    record: MeasureRecord, ax: Axes | None = None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Every run a dot, a row a measure, over the ranges of the runs' nulls; of α and A those of A."""
    table = record.table
    if "attention" in table:
        table = table[table["attention"] == "effective"]
    keys = [key for key in record.keys if key != "attention"]
    rows = list(table.groupby(keys, sort=False))
    figure, ax = _canvas(ax, 0.9 + 0.2 * len(rows))
    for y, (_, of) in enumerate(rows):
        ranged = of.dropna(subset=["null_low", "null_high"])
        ax.hlines(
            [y] * len(ranged),
            ranged["null_low"],
            ranged["null_high"],
            color=LIGHT,
            linewidth=5,
            alpha=0.6,
        )
        ax.plot(
            of["value"], y + np.linspace(-0.2, 0.2, len(of)), "o", color="#0072B2", markersize=3
        )
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
def recording(
    record: Recording, ax: Axes | None = None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Mean attention into the heads; without gates, of every activation its median and central 90
    %.
    """
    if record.passes:
        heads = record.attention[-1]
        figure, ax = _canvas(ax)
        sns.heatmap(
            heads.double().mean(dim=0).cpu().numpy(),
            ax=ax,
            cmap="viridis",
            vmin=0,
            vmax=1,
            cbar_kws={"label": "attention α, in [0, 1]"},
        )
        ax.set(xlabel=f"expert of level {len(record.attention)}", ylabel="subtask")
        ax.set_title(f"mean gates into the heads, n = {len(heads)} passes or samples", loc="left")
        return figure, np.array([ax])
    activations = record.activations
    figure, ax = _canvas(ax, 0.9 + 0.25 * len(activations))
    for y, values in enumerate(activations.values()):
        finite = values[values.isfinite()].double().cpu().numpy()
        low, middle, high = np.quantile(finite, [0.05, 0.5, 0.95]) if len(finite) else [np.nan] * 3
        ax.hlines(y, low, high, color="#0072B2", linewidth=3)
        ax.plot(middle, y, "o", color="black", markersize=3)
    samples = {len(values) for values in activations.values()}
    ax.set_yticks(range(len(activations)), [plain(path) for path in activations])
    ax.set(ylim=(len(activations) - 0.5, -0.5), xlabel="activation: median and central 90 %")
    ax.set_title(f"{record.model}, n = {', '.join(map(str, sorted(samples)))} samples", loc="left")
    return figure, np.array([ax])


@styled
def validation(
    record: Validation, ax: Axes | None = None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Every seed a dot, a row a yardstick, over the range that was wanted; red where it does not
    hold.
    """
    frame = record.to_frame()
    figure, ax = _canvas(ax, 0.9 + 0.25 * len(frame))
    low, high = min(-1.0, record.measures["value"].min()), max(1.0, record.measures["value"].max())
    for y, (yardstick, row) in enumerate(zip(YARDSTICKS, frame.to_dict("records"), strict=True)):
        wanted = np.clip([yardstick.low, yardstick.high], low, high)
        ax.hlines(y, wanted[0], max(wanted[1], wanted[0] + 0.01), color=LIGHT, linewidth=7)
        own = (record.measures["yardstick"] == row["yardstick"]) & (
            record.measures["planted"] == row["planted"]
        )
        values = record.measures.loc[own, "value"]
        ax.plot(
            values,
            y + np.linspace(-0.2, 0.2, len(values)),
            ".",
            color="black" if row["passed"] else "#B2182B",
        )
    ax.set_yticks(
        range(len(frame)),
        [f"{a}: {b}" for a, b in zip(frame["yardstick"], frame["planted"], strict=True)],
    )
    ax.set(ylim=(len(frame) - 0.5, -0.5), xlabel="value; grey: what was wanted")
    ax.set_title(record.caption, loc="left")
    return figure, np.array([ax])


def _named(keys: list[str], values: tuple[object, ...]) -> list[str]:
    return [
        f"level {v}" if key == "level" else str(v).replace("_", " ")
        for key, v in zip(keys, values, strict=True)
    ]


def _canvas(ax: Axes | None, height: float = 4.5) -> tuple[matplotlib.figure.Figure, Axes]:
    if ax is None:
        ax = drawing("page", height).subplots()
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax
