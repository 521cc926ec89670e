"""Runs on disk, many of them as one frame, and statistics over paired seeds."""

from kdx_analysis.intervals import (
    Interval,
    Paired,
    bonferroni,
    paired_difference,
    t_interval,
)
from kdx_analysis.runs.comparable import (
    ArmContrast,
    arm_contrasts,
    arms,
    comparable_explainers,
    explainers,
    ladders,
    of_one_teacher,
    own_teachers,
)
from kdx_analysis.runs.outputs import RunOutputs
from kdx_analysis.runs.run import ROLES, Run, environment, run_id, write_run
from kdx_analysis.runs.runset import RunSet
from kdx_analysis.runs.statistics.paired import Effect, effects
from kdx_analysis.runs.statistics.pvalues import LEAST_SEEDS, holm, paired_t_test
from kdx_analysis.runs.tables.comparison import Comparison
from kdx_analysis.runs.tables.table import Table
from kdx_analysis.runs.trees import Dealt, TreePairs, deal_objectives, tree_pairs

__all__ = [
    "LEAST_SEEDS",
    "ROLES",
    "ArmContrast",
    "Comparison",
    "Dealt",
    "Effect",
    "Interval",
    "Paired",
    "Run",
    "RunOutputs",
    "RunSet",
    "Table",
    "TreePairs",
    "arm_contrasts",
    "arms",
    "bonferroni",
    "comparable_explainers",
    "deal_objectives",
    "effects",
    "environment",
    "explainers",
    "holm",
    "ladders",
    "of_one_teacher",
    "own_teachers",
    "paired_difference",
    "paired_t_test",
    "run_id",
    "t_interval",
    "tree_pairs",
    "write_run",
]
