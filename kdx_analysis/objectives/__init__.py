"""Objectives: what a student is asked to match."""

from kdx_analysis.objectives.contract import (
    OBJECTIVES,
    Batch,
    Distiller,
    Options,
    Row,
    check_objectives,
    distiller,
    ladder_names,
    rungs,
    target,
)
from kdx_analysis.objectives.objective import Objective, scale_to
from kdx_analysis.objectives.targets import one_vs_rest_margins, teacher_cut

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Distiller",
    "Objective",
    "Options",
    "Row",
    "check_objectives",
    "distiller",
    "ladder_names",
    "one_vs_rest_margins",
    "rungs",
    "scale_to",
    "target",
    "teacher_cut",
]
