"""Figures: runs in, (figure, axes) out; nothing is shown, and nothing global changed."""

from kdx_analysis.plots.comparisons import differences, ladder
from kdx_analysis.plots.figure import FIGURES, Figure
from kdx_analysis.plots.style import save, style

for _figure in (ladder, differences):
    FIGURES.register(_figure.name)(_figure)

__all__ = ["FIGURES", "Figure", "differences", "ladder", "save", "style"]
