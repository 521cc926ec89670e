"""Parts of a drawn figure, to be looked at."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Canvas


def upright(ax: Axes) -> list[np.ndarray]:
    """The vertical segments that stand for intervals."""
    segments = [
        s for c in ax.collections if isinstance(c, LineCollection) for s in c.get_segments()
    ]
    return [s for s in segments if len(s) == 2 and s[0][0] == s[1][0]]


def texts(figure: Canvas) -> str:
    return "\n".join(
        t.get_text().replace("\n", " ") for legend in figure.legends for t in legend.get_texts()
    )
