"""Students under every arm of a study, pair by pair."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdx_analysis.drawing.marks import name_places
from kdx_analysis.drawing.style import (
    GREY,
    LIGHT,
    Width,
    counted,
    drawing,
    heading,
    plain,
    wrapped,
)
from kdx_analysis.plots.figure import Drawn, figure, students_of_arms
from kdx_analysis.plots.looks import look
from kdx_analysis.runs import RunSet, arm_contrasts, of_one_teacher, t_interval

_COLUMNS = ["student", "objective", "vam", "reference", "seed", "value", "n"]


def _table(students: RunSet) -> pd.DataFrame:
    """One row per run, of the first teacher where there are several.

    Columns student, objective, vam (the arm), reference (arms differ from it), seed, value (share
    right), n.
    """
    frames = [
        of_one_teacher(runs).to_frame().query("metric == 'accuracy'").assign(student=student)
        for student, runs in sorted(students.group("model").items())
    ]
    frame = pd.concat(frames, ignore_index=True).assign(reference=arm_contrasts(students)[0].b)
    return frame[_COLUMNS]


@figure(
    title="VAM: accuracy under every arm, pair by pair",
    caption="Test accuracy of every student under every arm, thin lines joining the runs of one "
    "seed, which start with the same weights and see the same images in the same order; beside it "
    "the paired differences from the first arm with their 95 % t-interval (none with one seed), "
    "not corrected for several comparisons; they hold for the runs' own teacher and split.",
    table=_table,
    wants=students_of_arms,
    follows="fidelity",
)
def arms(data: pd.DataFrame, width: Width = "page") -> Drawn:
    panels = list(data.groupby(["student", "objective"], sort=False))
    names = list(dict.fromkeys(data["vam"]))
    canvas = drawing(width, 0.7 + 2.0 * len(panels))
    axes = canvas.subplots(len(panels), 2, squeeze=False, sharex="col", width_ratios=(3, 2))
    wide = canvas.get_figwidth() / 2 - 0.4
    for (left, right), ((student, objective), of_panel) in zip(axes, panels, strict=True):
        table = 100 * of_panel.pivot(index="seed", columns="vam", values="value")
        table = table.reindex(columns=names)
        colour = look(str(objective)).colour
        _accuracies(left, table, colour)
        left.set_title(wrapped(plain(f"{student}, {objective}"), wide), loc="left")
        reference = of_panel["reference"].iloc[0]
        others = [arm for arm in names if arm != reference]
        _differences(right, table[others].sub(table[reference], axis=0), colour)
        right.set_title(wrapped(plain(f"difference from {reference}"), wide), loc="left")
    name_places(axes[-1, 0], {str(arm): float(place) for place, arm in enumerate(names)})
    axes[-1, 1].set_xlabel("percentage points")
    seeds = counted(of_panel.groupby("vam")["seed"].nunique().min() for _, of_panel in panels)
    tested = ", ".join(str(n) for n in sorted(data["n"].unique()))
    heading(
        canvas,
        f"n = {seeds} per arm, {tested} test images · points: seeds · bar: mean · line: 95 % "
        "t-interval",
    )
    return canvas, axes


def _accuracies(ax: Axes, table: pd.DataFrame, colour: str) -> None:
    """Every seed's accuracies under all arms, joined, and each arm's mean."""
    places = range(table.shape[1])
    for _, values in table.iterrows():
        ax.plot(places, values, color=LIGHT, linewidth=0.7, zorder=1)
    for place, arm in enumerate(table):
        values = table[arm].dropna()
        ax.plot(
            np.full(len(values), place),
            values,
            "o",
            color=colour,
            markersize=4.5,
            markeredgewidth=0,
            zorder=3,
        )
        if len(values) > 1:
            ax.hlines(values.mean(), place - 0.18, place + 0.18, color=colour, linewidth=1.8)
    ax.set_ylabel("test accuracy, %")
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _differences(ax: Axes, table: pd.DataFrame, colour: str) -> None:
    """The paired differences of every arm, their mean and 95 % t-interval."""
    ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    for y, arm in enumerate(table):
        if (values := table[arm].dropna()).empty:
            continue
        interval = t_interval(values.to_numpy())
        if interval.n > 1:
            ax.hlines(y, interval.low, interval.high, color=colour, linewidth=1.2)
            ax.vlines(interval.mean, y - 0.2, y + 0.2, color=colour, linewidth=2)
        ax.plot(
            values,
            np.full(len(values), y),
            "o",
            color=colour,
            markerfacecolor="white",
            markersize=4,
            zorder=3,
        )
    ax.set_yticks(range(table.shape[1]), [plain(arm) for arm in table])
    ax.set_ylim(table.shape[1] - 0.5, -0.5)
    ax.locator_params(axis="x", nbins=5)
