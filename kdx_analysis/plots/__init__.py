"""Figures: runs in, (figure, axes) out; nothing is shown, and nothing global changed."""

from kdx_analysis.plots import vam
from kdx_analysis.plots.attention import gates
from kdx_analysis.plots.comparisons import differences, ladder
from kdx_analysis.plots.curves import entropy, training
from kdx_analysis.plots.faithfulness import ablation, attribution, conductance, faithfulness, randomisation
from kdx_analysis.plots.figure import FIGURES, Figure
from kdx_analysis.plots.matrices import conflict
from kdx_analysis.plots.pairs import arms
from kdx_analysis.plots.style import save, style
from kdx_analysis.plots.trees import tree, tree_agreement, tree_of

for _figure in (
    arms, vam.attention, vam.entropy, ladder, differences, entropy, gates, tree, tree_agreement, conflict, training,
):  # fmt: skip
    FIGURES.register(_figure.name)(_figure)

__all__ = [
    "FIGURES",
    "Figure",
    "ablation",
    "arms",
    "attribution",
    "conductance",
    "conflict",
    "differences",
    "entropy",
    "faithfulness",
    "gates",
    "ladder",
    "randomisation",
    "save",
    "style",
    "training",
    "tree",
    "tree_agreement",
    "tree_of",
    "vam",
]
