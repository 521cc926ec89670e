"""Fidelity along the ladder: what is the task's, the kind's and the own teacher's."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdx_analysis.drawing.style import (
    GREY,
    Width,
    counted,
    drawing,
    in_order,
    legend,
    n_equals,
    plain,
    styled,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.objectives import OBJECTIVES
from kdx_analysis.probes.fidelity.whose import BASELINE, LIKENESSES

_TASK, _KIND, _OWN, _BAND = "#CFCFCF", "#9DB7D5", "#D55E00", "#EDEDED"
_OFFSETS = 0.16  # how far the seeds of an objective stand apart


@styled
def along_ladder(data: pd.DataFrame, width: Width = "page") -> tuple[Figure, np.ndarray]:
    """Two panels a likeness, as (figure, axes).

    Above, task, kind and own as a bar each objective, hollow below 0, every seed's likeness to its
    own teacher a point. Below, own alone: every seed's point, both intervals, the ceiling, and the
    band of the negative controls.

    Args:
        data: of :meth:`Fidelity.drawn`.
        width: ``column`` shows instance knowledge alone, or the first likeness that is defined.

    Raises KdxError where nothing could be taken apart.
    """
    _check(data)
    defined = set(data["metric"])
    # What leads stands first; it is undefined where classes are few.
    metrics = in_order(name for name in ("instance", *LIKENESSES) if name in defined)
    metrics = metrics[: 1 if width == "column" else None]
    objectives = in_order(data["objective"])
    canvas = drawing(width, 4.8)
    axes = canvas.subplots(2, len(metrics), sharex=True, squeeze=False)
    for (above, below), name in zip(axes.T, metrics, strict=True):
        rows = data[data["metric"] == name]
        _bars(above, rows, objectives)
        _owns(below, rows, objectives)
        title, unit = LIKENESSES[name]
        above.set_title(f"{title}\n({unit})", loc="left")
        below.set_xticks(
            range(len(objectives)), [plain(each) for each in objectives], rotation=60, ha="right"
        )
    axes[0, 0].set_ylabel("shared with the teacher")
    axes[1, 0].set_ylabel("own part")
    handles = [
        _square(_TASK, "task: every good model of the task shares it"),
        _square(_KIND, "kind: nearer to every teacher of the recipe"),
        _square(_OWN, "own: from this teacher alone"),
        Line2D([], [], color=GREY, linestyle="--", label="ceiling: the teacher as a student"),
        _square(_BAND, "within own of the negative controls"),
    ]
    if _some_below_0(data[data["metric"].isin(metrics)]):
        handles.append(_square("white", "hollow: a part below 0, which takes away", edge=GREY))
    legend(canvas, handles, heading=_counts(data))
    return canvas, axes


@styled
def instance_into(data: pd.DataFrame, ax: Axes) -> tuple[Figure, np.ndarray]:
    """own in instance knowledge alone, drawn into Axes; ``data`` as for :func:`along_ladder`."""
    _check(data)
    objectives = in_order(data["objective"])
    _owns(ax, data[data["metric"] == "instance"], objectives)
    ax.set_xticks(range(len(objectives)), [plain(each) for each in objectives])
    # Nothing is drawn of hard, whose place would else lie on the edge.
    ax.set_xlim(-0.5, len(objectives) - 0.5)
    ax.set_ylabel("own in instance knowledge")
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    return figure, np.array([ax])


def _check(data: pd.DataFrame) -> None:
    if data.empty:
        raise KdxError(
            "what students share with their teacher can't be taken apart, and there is nothing to "
            f"draw: no objective has a seed with a student under {BASELINE!r}; add such students"
        )


def _bars(ax: Axes, rows: pd.DataFrame, objectives: list[str]) -> None:
    for place, objective in enumerate(objectives):
        chosen = rows[rows["objective"] == objective]
        if chosen.empty:
            continue
        task, kind, own_part = (chosen[name].mean() for name in ("task", "kind", "own"))
        ax.bar(place, task, width=0.7, color=_TASK, zorder=1)
        bottom = task
        for value, colour in ((kind, _KIND), (own_part, _OWN)):
            if math.isnan(value):
                continue
            _part(ax, place, bottom, value, colour)
            bottom += value
        _points(ax, place, chosen["likeness"].to_numpy(), objective)
    ax.axhline(0, color=GREY, linewidth=0.7)


def _some_below_0(rows: pd.DataFrame) -> bool:
    means = rows.groupby(["metric", "objective"])[["kind", "own"]].mean()
    return bool((means < 0).any(axis=None))


def _part(ax: Axes, place: int, bottom: float, value: float, colour: str) -> None:
    """One part from ``bottom`` on; below 0 it is hollow, and narrow, as it lies over others."""
    if value < 0:
        ax.bar(
            place, value, 0.4, bottom, facecolor="white", edgecolor=colour, linewidth=1, zorder=2.5
        )
    else:
        ax.bar(place, value, 0.7, bottom, color=colour, zorder=2)


def _owns(ax: Axes, rows: pd.DataFrame, objectives: list[str]) -> None:
    controls = rows[rows["control"]].groupby("objective")["own"].mean().abs()
    if len(controls) and not math.isnan(highest := float(controls.max())):
        ax.axhspan(-highest, highest, color=_BAND, zorder=0)
    ceiling = rows["ceiling"].mean()
    ax.margins(y=0.1)  # room for a word above the highest interval
    for place, objective in enumerate(objectives):
        chosen = rows[rows["objective"] == objective]
        # own of hard is 0 by its definition, which is no finding.
        if chosen["siblings"].isna().all():
            continue
        first, mean = chosen.iloc[0], chosen["own"].mean()
        ax.vlines(place, first["teacher_low"], first["teacher_high"], color=_OWN, linewidth=0.9)
        ax.vlines(place, first["seed_low"], first["seed_high"], color=_OWN, linewidth=3, alpha=0.45)
        ax.hlines(mean, place - 0.3, place + 0.3, color=_OWN, linewidth=2)
        _points(ax, place, chosen["own"].to_numpy(), objective)
        if first["decided"]:
            highest = max(first["teacher_high"], first["seed_high"], chosen["own"].max())
            ax.annotate(
                "decided",
                (place, highest),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    ax.axhline(0, color=GREY, linewidth=0.7)
    if not math.isnan(ceiling):
        ax.axhline(ceiling, color=GREY, linestyle="--", linewidth=0.9)


def _square(colour: str, label: str, edge: str = "") -> Line2D:
    return Line2D(
        [],
        [],
        color=colour,
        markeredgecolor=edge or colour,
        marker="s",
        linestyle="",
        markersize=6,
        label=label,
    )


def _points(ax: Axes, place: int, values: np.ndarray, objective: str) -> None:
    at = place + np.linspace(-_OFFSETS, _OFFSETS, len(values)) * (len(values) > 1)
    marker = OBJECTIVES[objective].marker if objective in OBJECTIVES else ""
    ax.plot(
        at, values, marker or "o", color="black", markersize=3.5, markerfacecolor="white", zorder=3
    )


def _counts(data: pd.DataFrame) -> str:
    siblings = data["siblings"].dropna()
    beside = counted([int(siblings.min()) if len(siblings) else 0], "sibling")
    if (own_teachers := int(data["teachers"].max())) > 1:
        beside = f"{own_teachers} teachers with students of their own, {beside} each"
    return (
        f"{n_equals(data.groupby('objective')['seed'].nunique())}, {beside} · points: seeds · "
        "level: mean · thick: 95 % over seeds · thin: 95 % over teachers"
    )
