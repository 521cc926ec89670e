"""Figures: runs in, (figure, axes) out; nothing is shown, and nothing global changed."""

from kdx_analysis.drawing.style import save, style
from kdx_analysis.plots import vam
from kdx_analysis.plots.accuracy import accuracy_conflict
from kdx_analysis.plots.attention import gates
from kdx_analysis.plots.comparisons import differences, ladder
from kdx_analysis.plots.curves import entropy, training
from kdx_analysis.plots.experts import contention, expert_use
from kdx_analysis.plots.faithfulness import (
    ablation,
    attribution,
    conductance,
    faithfulness,
    randomisation,
)
from kdx_analysis.plots.figure import FIGURES, Figure
from kdx_analysis.plots.flow import flow
from kdx_analysis.plots.matrices import conflict, conflict_differences
from kdx_analysis.plots.pairs import arms
from kdx_analysis.plots.tangles import tanglegram
from kdx_analysis.plots.trees import tree, tree_agreement, tree_of

for _figure in (
    arms,
    vam.attention,
    vam.entropy,
    ladder,
    differences,
    accuracy_conflict,
    entropy,
    gates,
    flow,
    expert_use,
    tree,
    tanglegram,
    tree_agreement,
    conflict,
    conflict_differences,
    contention,
    training,
):
    FIGURES.register(_figure.name)(_figure)

__all__ = [
    "FIGURES",
    "Figure",
    "ablation",
    "accuracy_conflict",
    "arms",
    "attribution",
    "conductance",
    "conflict",
    "conflict_differences",
    "contention",
    "differences",
    "entropy",
    "expert_use",
    "faithfulness",
    "flow",
    "gates",
    "ladder",
    "randomisation",
    "save",
    "style",
    "tanglegram",
    "training",
    "tree",
    "tree_agreement",
    "tree_of",
    "vam",
]
