"""Runs on disk, many of them as one frame, and statistics over paired seeds."""

from kdx_analysis.runs.arms import ArmContrast, arm_contrasts, arms
from kdx_analysis.runs.directory import ROLES, Run, environment, run_id, write_run
from kdx_analysis.runs.headlines import METRIC, METRICS, Metric, headlines
from kdx_analysis.runs.runset import RunSet
from kdx_analysis.runs.statistics import Interval, Paired, paired_difference, t_interval
from kdx_analysis.runs.trees import Dealt, TreePairs, deal_objectives, tree_pairs

__all__ = [
    "METRIC",
    "METRICS",
    "ROLES",
    "ArmContrast",
    "Dealt",
    "Interval",
    "Metric",
    "Paired",
    "Run",
    "RunSet",
    "TreePairs",
    "arm_contrasts",
    "arms",
    "deal_objectives",
    "environment",
    "headlines",
    "paired_difference",
    "run_id",
    "t_interval",
    "tree_pairs",
    "write_run",
]
