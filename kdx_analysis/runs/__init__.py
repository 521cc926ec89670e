"""Runs on disk, many of them as one frame, and statistics over paired seeds."""

from kdx_analysis.runs.directory import ROLES, Run, environment, run_id, write_run
from kdx_analysis.runs.headlines import METRIC, METRICS, Metric, headlines
from kdx_analysis.runs.runset import RunSet
from kdx_analysis.runs.statistics import Interval, Paired, paired_difference, t_interval

__all__ = [
    "METRIC",
    "METRICS",
    "ROLES",
    "Interval",
    "Metric",
    "Paired",
    "Run",
    "RunSet",
    "environment",
    "headlines",
    "paired_difference",
    "run_id",
    "t_interval",
    "write_run",
]
