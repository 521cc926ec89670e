"""Objectives against each other on every headline metric: the ladder of controls, and paired differences."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from kdx_analysis.config import LADDER
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Figure, explainers
from kdx_analysis.plots.style import GREY, LIGHT, drawing, handle, in_order, look, plain, styled
from kdx_analysis.runs import METRICS, Metric, RunSet, t_interval
from kdx_analysis.runs.runset import objective_names

_ADDS = {
    "hard_T": "temperature, loss scale",
    "kd_flat": "softness",
    "kd_shuffled": "uneven softness",
    "kd": "class structure",
}
_INCLUDES = {name: "includes temperature and softness" for name in ("label_smoothing", "hard")}
_UNITS = {
    "accuracy": "share of test images",
    "agreement": "share of test images",
    "gate_entropy": "H / ln N, in [0, 1]",
    "specialisation": "I / ln min(K, N), in [0, 1]",
    "conflict_rate": "share of pairs",
    "severity": "mean max(0, −cosine), in [0, 1]",
    "contention": "share of gradient, in [0, 1]",
    "separation": "in [−1, 1]",
    "modulation": "in [−1, 1]",
}
_COLUMNS = 3


def _ladder_data(runs: RunSet) -> pd.DataFrame:
    """Columns metric, objective, rung ('' beside the ladder), adds, seed, split, value, null, n."""
    found = explainers(runs, comparable=True)
    names = objective_names(found.runs)
    rungs = {name: label for label, name in reversed(names.items()) if name in LADDER}
    if len(rungs) < 2:
        raise KdxError(f"a ladder needs two of its rungs ({', '.join(LADDER)}); the runs hold {', '.join(names)}")
    adds, missed = {}, list[str]()
    for name in LADDER:
        missed.append(_ADDS.get(name, ""))
        if name in rungs:
            adds[rungs[name]] = ", ".join(filter(None, missed))
            missed.clear()
    lowest = next(name for name in LADDER if name in rungs)
    frame = found.to_frame()
    frame = frame[frame["attention"].isin(["", "effective"])]
    frame["rung"] = [names[o] if rungs.get(names[o]) == o else "" for o in frame["objective"]]
    frame["adds"] = ["" if rung == lowest else adds.get(o, "") for o, rung in zip(frame["objective"], frame["rung"])]
    columns = ["metric", "objective", "rung", "adds", "seed", "split", "value", "null", "n"]
    return frame[columns].reset_index(drop=True)


@styled
def _draw_ladder(data: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    names = data.drop_duplicates("objective").set_index("objective")
    rungs = [o for rung in LADDER for o in names.index[names["rung"] == rung]]
    beside = [o for o in names.index if o not in rungs]
    places = {o: float(i) for i, o in enumerate(rungs)} | {o: len(rungs) + 0.4 + i for i, o in enumerate(beside)}
    metrics = [metric for metric in METRICS if data.loc[data["metric"] == metric.name, "value"].notna().any()]
    rows = -(-len(metrics) // _COLUMNS)
    figure = drawing(max(7.5, min(12, 1.5 + 0.6 * _COLUMNS * len(places))), 1.2 + 2.15 * rows)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False)
    for ax in axes.flat[len(metrics) :]:
        ax.remove()
    for ax, metric in zip(axes.flat, metrics, strict=False):
        _ladder_panel(ax, data[data["metric"] == metric.name], metric, places, len(rungs))
    missing = [name for name in LADDER if name not in set(names["rung"])]
    _ladder_legend(figure, names["adds"].to_dict(), rungs, beside, missing)
    return figure, axes


def _ladder_panel(ax: Axes, rows: pd.DataFrame, metric: Metric, places: dict[str, float], rungs: int) -> None:
    first, *others = [split for split in ("test", "train", "val") if split in set(rows["split"])]
    ns = set()
    seeds = sorted(rows["seed"].unique())
    spread = dict(zip(seeds, np.linspace(-0.13, 0.13, len(seeds)) if len(seeds) > 1 else [0.0], strict=True))
    if rows["null"].min() <= 0 <= rows["null"].max() or metric.name in ("separation", "modulation"):
        ax.axhline(0, color=LIGHT, linewidth=0.6, zorder=0)
    for split, shift, alpha in ((first, 0.0, 1.0), *((other, 0.34, 0.4) for other in others)):
        table = rows[rows["split"] == split].pivot(index="seed", columns="objective", values="value")
        nulls = rows[rows["split"] == split].groupby("objective")["null"].mean()
        ladder = [o for o in places if o in table.columns and places[o] < rungs]
        if split == first:
            for seed, values in table[ladder].iterrows():
                x = [places[o] + spread[seed] for o in ladder]
                ax.plot(x, values, color=LIGHT, linewidth=0.7, zorder=1)
        for objective in table.columns:
            values, of, x = table[objective].dropna(), look(objective), places[objective] + shift
            if values.empty:
                continue
            at = [x + spread[seed] * (1 if split == first else 0.5) for seed in values.index]
            ax.plot(at, values, of.marker, color=of.colour, markersize=3, alpha=alpha, markeredgewidth=0, zorder=3)
            interval = t_interval(values.to_numpy())
            ax.hlines(interval.mean, x - 0.2, x + 0.2, color=of.colour, linewidth=1.8, alpha=alpha, zorder=4)
            if split == first:
                ns.add(interval.n)
                if interval.n > 1:
                    ax.vlines(x, interval.low, interval.high, color=of.colour, linewidth=0.9, zorder=2)
            if pd.notna(nulls[objective]):
                ax.hlines(nulls[objective], x - 0.2, x + 0.2, color=GREY, linewidth=1, linestyle=(0, (2, 1)), alpha=alpha)
    ax.set_xticks([*places.values()], [plain(o) for o in places], rotation=28, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.5, max(places.values()) + (0.75 if others else 0.5))
    if max(places.values()) >= rungs:
        ax.axvline(rungs - 0.2, color=LIGHT, linewidth=0.6, linestyle=":")
    n = "–".join(map(str, sorted({min(ns), max(ns)})))
    ax.set_title(f"{metric.title}  (n = {n} seed{'' if n == '1' else 's'})", loc="left")
    split_name = "" if first == "test" else f", {first}"
    ax.set_ylabel(_UNITS.get(metric.name, "") + split_name)


def _ladder_legend(
    figure: matplotlib.figure.Figure, adds: dict[str, str], rungs: list[str], beside: list[str], missing: list[str]
) -> None:
    entries = []
    for objective in rungs:
        text = f"{objective}: adds {adds[objective]}" if adds[objective] else f"{objective}: the lowest rung"
        entries.append(handle(objective, linestyle="none", label=plain(text)))
    entries += [handle(o, linestyle="none", label=plain(f"{o}: beside the ladder")) for o in beside]
    entries += [
        Line2D([], [], color=GREY, linewidth=1.8, label="mean over seeds; upright: 95 % t-interval"),
        Line2D([], [], color=LIGHT, linewidth=0.9, label="one seed, rung to rung"),
        Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (2, 1)), label="null, mean over seeds"),
        Line2D([], [], color=GREY, marker="o", linestyle="none", markersize=4, alpha=0.4, label="paler: validation split"),
    ]
    if missing:
        entries.append(Line2D([], [], linestyle="none", label=f"not run: {', '.join(missing)}"))
    figure.legend(handles=entries, loc="outside upper left", ncols=3)


ladder = Figure(
    "ladder",
    "The ladder from hard labels to KD",
    "Every headline metric of the explainers along the ladder of controls, each rung adding one thing: every seed's "
    "point, thin lines joining a seed's points, the mean and its 95 % t-interval (none with one seed). Dashed: the "
    "null, for gates the run's initial gates at the same τ, for conflict the residuals permuted over samples. Conflict "
    "is that of the plain hard loss on the train probe set, with the validation probe set paler beside it.",
    _ladder_data,
    _draw_ladder,
)


def _differences_data(runs: RunSet) -> pd.DataFrame:
    """Columns metric, a, b, includes, seed, difference (a − b, of one seed)."""
    found = explainers(runs, comparable=True)
    names = objective_names(found.runs)
    kd = next((label for label, name in names.items() if name == "kd"), None)
    if kd is None or len(names) < 2:
        raise KdxError(f"differences need kd and another objective; the runs hold {', '.join(names)}")
    order = {name: i for i, name in enumerate((*reversed(LADDER[1:]), "label_smoothing", "hard"))}
    others = sorted((label for label in names if label != kd), key=lambda label: order[names[label]])
    frames = []
    measured = set(found.to_frame()["metric"])
    for metric in METRICS:
        table = found.values(metric.name) if metric.name in measured else pd.DataFrame()
        for other in others:
            if kd in table.columns and other in table.columns:
                difference = (table[kd] - table[other]).dropna()
                columns = {"metric": metric.name, "a": kd, "b": other, "includes": _INCLUDES.get(names[other], "")}
                frames.append(pd.DataFrame({**columns, "seed": difference.index, "difference": difference.to_numpy()}))
    data = pd.concat(frames, ignore_index=True)
    if data.empty:
        raise KdxError(f"{kd!r} shares no seed with {', '.join(others)}; train them with the same seeds")
    return data


@styled
def _draw_differences(data: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    others = in_order(data["b"])
    includes = data.drop_duplicates("b").set_index("b")["includes"]
    kd = data["a"].iloc[0]
    metrics = [metric for metric in METRICS if metric.name in set(data["metric"])]
    rows = -(-len(metrics) // _COLUMNS)
    figure = drawing(11, 0.6 + rows * (0.75 + 0.3 * len(others)))
    axes = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True)
    for ax in axes.flat[len(metrics) :]:
        ax.remove()
    labels = [f"{kd} − {b}" + (f"\n({includes[b]})" if includes[b] else "") for b in others]
    for ax, metric in zip(axes.flat, metrics, strict=False):
        ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
        chosen = data[data["metric"] == metric.name]
        for y, other in enumerate(others):
            values = chosen.loc[chosen["b"] == other, "difference"]
            if values.empty:
                continue
            of, interval = look(other), t_interval(values.to_numpy())
            if interval.n > 1:
                ax.hlines(y, interval.low, interval.high, color=of.colour, linewidth=1.2)
            ax.vlines(interval.mean, y - 0.28, y + 0.28, color=of.colour, linewidth=2)
            ax.plot(values, np.full(len(values), y), of.marker, color=of.colour, markersize=4, markerfacecolor="white")
            ax.annotate(
                f"n = {interval.n}", (1, y), xycoords=("axes fraction", "data"), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=7, color=GREY,
            )  # fmt: skip
        ax.set_yticks(range(len(others)), [plain(label) for label in labels])
        ax.set_ylim(len(others) - 0.5, -0.5)
        ax.set_title(metric.title, loc="left")
        ax.set_xlabel(f"difference in {_UNITS.get(metric.name, '').split(', in')[0]}".replace("in in", "in"))
        ax.locator_params(axis="x", nbins=5)
    return figure, axes


differences = Figure(
    "differences",
    "KD against every other objective, seed by seed",
    "Paired difference kd − other on every headline metric: each seed's point, the mean (upright) and the 95 % "
    "t-interval of the paired difference (none with one seed), not corrected for several comparisons. An interval that "
    "holds the line at 0 tells no difference, given one teacher and split. Only kd − kd_shuffled isolates class "
    "structure; against label_smoothing and hard the difference includes temperature and softness.",
    _differences_data,
    _draw_differences,
)
