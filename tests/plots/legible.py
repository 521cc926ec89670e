"""What would make a figure illegible in print."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

INCHES = {"column": 3.4, "page": 7.0}


def faults(figure: Figure, width: str) -> list[str]:
    """Another width, letters below 7 pt, text that leaves the figure, and texts that cover each
    other.
    """
    found = []
    if figure.get_size_inches()[0] != INCHES[width]:
        found.append(f"{figure.get_size_inches()[0]} inches wide")
    shown = drawn(figure)
    found += [f"{t.get_text()!r} in {t.get_fontsize()} pt" for t in shown if t.get_fontsize() < 7]
    box = figure.bbox
    for t in shown:
        x0, y0, x1, y1 = t.get_window_extent().extents
        if x0 < box.x0 - 1 or y0 < box.y0 - 1 or x1 > box.x1 + 1 or y1 > box.y1 + 1:
            found.append(f"{t.get_text()!r} leaves the figure")
    return found + [f"{a!r} covers {b!r}" for a, b in overlapping(figure)]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Texts of which one covers more than a hair's breadth of another; slanting ones, whose boxes
    do, left out.
    """
    shown = [t for t in drawn(figure) if t.get_rotation() % 90 == 0]
    x0, y0, x1, y1 = np.array([t.get_window_extent().extents for t in shown]).T
    width = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0)
    height = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0)
    pairs = zip(*np.where(np.triu((width > 1.5) & (height > 1.5), k=1)), strict=True)
    return [(shown[i].get_text(), shown[j].get_text()) for i, j in pairs]


def drawn(figure: Figure) -> list[Text]:
    """All texts but labels of ticks beyond the ends of their axis, which matplotlib holds and does
    not draw.
    """
    beyond = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = np.sort(axis.get_view_interval())
            margin = 1e-9 * (high - low)
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            outside = [
                tick for tick in ticks if not low - margin <= tick.get_loc() <= high + margin
            ]
            beyond |= {label for tick in outside for label in (tick.label1, tick.label2)}
    return [
        t
        for t in figure.findobj(Text)
        if t.get_text().strip() and t.get_visible() and t not in beyond
    ]
