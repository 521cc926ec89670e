"""How the conflict is spread over the experts of a level."""

from __future__ import annotations

import pandas as pd

from kdx_analysis.drawing.style import Width
from kdx_analysis.plots.experts import RUN, draw_ranked, ranked
from kdx_analysis.plots.figure import Drawn, comparable_explainers, figure
from kdx_analysis.runs import RunSet

_FIGURES = ["rank", "value", "null", "whole", "whole_null", "epochs", "n"]


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per run, level and expert.

    Means over the probed epochs, of the hard loss on the train probe set.

    Columns run, objective, seed, level, expert, rank, value (what the expert adds to contention),
    null, whole (the level's contention), whole_null, epochs, n (probe images).
    """
    frame = explainers.frame("contention_by_expert")
    frame = frame[(frame["split"] == "train") & (frame["term"] == "hard")]
    # no null without its value, else they would be means over other epochs
    frame = frame.assign(null_mean=frame["null_mean"].where(frame["value"].notna()))
    means = frame.groupby([*RUN, "expert"], sort=False).agg(
        value=("value", "mean"),
        null=("null_mean", "mean"),
        epochs=("value", "count"),
        n=("n", "first"),
    )
    data = ranked(means.reset_index(), "value")
    of_run = data.groupby(RUN)
    data["whole"] = of_run["value"].transform("sum")
    data["whole_null"] = of_run["null"].transform("sum")
    return data[[*RUN, "expert", *_FIGURES]].reset_index(drop=True)


@figure(
    title="In which experts subtasks contend",
    caption="Left: what each expert adds to its level's contention, the share of all gradient that "
    "pulls against another subtask's inside it; every run a line, its experts from the most to the "
    "least contended, since experts have no identity across seeds; dashed: the null of the same "
    "expert (residuals permuted over samples). Right: their sum, the level's contention, every "
    "seed, the mean and its 95 % t-interval (none with one seed), dashed the null. Of the actual "
    "gradients of the plain hard loss on the train probe set, mean over the probed epochs.",
    table=_table,
    wants=comparable_explainers,
    follows="conflict_differences",
)
def contention(data: pd.DataFrame, width: Width = "page") -> Drawn:
    return draw_ranked(
        data,
        width,
        each="share of gradient",
        each_null="null of the same expert",
        whole="share of gradient",
        whole_title="all experts together",
    )
