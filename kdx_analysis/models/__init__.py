"""Models: the zoo, the gates, the explainer and its tree, VAM."""

from kdx_analysis.models import vam
from kdx_analysis.models.hme import HME, Trace
from kdx_analysis.models.resolve import (
    build_model,
    check_fits,
    count_parameters,
    list_models,
    redrawn,
)
from kdx_analysis.models.splitting.experts import Level
from kdx_analysis.models.splitting.split import StudentSplit
from kdx_analysis.models.tree import Tree
from kdx_analysis.models.zoo import MODELS, StagedNet, plain_stage

__all__ = [
    "HME",
    "MODELS",
    "Level",
    "StagedNet",
    "StudentSplit",
    "Trace",
    "Tree",
    "build_model",
    "check_fits",
    "count_parameters",
    "list_models",
    "plain_stage",
    "redrawn",
    "vam",
]
