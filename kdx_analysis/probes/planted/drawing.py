"""The figure of a validation of the probes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdx_analysis.drawing.style import LIGHT, canvas, styled
from kdx_analysis.probes.planted.validation import YARDSTICKS, Validation


@styled
def plot(record: Validation, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """Every seed a dot, a row a yardstick, over the range that was wanted.

    Red where it does not hold.
    """
    frame = record.to_frame()
    figure, ax = canvas(ax, "page", 0.9 + 0.25 * len(frame))
    table = record.values
    # Where metrics lie, and every value: bounds at infinity are drawn up to there.
    low, high = min(-1.0, table["value"].min()), max(1.0, table["value"].max())
    for y, (yardstick, row) in enumerate(zip(YARDSTICKS, frame.to_dict("records"), strict=True)):
        wanted = np.clip([yardstick.low, yardstick.high], low, high)
        # a bar of some width also where one value alone is wanted
        ax.hlines(y, wanted[0], max(wanted[1], wanted[0] + 0.01), color=LIGHT, linewidth=7)
        named = table["yardstick"] == row["yardstick"]
        values = table.loc[named & (table["planted"] == row["planted"]), "value"]
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
