"""Models: the zoo, the gates, the explainer and its tree."""

from kdx_analysis.models.hme import HME, Trace
from kdx_analysis.models.resolve import build_model, check_fits, count_parameters, list_models
from kdx_analysis.models.tree import Tree
from kdx_analysis.models.zoo import MODELS, StagedNet, StagePlan

__all__ = [
    "HME",
    "MODELS",
    "StagePlan",
    "StagedNet",
    "Trace",
    "Tree",
    "build_model",
    "check_fits",
    "count_parameters",
    "list_models",
]
