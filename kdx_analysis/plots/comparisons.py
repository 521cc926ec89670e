"""What figures that set objectives against each other share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kdx_analysis.drawing.marks import estimate
from kdx_analysis.drawing.style import plain
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import Metric, together
from kdx_analysis.objectives import OBJECTIVES, rungs
from kdx_analysis.plots.looks import look
from kdx_analysis.runs import RunSet, ladders, t_interval
from kdx_analysis.runs.statistics.paired import side_by_side
from kdx_analysis.runs.tables.numbers import listed

INTERVAL = "95 % t-interval"
# A share of images or of pairs is one count over another, so nobody has to be told its range.
_COUNTED = ("share of images", "share of pairs")


def headlines_of(explainers: RunSet) -> pd.DataFrame:
    """Headline figures of explainers, objective by objective; of gates for effective attention.

    Columns metric, split, objective, seed, value, null, n, epochs (that the mean is over), probed
    (so many): a seed's objectives are taken over the epochs at which all of them are defined.
    """
    headlines = explainers.to_frame()
    headlines = headlines[headlines["attention"].isin(["", "effective"])]
    headlines = headlines[headlines["metric"].isin([metric.name for metric in together()])]
    tables = []
    for (metric, split), rows in headlines.groupby(["metric", "split"], sort=False):
        name, where = str(metric), str(split)
        by_epoch = explainers.by_epoch(name, split=where)
        values = explainers.values(name, split=where)
        nulls = explainers.values(name, split=where, column="null")
        defined = side_by_side(by_epoch).notna().groupby(["seed", "epoch"]).any()
        taken = defined.groupby("seed").sum().reindex(values.index, fill_value=0)
        columns = {"value": values, "null": nulls, "epochs": taken}
        long = pd.DataFrame(
            {name: table.stack(future_stack=True) for name, table in columns.items()}
        ).reset_index()
        # Runs of several teachers are one value, their mean, and were probed alike.
        counts = rows[["objective", "seed", "n", "probed"]].drop_duplicates(["objective", "seed"])
        joined = counts.merge(long, on=["objective", "seed"], how="left")
        tables.append(joined.assign(metric=name, split=where))
    return pd.concat(tables, ignore_index=True)


def range_of(metric: Metric) -> str:
    """The range of a metric as its axis says it; '' where it has none, or where its unit says it.

    >>> from kdx_analysis.metrics import METRICS
    >>> [range_of(METRICS[name]) for name in ("contention", "modulation", "accuracy", "affinity")]
    ['in [0, 1]', 'in [−1, 1]', '', '']
    """
    if metric.unit in _COUNTED or not np.isfinite(metric.range).all():
        return ""
    low, high = (f"{end:g}".replace("-", "\N{MINUS SIGN}") for end in metric.range)
    return f"in [{low}, {high}]"


def seeds_at(
    ax: Axes, rows: pd.DataFrame, x: float, shift: Mapping[int, float], *, paler: bool = False
) -> int:
    """One objective at ``x``: seeds, mean, null (dashed) and, unless ``paler``, the t-interval.

    Args:
        rows: columns objective, seed, value and null, of which the values are all defined.
        shift: each seed's place beside ``x``.

    Returns:
        How many seeds there are.
    """
    drawn = look(rows["objective"].iloc[0])
    interval = t_interval(rows["value"].to_numpy())
    several = interval.n > 1
    estimate(
        ax,
        x,
        x + rows["seed"].map(shift) * (0.5 if paler else 1),
        rows["value"],
        colour=drawn.colour,
        marker=drawn.marker,
        mean=interval.mean if several else None,
        interval=(interval.low, interval.high) if several and not paler else None,
        null=rows["null"].mean() if rows["null"].notna().any() else None,
        paler=paler,
    )
    return interval.n


def outside_ladder(explainers: RunSet) -> str:
    """The objectives that are not of the first ladder, in a list; '' where there are none."""
    first = ladders(explainers)[0].values()
    return listed([objective for objective in explainers.objectives if objective not in first])


def without(data: pd.DataFrame) -> str:
    """What a figure of the first ladder leaves out, in a few words; '' where nothing is."""
    names = data["left_out"].iloc[0]
    return plain(f"left out, of other settings: {names}") if names else ""


def fewer_epochs(data: pd.DataFrame) -> str:
    """What a figure says where some means are not over all probed epochs; '' where all are."""
    return (
        "some means are not over all probed epochs: see the data"
        if (data["epochs"] < data["probed"]).any()
        else ""
    )


def against_kd(explainers: RunSet) -> tuple[str, dict[str, str]]:
    """KD's label and those of its ladder, nearest control first, each with what it includes.

    That is what kd − other includes beside knowledge.

    Raises KdxError where there is no KD, or nothing that shares its settings.
    """
    first = ladders(explainers)[0]
    if "kd" not in first or len(first) < 2:
        raise KdxError(
            "differences need kd and another objective with its settings; the runs hold "
            f"{', '.join(explainers.objectives)}"
        )
    lowest, *controls = [rung.name for rung in rungs() if rung.name != "kd"]
    beside = [name for name, row in OBJECTIVES.items() if not row.rung]
    others = [name for name in (*reversed(controls), *beside, lowest) if name in first]
    return first["kd"], {first[name]: _includes(name) for name in others}


def _includes(name: str) -> str:
    """What kd − another objective holds beside knowledge: all of KD's form where that has none."""
    return "" if OBJECTIVES[name].distils else "includes temperature and softness"
