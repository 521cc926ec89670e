"""Figures: runs in, (figure, axes) out; nothing is shown, and nothing global changed.

Every figure of :data:`FIGURES` is an attribute by its name, as in ``kdx.plots.ladder(runs)``.
"""

from kdx_analysis.drawing.style import save, style
from kdx_analysis.plots.figure import FIGURES, Figure

__all__ = ["FIGURES", "Figure", "save", "style"]


def __getattr__(name: str) -> Figure:
    if name.startswith("_") or name not in FIGURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return FIGURES[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *FIGURES])
