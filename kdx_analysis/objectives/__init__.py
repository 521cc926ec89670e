"""Objectives: what a student is asked to match."""

from kdx_analysis.objectives.objective import OBJECTIVES, Objective, scale_to
from kdx_analysis.objectives.targets import TARGETS, one_vs_rest_margins, teacher_cut

__all__ = ["OBJECTIVES", "TARGETS", "Objective", "one_vs_rest_margins", "scale_to", "teacher_cut"]
