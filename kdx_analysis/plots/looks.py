"""How each objective is drawn in every figure: a fixed colour, marker and line."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D

from kdx_analysis.drawing.style import plain
from kdx_analysis.objectives import OBJECTIVES


@dataclass(frozen=True)
class Look:
    """How an objective is drawn.

    Objectives are told apart by colour, and by marker and dashes where there is none.
    """

    colour: str
    marker: str
    line: Any = "-"


# mostly of Paul Tol's muted scheme, none of them a declared objective's
_SPARE = ("#332288", "#882255", "#999933", "#E69F00", "#661100", "#117733", "#8B6F47")
_SPARE_MARKERS = ("X", "p", "<", ">", "d", "8", "h")


def look(objective: str) -> Look:
    """The look of an objective's label, as its row declares it.

    A label that is no plain name, or whose row declares none, gets a look that depends on the label
    alone.
    """
    if objective in OBJECTIVES and (row := OBJECTIVES[objective]).colour:
        return Look(row.colour, row.marker, row.line)
    # a checksum, since Python's own hash of a text differs from process to process
    colour, marker = divmod(zlib.crc32(objective.encode()) % 49, 7)
    return Look(_SPARE[colour], _SPARE_MARKERS[marker], (0, (4, 1, 1, 1, 1, 1)))


def handle(objective: str, **changes: Any) -> Line2D:
    """The legend's entry for an objective; ``changes`` are properties of its line."""
    drawn = look(objective)
    properties = {
        "color": drawn.colour,
        "marker": drawn.marker,
        "linestyle": drawn.line,
        "label": plain(objective),
        "markersize": 5,
    }
    return Line2D([], [], **(properties | changes))
