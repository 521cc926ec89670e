"""Do students stay like their teacher when images are worn down?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdx_analysis.drawing.marks import shifts
from kdx_analysis.drawing.style import (
    GREY,
    LIGHT,
    Width,
    drawing,
    in_order,
    legend,
    n_equals,
    plain,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Drawn, figure
from kdx_analysis.plots.looks import handle, look
from kdx_analysis.probes.fidelity.shift import CLEAN, CORRUPTIONS, WORST
from kdx_analysis.runs import RunSet
from kdx_analysis.runs.shifted import shifted

# The likeness that leads; the next where it is undefined, as instance is of three classes.
_LEADING = ("instance", "second_choice", "hardness")
_TITLES = {
    "instance": "instance\nknowledge shared",
    "second_choice": "second choices\nshared beyond chance",
    "hardness": "hardness\nshared",
    "accuracy": "accuracy, share\nof test images",
}
_HEIGHT: dict[Width, float] = {"column": 0.95, "page": 1.35}
_COLUMNS = ["role", "vam", "objective", "seed", "corruption", "severity", "metric", "value", "n"]


def _table(runs: RunSet) -> pd.DataFrame:
    """One row per network, corruption, severity and metric.

    Columns role, vam, objective ('' of teachers), seed, corruption, severity (0: the images as they
    are, given under every corruption), metric (instance, or a likeness that is defined, to the own
    teacher; accuracy), value, n.
    """
    frame = shifted(runs)
    frame = frame[(frame["relation"] == "own") | (frame["metric"] == "accuracy")]
    defined = set(frame.loc[frame["value"].notna() & (frame["role"] != "teacher"), "metric"])
    leading = next((metric for metric in _LEADING if metric in defined), None)
    if leading is None:
        raise KdxError(
            "no likeness to the teacher is defined on the corrupted images; give runs of a study "
            "with three classes or more, their teacher among them"
        )
    frame = frame[frame["metric"].isin([leading, "accuracy"])]
    clean, worn = frame[frame["corruption"] == CLEAN], frame[frame["corruption"] != CLEAN]
    asked = [name for name in CORRUPTIONS if name in set(worn["corruption"])]
    starts = [clean.assign(corruption=name) for name in asked]
    table = pd.concat([*starts, worn], ignore_index=True)
    return table[_COLUMNS].sort_values("severity", kind="stable").reset_index(drop=True)


@figure(
    title="Does the student stay like its teacher under shift?",
    caption="Likeness to the own teacher on test images under corruptions, against their "
    "severity (0: the images as they are), and accuracy beside it: every seed's point, a line "
    "through the mean over seeds; dashed the teachers' accuracy. Likeness counts what is shared "
    "beyond an image's true class; its value by chance is 0. Students and explainers are apart, "
    "the latter compared by their margins. Hard labels show what any network of the task shares.",
    table=_table,
    follows="training",
)
def shift(data: pd.DataFrame, width: Width = "page") -> Drawn:
    students = data[data["role"] != "teacher"]
    teachers = data[data["role"] == "teacher"]
    names = [name for name in CORRUPTIONS if name in set(data["corruption"])]
    leading = next(metric for metric in _LEADING if metric in set(students["metric"]))
    roles = in_order(students["role"])
    places = _places(roles, (leading, "accuracy"), names, width)
    last_row, last_column = np.max(list(places.values()), axis=0)
    canvas = drawing(width, 1.2 + _HEIGHT[width] * (last_row + 1))
    shared: Literal["row", "col"] = "row" if width == "page" else "col"
    axes = canvas.subplots(last_row + 1, last_column + 1, squeeze=False, sharex=True, sharey=shared)
    for (role, metric, name), place in places.items():
        ax = axes[place]
        _panel(
            ax, _of(students[students["role"] == role], name, metric), _of(teachers, name, metric)
        )
        if width == "column" or place[1] == 0:
            ax.set_ylabel(_TITLES[metric])
        if width == "column" or metric == leading:
            ax.set_title(f"{role}: {name}" if len(roles) > 1 else name, loc="left")
    for ax in axes[-1]:
        ax.set_xlabel("severity")
    _explain(canvas, students, bool(len(teachers)))
    return canvas, axes


def _places(
    roles: Sequence[str], metrics: Sequence[str], names: Sequence[str], width: Width
) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Row and column of every panel, by role, metric and corruption.

    Corruptions stand side by side on a page and below each other in a column.
    """
    places = {}
    for r, role in enumerate(roles):
        for (m, metric), (c, name) in product(enumerate(metrics), enumerate(names)):
            page, column = (len(metrics) * r + m, c), (len(names) * r + c, m)
            places[role, metric, name] = page if width == "page" else column
    return places


def _of(data: pd.DataFrame, corruption: str, metric: str) -> pd.DataFrame:
    return data[(data["corruption"] == corruption) & (data["metric"] == metric)]


def _panel(ax: Axes, students: pd.DataFrame, teachers: pd.DataFrame) -> None:
    """Every seed's points, and a line through their means, objective by objective."""
    shift_of = shifts(sorted(students["seed"].unique()))
    for (objective, vam), rows in students.groupby(["objective", "vam"], sort=False):
        drawn = look(_label(str(objective), str(vam)))
        at = rows["severity"] + rows["seed"].map(shift_of)
        ax.plot(
            at,
            rows["value"],
            drawn.marker,
            color=drawn.colour,
            markersize=2.6,
            markeredgewidth=0,
            alpha=0.6,
        )
        mean = rows.groupby("severity")["value"].mean()
        ax.plot(mean.index, mean, color=drawn.colour, linestyle=drawn.line, linewidth=1)
    if len(teachers):
        mean = teachers.groupby("severity")["value"].mean()
        ax.plot(mean.index, mean, color=GREY, linestyle="--", linewidth=0.9, zorder=1)
    else:
        ax.axhline(0, color=LIGHT, linewidth=0.6, zorder=0)
    ax.set_xticks(np.arange(WORST + 1))


def _label(objective: str, vam: str) -> str:
    return " ".join(filter(None, (objective, vam)))


def _explain(canvas: Figure, students: pd.DataFrame, teachers: bool) -> None:
    """The legend: every objective, and what points and lines are."""
    labels = [_label(*each) for each in students[["objective", "vam"]].itertuples(index=False)]
    entries = [handle(label, label=plain(label)) for label in in_order(labels)]
    if teachers:
        entries.append(Line2D([], [], color=GREY, linestyle="--", linewidth=0.9, label="teacher"))
    counts = students.groupby(["role", "objective", "vam"])["seed"].nunique()
    legend(canvas, entries, f"{n_equals(counts)} for each objective")
