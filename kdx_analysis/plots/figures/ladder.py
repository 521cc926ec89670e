"""The ladder of controls, rung by rung, on every headline metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdx_analysis.drawing.marks import entitle, estimate_handles, name_places, shifts
from kdx_analysis.drawing.style import (
    COLUMNS,
    GREY,
    LIGHT,
    Width,
    drawing,
    legend,
    n_equals,
    panels,
    plain,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import METRICS, Metric
from kdx_analysis.objectives import rungs
from kdx_analysis.plots.comparisons import (
    INTERVAL,
    fewer_epochs,
    headlines_of,
    outside_ladder,
    range_of,
    seeds_at,
    without,
)
from kdx_analysis.plots.figure import Drawn, comparable_explainers, figure
from kdx_analysis.plots.looks import handle
from kdx_analysis.runs import RunSet, ladders

_HEIGHT: dict[Width, float] = {"column": 1.35, "page": 1.8}
_COLUMNS = [
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
    "left_out",
]


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per metric, split and run.

    Columns metric, objective, rung ('' beside the ladder), adds, seed, split, value, null, n,
    epochs, probed, left_out.

    Of the first ladder, whose objectives are taken over the ``epochs`` of the ``probed`` ones at
    which all of them are defined in a seed; ``left_out`` names the objectives that do not share its
    settings.
    """
    first = ladders(explainers)[0]
    names = [rung.name for rung in rungs()]
    labels = {name: label for name, label in first.items() if name in names}
    if len(labels) < 2:
        raise KdxError(
            f"a ladder needs two of its rungs ({', '.join(names)}) with the same settings; the "
            f"runs hold {', '.join(explainers.objectives)}"
        )
    frame = headlines_of(explainers.filter(objective=list(first.values()))).assign(
        left_out=outside_ladder(explainers)
    )
    frame["rung"] = frame["objective"].map({label: name for name, label in labels.items()})
    frame["rung"] = frame["rung"].fillna("")
    frame["adds"] = frame["objective"].map(_added(labels)).fillna("")
    return frame[_COLUMNS].reset_index(drop=True)


def _added(labels: Mapping[str, str]) -> dict[str, str]:
    """What each label of the rungs that were run adds to the one below; '' for the lowest.

    With it goes what the rungs that are missing between them add.
    """
    adds, missed = dict[str, str](), list[str]()
    for rung in rungs():
        missed += rung.adds
        if rung.name in labels:
            adds[labels[rung.name]] = ", ".join(missed) if adds else ""
            missed.clear()
    return adds


@figure(
    title="The ladder from hard labels to KD",
    caption="Every headline metric of the explainers along the ladder of controls, each rung "
    "adding one thing: every seed's point, thin lines joining a seed's points, the mean and its "
    "95 % t-interval (none with one seed). Dashed: the null, for gates the run's initial gates at "
    "the same τ, for conflict the residuals permuted over samples. Conflict is that of the plain "
    "hard loss on the train probe set, with the validation probe set paler beside it; its figures "
    "are means over the probed epochs at which all objectives of the seed are defined.",
    table=_table,
    wants=comparable_explainers,
    follows="vam_entropy",
)
def ladder(data: pd.DataFrame, width: Width = "page") -> Drawn:
    names = data.drop_duplicates("objective").set_index("objective")
    by_rung = {rung: str(objective) for objective, rung in names["rung"].items()}
    ladder_ = [by_rung[rung.name] for rung in rungs() if rung.name in by_rung]
    beside = [str(o) for o in names.index if o not in ladder_]
    places = {o: i + 0.4 * (i >= len(ladder_)) for i, o in enumerate([*ladder_, *beside])}
    defined = set(data.loc[data["value"].notna(), "metric"])
    metrics = [metric for metric in METRICS.values() if metric.name in defined]
    columns = COLUMNS[width]
    canvas = drawing(width, 1.6 + _HEIGHT[width] * -(-len(metrics) // columns))
    axes = panels(canvas, len(metrics), columns)
    headline = data[data["split"] != "val"].dropna(subset="value")
    counts = headline.groupby(["metric", "objective"])["seed"].nunique()
    apart = counts.nunique() > 1
    for i, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        _panel(ax, data[data["metric"] == metric.name], metric, places, len(ladder_))
        name_places(ax, places, shown=i // columns == (len(metrics) - 1) // columns)
        entitle(ax, metric.title, counts.loc[[metric.name]] if apart else None)
    entries = _entries(data, names["adds"], ladder_, beside)
    notes = filter(None, [_not_run(by_rung), without(data), fewer_epochs(data)])
    entries += [Line2D([], [], linestyle="none", label=note) for note in notes]
    legend(canvas, entries, None if apart else f"{n_equals(counts)} for each objective")
    return canvas, axes


def _not_run(run: Collection[str]) -> str:
    """What the legend says of rungs that no objective is on; '' where there are none."""
    missing = [rung.name for rung in rungs() if rung.name not in run]
    return f"not run: {', '.join(missing)}" if missing else ""


def _entries(
    data: pd.DataFrame, adds: pd.Series, rungs: list[str], beside: list[str]
) -> list[Line2D]:
    """The legend: every objective with what it adds, and what points, lines and bars are."""
    says = {o: f"adds {adds[o]}" if adds[o] else "the lowest rung" for o in rungs}
    entries = [handle(o, linestyle="none", label=plain(f"{o}: {says[o]}")) for o in rungs]
    entries += [handle(o, linestyle="none", label=plain(f"{o}: beside the ladder")) for o in beside]
    entries += estimate_handles(INTERVAL, several=data["seed"].nunique() > 1)
    joined = Line2D([], [], color=LIGHT, linewidth=0.9, label="one seed, rung to rung")
    pale = Line2D(
        [],
        [],
        color=GREY,
        marker="o",
        linestyle="none",
        markersize=4,
        alpha=0.4,
        label="paler: validation split",
    )
    return [*entries, joined, pale]


def _panel(
    ax: Axes, data: pd.DataFrame, metric: Metric, places: dict[str, float], rungs: int
) -> None:
    """One metric at the objectives' ``places``, of which the first ``rungs`` are the ladder."""
    first, *others = [split for split in ("test", "train", "val") if split in set(data["split"])]
    shift = shifts(sorted(data["seed"].unique()))
    centre = -0.14 if others else 0.0
    table = data[data["split"] == first].pivot(index="seed", columns="objective", values="value")
    joined = [o for o in list(places)[:rungs] if o in table.columns]
    for seed in table.index:
        across = [places[o] + centre + shift[seed] for o in joined]
        ax.plot(across, table.loc[seed, joined], color=LIGHT, linewidth=0.7, zorder=1)
    for (objective, split), rows in data.dropna(subset="value").groupby(
        ["objective", "split"], sort=False
    ):
        x = places[str(objective)] + (centre if split == first else 0.26)
        seeds_at(ax, rows, x, shift, paler=split != first)
    if metric.signed or data["null"].min() <= 0 <= data["null"].max():
        ax.axhline(0, color=LIGHT, linewidth=0.6, zorder=0)
    if len(places) > rungs:
        ax.axvline(rungs - 0.2, color=LIGHT, linewidth=0.6, linestyle=":")
    below = ", ".join(filter(None, [range_of(metric), first]))
    ax.set_ylabel("\n".join(filter(None, [metric.unit, below])))
    ax.yaxis.set_major_locator(MaxNLocator(4))
