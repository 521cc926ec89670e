"""Objectives: what a student is asked to match, all of them in ``OBJECTIVES``.

``ladder`` has one row a rung, its target function beside it; ``distillers`` those that see features
as well. ``contract`` says how to declare one: :func:`target` on a function of the teacher's cut,
:func:`distiller` on a class. ``Objective`` is the loss that the training loop and the conflict
probe share, by subtask and term.
"""

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
