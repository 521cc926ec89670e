"""Objectives against each other on every headline metric: the ladder of controls, and paired
differences.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdx_analysis.config import LADDER
from kdx_analysis.drawing.marks import entitle, estimate, estimate_handles, name_places, shifts
from kdx_analysis.drawing.style import (
    COLUMNS,
    GREY,
    LIGHT,
    Width,
    drawing,
    handle,
    heading,
    in_order,
    legend,
    look,
    n_equals,
    panels,
    plain,
    styled,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import METRICS, Metric
from kdx_analysis.plots.figure import Drawn, Figure, explainers
from kdx_analysis.runs import RunSet, ladders, t_interval
from kdx_analysis.runs.statistics.paired import by_seed, coverage, side_by_side
from kdx_analysis.runs.tables.numbers import listed

_ADDS = {
    "hard_T": "temperature, loss scale",
    "kd_flat": "softness",
    "kd_shuffled": "uneven softness",
    "kd": "class structure",
}
_INCLUDES = dict.fromkeys(("label_smoothing", "hard"), "includes temperature and softness")
UNITS = {  # and their ranges
    "accuracy": ("share of images", ""),
    "agreement": ("share of images", ""),
    "gate_entropy": ("H / ln N", "in [0, 1]"),
    "specialisation": ("I / ln min(K, N)", "in [0, 1]"),
    "conflict_rate": ("share of pairs", ""),
    "severity": ("max(0, −cosine)", "in [0, 1]"),
    "contention": ("share of gradient", "in [0, 1]"),
    "separation": ("", "in [−1, 1]"),
    "modulation": ("", "in [−1, 1]"),
}
_HEIGHT: dict[Width, float] = {"column": 1.35, "page": 1.8}


def headlines_of(found: RunSet) -> pd.DataFrame:
    """Headline figures of explainers, those of gates for effective attention, objective by
    objective.

    Columns metric, split, objective, seed, value, null, n, epochs (that the mean is over), probed
    (so many): a seed's objectives are taken over the epochs at which all of them are defined.
    """
    own = found.to_frame()
    own = own[own["attention"].isin(["", "effective"])]
    tables = []
    for (metric, split), rows in own.groupby(["metric", "split"], sort=False):
        name, where = str(metric), str(split)
        by_epoch, values = found.by_epoch(name, split=where), found.values(name, split=where)
        nulls = found.values(name, split=where, column="null")
        defined = side_by_side(by_epoch).notna().groupby(["seed", "epoch"]).any()
        taken = defined.groupby("seed").sum().reindex(values.index, fill_value=0)
        columns = {"value": values, "null": nulls, "epochs": taken}
        long = pd.DataFrame(
            {name: table.stack(future_stack=True) for name, table in columns.items()}
        ).reset_index()
        counts = rows[["objective", "seed", "n", "probed"]]
        tables.append(
            counts.merge(long, on=["objective", "seed"], how="left").assign(
                metric=name, split=where
            )
        )
    return pd.concat(tables, ignore_index=True)


def outside_ladder(found: RunSet) -> str:
    """The objectives that are not of the first ladder, in a list; '' where there are none."""
    first = ladders(found)[0].values()
    return listed([objective for objective in found.objectives if objective not in first])


def without(data: pd.DataFrame) -> str:
    """What a figure of the first ladder leaves out, in a few words; '' where nothing is."""
    names = data["left_out"].iloc[0]
    return plain(f"left out, of other settings: {names}") if names else ""


def _ladder_data(runs: RunSet) -> pd.DataFrame:
    """Columns metric, objective, rung ('' beside the ladder), adds, seed, split, value, null, n,
    epochs, probed, ….

    Of the first ladder, whose objectives are taken over the ``epochs`` of the ``probed`` ones at
    which all of them are defined in a seed; ``left_out`` names the objectives that do not share its
    settings.
    """
    found = explainers(runs, comparable=True)
    first = ladders(found)[0]
    rungs = {name: label for name, label in first.items() if name in LADDER}
    if len(rungs) < 2:
        raise KdxError(
            f"a ladder needs two of its rungs ({', '.join(LADDER)}) with the same settings; the "
            f"runs hold {', '.join(found.objectives)}"
        )
    adds, missed = {}, list[str]()
    for name in LADDER:
        missed.append(_ADDS.get(name, ""))
        if name in rungs:
            adds[rungs[name]] = ", ".join(filter(None, missed))
            missed.clear()
    lowest = next(name for name in LADDER if name in rungs)
    adds[rungs[lowest]] = ""
    frame = headlines_of(found.filter(objective=list(first.values()))).assign(
        left_out=outside_ladder(found)
    )
    frame["rung"] = (
        frame["objective"].map({label: name for name, label in rungs.items()}).fillna("")
    )
    frame["adds"] = frame["objective"].map(adds).fillna("")
    columns = [
        "metric",
        "objective",
        "rung",
        "adds",
        "seed",
        "split",
        "value",
        "null",
        "n",
        "epochs",
        "probed",
    ]
    return frame[[*columns, "left_out"]].reset_index(drop=True)


@styled
def _draw_ladder(data: pd.DataFrame, width: Width = "page") -> Drawn:
    names = data.drop_duplicates("objective").set_index("objective")
    rungs = [str(o) for rung in LADDER for o in names.index[names["rung"] == rung]]
    beside = [str(o) for o in names.index if o not in rungs]
    places = {o: i + 0.4 * (i >= len(rungs)) for i, o in enumerate([*rungs, *beside])}
    metrics = [
        metric
        for metric in METRICS.values()
        if data.loc[data["metric"] == metric.name, "value"].notna().any()
    ]
    columns = COLUMNS[width]
    figure = drawing(width, 1.6 + _HEIGHT[width] * -(-len(metrics) // columns))
    axes = panels(figure, len(metrics), columns)
    headline = data[data["split"] != "val"].dropna(subset="value")
    counts = headline.groupby(["metric", "objective"])["seed"].nunique()
    apart = counts.nunique() > 1
    for i, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        _ladder_panel(ax, data[data["metric"] == metric.name], metric, places, len(rungs))
        name_places(ax, places, shown=i // columns == (len(metrics) - 1) // columns)
        entitle(ax, metric.title, counts.loc[[metric.name]] if apart else None)
    adds = {str(o): str(text) for o, text in names["adds"].items()}
    says = {o: f"adds {adds[o]}" if adds[o] else "the lowest rung" for o in rungs}
    entries = [handle(o, linestyle="none", label=plain(f"{o}: {says[o]}")) for o in rungs]
    entries += [handle(o, linestyle="none", label=plain(f"{o}: beside the ladder")) for o in beside]
    entries += estimate_handles(several=data["seed"].nunique() > 1)
    entries += [
        Line2D([], [], color=LIGHT, linewidth=0.9, label="one seed, rung to rung"),
        Line2D(
            [],
            [],
            color=GREY,
            marker="o",
            linestyle="none",
            markersize=4,
            alpha=0.4,
            label="paler: validation split",
        ),
    ]
    missing = [name for name in LADDER if name not in set(names["rung"])]
    if missing:
        entries.append(Line2D([], [], linestyle="none", label=f"not run: {', '.join(missing)}"))
    entries += [
        Line2D([], [], linestyle="none", label=told)
        for told in (without(data), _epochs(data))
        if told
    ]
    legend(figure, entries, None if apart else f"{n_equals(counts)} for each objective")
    return figure, axes


def _ladder_panel(
    ax: Axes, data: pd.DataFrame, metric: Metric, places: dict[str, float], rungs: int
) -> None:
    """One metric at the objectives' ``places``, of which the first ``rungs`` are the ladder."""
    first, *others = [split for split in ("test", "train", "val") if split in set(data["split"])]
    shift = shifts(sorted(data["seed"].unique()))
    centre = -0.14 if others else 0.0
    table = data[data["split"] == first].pivot(index="seed", columns="objective", values="value")
    ladder = [o for o in list(places)[:rungs] if o in table.columns]
    for seed in table.index:
        across = [places[o] + centre + shift[seed] for o in ladder]
        ax.plot(across, table.loc[seed, ladder], color=LIGHT, linewidth=0.7, zorder=1)
    for (objective, split), rows in data.dropna(subset="value").groupby(
        ["objective", "split"], sort=False
    ):
        x = places[str(objective)] + (centre if split == first else 0.26)
        estimate(ax, rows, x, shift, paler=split != first)
    if data["null"].min() <= 0 <= data["null"].max() or metric.name in ("separation", "modulation"):
        ax.axhline(0, color=LIGHT, linewidth=0.6, zorder=0)
    if len(places) > rungs:
        ax.axvline(rungs - 0.2, color=LIGHT, linewidth=0.6, linestyle=":")
    unit, of_range = UNITS.get(metric.name, ("", ""))
    below = ", ".join(filter(None, [of_range, first]))
    ax.set_ylabel("\n".join(filter(None, [unit, below])))
    ax.yaxis.set_major_locator(MaxNLocator(4))


ladder = Figure(
    "ladder",
    "The ladder from hard labels to KD",
    "Every headline metric of the explainers along the ladder of controls, each rung adding one "
    "thing: every seed's point, thin lines joining a seed's points, the mean and its 95 % "
    "t-interval (none with one seed). Dashed: the null, for gates the run's initial gates at the "
    "same τ, for conflict the residuals permuted over samples. Conflict is that of the plain hard "
    "loss on the train probe set, with the validation probe set paler beside it; its figures are "
    "means over the probed epochs at which all objectives of the seed are defined.",
    _ladder_data,
    _draw_ladder,
)


def against_kd(found: RunSet) -> tuple[str, dict[str, str]]:
    """KD's label and, nearest control first, those of its ladder with what kd − other includes
    beside knowledge.

    Raises KdxError where there is no KD, or nothing that shares its settings.
    """
    first = ladders(found)[0]
    if "kd" not in first or len(first) < 2:
        raise KdxError(
            "differences need kd and another objective with its settings; the runs hold "
            f"{', '.join(found.objectives)}"
        )
    others = [
        rung for rung in (*reversed(LADDER[1:-1]), "label_smoothing", "hard") if rung in first
    ]
    return first["kd"], {first[rung]: _INCLUDES.get(rung, "") for rung in others}


def _differences_data(runs: RunSet) -> pd.DataFrame:
    """Columns metric, a, b, includes, seed, difference (a − b, of one seed), epochs, probed,
    left_out.

    Of the first ladder. A difference is the mean over the ``epochs`` of the ``probed`` ones at
    which both are defined; ``left_out`` names the objectives that do not share the ladder's
    settings.
    """
    found = explainers(runs, comparable=True)
    kd, others = against_kd(found)
    rows = []
    for metric in METRICS.values():
        table = found.by_epoch(metric.name)
        for other, includes in others.items():
            if not {kd, other} <= set(table.columns):
                continue
            pairs = by_seed(table[[kd, other]], metric.pairs_make)
            over = coverage(table, [kd, other])
            for seed, epochs, probed in zip(pairs.index, over.epochs, over.probed, strict=True):
                rows.append(
                    {
                        "metric": metric.name,
                        "a": kd,
                        "b": other,
                        "includes": includes,
                        "seed": seed,
                        "difference": pairs.loc[seed, kd] - pairs.loc[seed, other],
                        "epochs": epochs,
                        "probed": probed,
                    }
                )
    data = pd.DataFrame(rows).assign(left_out=outside_ladder(found))
    if data.empty:
        raise KdxError(
            f"{kd!r} shares no seed with {', '.join(others)}; train them with the same seeds"
        )
    return data


def _epochs(data: pd.DataFrame) -> str:
    """What a figure says where some means are not over all probed epochs; '' where all are."""
    return (
        "some means are not over all probed epochs: see the data"
        if (data["epochs"] < data["probed"]).any()
        else ""
    )


@styled
def _draw_differences(data: pd.DataFrame, width: Width = "page") -> Drawn:
    others = in_order(data["b"])
    includes = data.drop_duplicates("b").set_index("b")["includes"]
    kd = data["a"].iloc[0]
    metrics = [metric for metric in METRICS.values() if metric.name in set(data["metric"])]
    columns = COLUMNS[width]
    figure = drawing(width, 0.8 + -(-len(metrics) // columns) * (0.65 + 0.17 * len(others)))
    axes = panels(figure, len(metrics), columns, sharey=True)
    labels = [f"{kd} − {b}" + " †" * bool(includes[b]) for b in others]
    figure.set_layout_engine(
        "constrained", rect=(0.02, 0, 0.98, 1)
    )  # else long labels of shared axes are cut
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
            ax.plot(
                values,
                np.full(len(values), y),
                of.marker,
                color=of.colour,
                markersize=4,
                markerfacecolor="white",
                zorder=3,
            )
            ax.annotate(
                f"n = {interval.n}",
                (1, y),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=GREY,
            )
        ax.set_yticks(range(len(others)), [plain(label) for label in labels])
        ax.set_ylim(len(others) - 0.5, -0.5)
        wide = (figure.get_figwidth() - 1) / columns - 0.3
        ax.set_title(wrapped(metric.title, wide), loc="left")
        unit, _ = UNITS.get(metric.name, ("", ""))
        ax.set_xlabel(wrapped(unit, wide))
        ax.xaxis.set_major_locator(MaxNLocator(columns))
    drawn = "points: differences of one seed · upright: their mean · line: its 95 % t-interval"
    intervals = int((data.groupby(["metric", "b"])["seed"].nunique() > 1).sum())
    chance = (
        f"exploratory: of {intervals} such intervals {0.05 * intervals:.1f} leave out 0 by chance"
    )
    if data.groupby(["metric", "b"])["seed"].nunique().max() == 1:
        drawn, chance = "points: differences of one seed, which have no interval", ""
    note = "† " + includes[includes != ""].iloc[0] if (includes != "").any() else ""
    heading(figure, " · ".join(filter(None, [drawn, chance, _epochs(data), note, without(data)])))
    return figure, axes


differences = Figure(
    "differences",
    "Paired effects of KD, a forest plot: against every other objective, seed by seed",
    "Paired difference kd − other, which shares its settings, on every headline metric: each "
    "seed's point, the mean (upright) and the 95 % t-interval of the paired difference (none with "
    "one seed), not corrected for several comparisons, so exploratory. Figures of several epochs "
    "are compared epoch by epoch, over those at which both are defined. An interval that holds the "
    "line at 0 tells no difference. Only kd − kd_shuffled isolates class structure; against "
    "label_smoothing and hard the difference includes temperature and softness.",
    _differences_data,
    _draw_differences,
)
