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
from kdx_analysis.plots.style import GREY, LIGHT, counted, drawing, handle, in_order, look, panels, plain, styled
from kdx_analysis.runs import METRICS, Interval, Metric, RunSet, t_interval
from kdx_analysis.runs.runset import objective_names

_ADDS = {
    "hard_T": "temperature, loss scale",
    "kd_flat": "softness",
    "kd_shuffled": "uneven softness",
    "kd": "class structure",
}
_INCLUDES = dict.fromkeys(("label_smoothing", "hard"), "includes temperature and softness")
_UNITS = {  # and their ranges
    "accuracy": ("share of test images", ""),
    "agreement": ("share of test images", ""),
    "gate_entropy": ("H / ln N", "in [0, 1]"),
    "specialisation": ("I / ln min(K, N)", "in [0, 1]"),
    "conflict_rate": ("share of pairs", ""),
    "severity": ("mean max(0, −cosine)", "in [0, 1]"),
    "contention": ("share of gradient", "in [0, 1]"),
    "separation": ("", "in [−1, 1]"),
    "modulation": ("", "in [−1, 1]"),
}
_COLUMNS = 3


def _headlines(found: RunSet) -> pd.DataFrame:
    """Headline figures of explainers, those of gates for effective attention."""
    frame = found.to_frame()
    return frame[frame["attention"].isin(["", "effective"])]


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
    adds[rungs[lowest]] = ""
    frame = _headlines(found).copy()
    frame["rung"] = frame["objective"].map({label: name for name, label in rungs.items()}).fillna("")
    frame["adds"] = frame["objective"].map(adds).fillna("")
    columns = ["metric", "objective", "rung", "adds", "seed", "split", "value", "null", "n"]
    return frame[columns].reset_index(drop=True)


@styled
def _draw_ladder(data: pd.DataFrame) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    names = data.drop_duplicates("objective").set_index("objective")
    rungs = [o for rung in LADDER for o in names.index[names["rung"] == rung]]
    beside = [o for o in names.index if o not in rungs]
    places = {o: i + 0.4 * (i >= len(rungs)) for i, o in enumerate([*rungs, *beside])}
    metrics = [metric for metric in METRICS if data.loc[data["metric"] == metric.name, "value"].notna().any()]
    rows = -(-len(metrics) // _COLUMNS)
    figure = drawing(max(10.5, min(12, 1.5 + 0.6 * _COLUMNS * len(places))), 1.2 + 2.3 * rows)
    axes = panels(figure, len(metrics), _COLUMNS)
    for ax, metric in zip(axes, metrics, strict=True):
        _ladder_panel(ax, data[data["metric"] == metric.name], metric, places, len(rungs))
    missing = [name for name in LADDER if name not in set(names["rung"])]
    _ladder_legend(
        figure,
        {str(o): adds for o, adds in names["adds"].items()},
        rungs,
        beside,
        missing,
        several=data["seed"].nunique() > 1,
    )
    return figure, axes


def _ladder_panel(ax: Axes, data: pd.DataFrame, metric: Metric, places: dict[str, float], rungs: int) -> None:
    """One metric at the objectives' ``places``, of which the first ``rungs`` are the ladder."""
    first, *others = [split for split in ("test", "train", "val") if split in set(data["split"])]
    seeds = sorted(data["seed"].unique())
    shift = dict(zip(seeds, np.linspace(-0.13, 0.13, len(seeds)) if len(seeds) > 1 else [0], strict=True))
    centre = -0.14 if others else 0.0
    table = data[data["split"] == first].pivot(index="seed", columns="objective", values="value")
    ladder = [o for o in list(places)[:rungs] if o in table.columns]
    for seed in table.index:
        across = [places[o] + centre + shift[seed] for o in ladder]
        ax.plot(across, table.loc[seed, ladder], color=LIGHT, linewidth=0.7, zorder=1)
    counts = []
    for (objective, split), rows in data.dropna(subset="value").groupby(["objective", "split"], sort=False):
        x = places[str(objective)] + (centre if split == first else 0.26)
        interval = _ladder_rung(ax, rows, x, shift, paler=split != first)
        if split == first:
            counts.append(interval.n)
    if data["null"].min() <= 0 <= data["null"].max() or metric.name in ("separation", "modulation"):
        ax.axhline(0, color=LIGHT, linewidth=0.6, zorder=0)
    ax.set_xticks([*places.values()], [plain(o) for o in places], rotation=28, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.5, max(places.values()) + 0.5)
    if len(places) > rungs:
        ax.axvline(rungs - 0.2, color=LIGHT, linewidth=0.6, linestyle=":")
    ax.set_title(f"{metric.title}  (n = {counted(counts)})", loc="left")
    unit, of_range = _UNITS.get(metric.name, ("", ""))
    below = ", ".join(filter(None, [of_range, "" if first == "test" else first]))
    ax.set_ylabel("\n".join(filter(None, [unit, below])))


def _ladder_rung(ax: Axes, rows: pd.DataFrame, x: float, shift: dict[int, float], *, paler: bool) -> Interval:
    """Seeds, mean, null and, unless ``paler``, the interval of one objective at ``x``."""
    of, alpha = look(rows["objective"].iloc[0]), 0.4 if paler else 1
    at = x + rows["seed"].map(shift) * (0.5 if paler else 1)
    ax.plot(at, rows["value"], of.marker, color=of.colour, markersize=4.5, alpha=alpha, markeredgewidth=0, zorder=3)
    interval = t_interval(rows["value"].to_numpy())
    if interval.n > 1:
        ax.hlines(interval.mean, x - 0.18, x + 0.18, color=of.colour, linewidth=1.8, alpha=alpha, zorder=4)
        if not paler:
            ax.vlines(x, interval.low, interval.high, color=of.colour, linewidth=0.9, zorder=2)
    if rows["null"].notna().any():
        ax.hlines(rows["null"].mean(), x - 0.18, x + 0.18, color=GREY, linewidth=1, linestyle=(0, (2, 1)), alpha=alpha)
    return interval


def _ladder_legend(
    figure: matplotlib.figure.Figure,
    adds: dict[str, str],
    rungs: list[str],
    beside: list[str],
    missing: list[str],
    *,
    several: bool,
) -> None:
    entries = []
    for objective in rungs:
        text = f"{objective}: adds {adds[objective]}" if adds[objective] else f"{objective}: the lowest rung"
        entries.append(handle(objective, linestyle="none", label=plain(text)))
    entries += [handle(o, linestyle="none", label=plain(f"{o}: beside the ladder")) for o in beside]
    if several:
        entries.append(Line2D([], [], color=GREY, linewidth=1.8, label="mean over seeds; upright: 95 % t-interval"))
    entries += [
        Line2D([], [], color=LIGHT, linewidth=0.9, label="one seed, rung to rung"),
        Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (2, 1)), label="null, mean over seeds"),
        Line2D(
            [], [], color=GREY, marker="o", linestyle="none", markersize=4, alpha=0.4, label="paler: validation split"
        ),
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
    frame = _headlines(found)
    values = frame[frame["split"] != "val"].pivot(index=["metric", "seed"], columns="objective", values="value")
    frames = [
        (values[kd] - values[other]).dropna().rename("difference").reset_index().assign(
            a=kd, b=other, includes=_INCLUDES.get(names[other], "")
        )
        for other in others
    ]  # fmt: skip
    data = pd.concat(frames, ignore_index=True)[["metric", "a", "b", "includes", "seed", "difference"]]
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
    figure = drawing(11, 0.6 + rows * (0.8 + 0.3 * len(others)))
    axes = panels(figure, len(metrics), _COLUMNS, sharey=True)
    labels = [f"{kd} − {b}" + (f"\n({includes[b]})" if includes[b] else "") for b in others]
    for ax, metric in zip(axes, metrics, strict=True):
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
            ax.plot(values, np.full(len(values), y), of.marker, color=of.colour, markersize=4, markerfacecolor="white",
                    zorder=3)  # fmt: skip
            ax.annotate(
                f"n = {interval.n}", (1, y), xycoords=("axes fraction", "data"), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=7, color=GREY,
            )  # fmt: skip
        ax.set_yticks(range(len(others)), [plain(label) for label in labels])
        ax.set_ylim(len(others) - 0.5, -0.5)
        ax.set_title(metric.title, loc="left")
        unit, _ = _UNITS.get(metric.name, ("", ""))
        ax.set_xlabel("difference" + (f" in {unit}" if unit else ""))
        ax.locator_params(axis="x", nbins=5)
    figure.suptitle("points: seeds · upright: their mean · line: 95 % t-interval of the paired difference")
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
