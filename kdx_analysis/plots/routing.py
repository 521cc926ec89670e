"""What figures of gates share: the runs of the first seed, and one order of the subtasks."""

from __future__ import annotations

import pandas as pd

from kdx_analysis.drawing.classes import Clusters, clustered
from kdx_analysis.plots.matrices import symmetric
from kdx_analysis.runs import RunSet, of_one_teacher


def routed_clusters(explainers: RunSet) -> Clusters:
    """Classes clustered on the routing distance of their pathways.

    The mean over runs and levels at the last epoch.
    """
    K = len(explainers.classes)
    routing = explainers.frame("routing", attention="effective")
    routing = routing[routing["epoch"] == routing["epoch"].max()]
    return clustered(symmetric(routing, "distance", K, 0.0))


def first_seed(explainers: RunSet) -> RunSet:
    """Those of the first seed and teacher, since experts have no identity across trainings."""
    return of_one_teacher(explainers.filter(seed=explainers.seeds[0]))


def one_run(data: pd.DataFrame) -> str:
    """The title of a figure of one seed, one run per objective."""
    epochs = ", ".join(str(epoch) for epoch in sorted(data["epoch"].unique()))
    return f"seed {data['seed'].iloc[0]}, epoch {epochs} (n = 1 run per objective)"
