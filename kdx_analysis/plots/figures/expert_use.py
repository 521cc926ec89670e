"""How the work is spread over the experts of a level."""

from __future__ import annotations

import pandas as pd

from kdx_analysis.drawing.style import Width
from kdx_analysis.plots.experts import RUN, draw_ranked, ranked
from kdx_analysis.plots.figure import Drawn, explainers, figure
from kdx_analysis.runs import RunSet

_FIGURES = ["rank", "value", "alpha", "null", "whole", "whole_null", "subtasks"]


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per run, level and expert at the selected epoch.

    Columns run, objective, seed, epoch, level, expert, rank, value (u, the expert's share of all
    subtasks' pathway mass of A), alpha (that of α), null (1/N), whole (experts in effective use,
    1/Σu²), whole_null (of the run's initial gates at the same τ), subtasks (n, over which u is a
    mean).
    """
    selected = {run.id: run.selected_epoch for run in explainers}
    paths = explainers.frame("pathways")
    paths = paths[paths["epoch"] == paths["run"].map(selected)]
    use = paths.groupby([*RUN, "epoch", "expert"], sort=False).agg(
        value=("effective", "mean"), alpha=("alpha", "mean"), subtasks=("subtask_index", "nunique")
    )
    frame = ranked(use.reset_index(), "value")
    of_run = frame.groupby(RUN)["value"]
    frame["null"] = 1 / of_run.transform("size")
    frame["whole"] = 1 / of_run.transform(lambda u: (u**2).sum())
    summary = explainers.frame("gate_summary")
    initial = summary[
        (summary["metric"] == "use_cv2")
        & (summary["attention"] == "effective")
        & (summary["epoch"] == summary["run"].map(selected))
    ].set_index(["run", "level"])["initial"]
    at = pd.MultiIndex.from_frame(frame[["run", "level"]])
    # 1/Σu² = N/(1 + CV²), since the mean share is 1/N
    frame["whole_null"] = (1 / frame["null"]) / (1 + initial.reindex(at).to_numpy())
    return frame[[*RUN[:3], "epoch", "level", "expert", *_FIGURES]].reset_index(drop=True)


@figure(
    title="How many experts are in use",
    caption="Left: the share u of all subtasks' pathway mass (of effective attention A, at the "
    "selected epoch) that each expert carries, every run a line, its experts from the most to the "
    "least used, since experts have no identity across seeds; dashed: even use. Right: how many "
    "experts that is in effect, 1/Σu², in [1, N], every seed, the mean and its 95 % t-interval "
    "(none with one seed); dashed: the run's initial gates at the same τ. An expert whose share is "
    "below 0.01/N is dead. α's shares stand in the data.",
    table=_table,
    wants=explainers,
    follows="flow",
)
def expert_use(data: pd.DataFrame, width: Width = "page") -> Drawn:
    return draw_ranked(
        data,
        width,
        each="share of all pathways u",
        each_null="even use, 1/N",
        whole="experts 1/Σu²",
        whole_title="in effective use",
    )
