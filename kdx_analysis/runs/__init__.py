"""Runs on disk, many of them as one frame, and statistics over paired seeds."""

from kdx_analysis.runs.aggregates import Aggregate, interquartile_mean, probability_of_improvement
from kdx_analysis.runs.arms import ArmContrast, arm_contrasts, arms
from kdx_analysis.runs.ladders import ladders
from kdx_analysis.runs.run import ROLES, Run, environment, run_id, write_run
from kdx_analysis.runs.runset import RunSet
from kdx_analysis.runs.statistics.intervals import (
    Interval,
    Paired,
    bonferroni,
    paired_difference,
    t_interval,
)
from kdx_analysis.runs.statistics.paired import Effect, effects
from kdx_analysis.runs.statistics.pvalues import (
    LEAST_SEEDS,
    PValue,
    holm,
    paired_t_test,
    permutation_test,
    sign_flip_test,
)
from kdx_analysis.runs.tables.comparison import Comparison
from kdx_analysis.runs.tables.table import Table
from kdx_analysis.runs.trees import Dealt, TreePairs, deal_objectives, tree_pairs

__all__ = [
    "LEAST_SEEDS",
    "ROLES",
    "Aggregate",
    "ArmContrast",
    "Comparison",
    "Dealt",
    "Effect",
    "Interval",
    "PValue",
    "Paired",
    "Run",
    "RunSet",
    "Table",
    "TreePairs",
    "arm_contrasts",
    "arms",
    "bonferroni",
    "deal_objectives",
    "effects",
    "environment",
    "holm",
    "interquartile_mean",
    "ladders",
    "paired_difference",
    "paired_t_test",
    "permutation_test",
    "probability_of_improvement",
    "run_id",
    "sign_flip_test",
    "t_interval",
    "tree_pairs",
    "write_run",
]
