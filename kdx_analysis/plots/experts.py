"""How the work, and the conflict, is spread over the experts of a level.

Experts have no identity across seeds, so each run's are ranked by what is drawn; a rank may be
compared over runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdx_analysis.drawing.marks import (
    NULL,
    entitle,
    estimate,
    estimate_handles,
    name_places,
    shifts,
)
from kdx_analysis.drawing.style import GREY, Width, drawing, in_order, legend, styled
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Drawn, Figure, explainers
from kdx_analysis.plots.looks import handle, look
from kdx_analysis.runs import RunSet

_RUN = ["run", "objective", "seed", "level"]


def _ranked(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """``frame`` of levels with several experts, with their rank by a column, 1 the largest, in
    every run and level.

    Experts of which the column is NaN have no rank and are left out.
    """
    frame = frame[frame.groupby(_RUN)["expert"].transform("nunique") > 1]
    if frame.empty:
        raise KdxError("no level has several experts; give the explainers more experts")
    frame = frame.dropna(subset=by)
    if frame.empty:
        raise KdxError(
            "what experts are ranked by is defined of none of them; look at the runs' gradients"
        )
    rank = frame.groupby(_RUN)[by].rank(ascending=False, method="first")
    return frame.assign(rank=rank.astype(int)).sort_values("rank", kind="stable")


@dataclass(frozen=True)
class _Ranked:
    """A figure with a row a level: on the left each run's experts by rank, on the right its level
    as a whole.
    """

    each: str
    each_null: str
    whole: str
    whole_title: str

    @styled
    def draw(self, data: pd.DataFrame, width: Width = "page") -> Drawn:
        """``data``: objective, seed, level, rank, value and null of an expert, whole and whole_null
        of its level.
        """
        objectives, levels = (
            in_order(data["objective"]),
            sorted(data["level"].unique(), reverse=True),
        )
        places, shift = (
            {o: float(i) for i, o in enumerate(objectives)},
            shifts(sorted(data["seed"].unique())),
        )
        figure = drawing(width, 1.4 + 1.6 * len(levels))
        axes = figure.subplots(len(levels), 2, squeeze=False, sharex="col")
        for (left, right), level in zip(axes, levels, strict=True):
            of_level = data[data["level"] == level]
            for (objective, _), run in of_level.groupby(["objective", "seed"], sort=False):
                of = look(str(objective))
                left.plot(
                    run["rank"], run["null"], color=GREY, linewidth=0.7, linestyle=NULL, zorder=1
                )
                left.plot(
                    run["rank"],
                    run["value"],
                    color=of.colour,
                    linestyle=of.line,
                    linewidth=1,
                    marker=of.marker,
                    markersize=3.5,
                    zorder=2,
                )
            left.set_ylim(bottom=0)
            left.set_ylabel(self.each)
            entitle(
                left,
                f"level {level}, experts of each run",
                of_level.groupby("objective")["seed"].nunique(),
            )
            left.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
            runs = of_level[["objective", "seed", "whole", "whole_null"]].drop_duplicates()
            runs = runs.rename(columns={"whole": "value", "whole_null": "null"}).dropna(
                subset="value"
            )
            counts = []
            for objective, rows in runs.groupby("objective", sort=False):
                drawn = look(str(objective))
                interval = estimate(
                    right,
                    rows,
                    places[str(objective)],
                    shift,
                    colour=drawn.colour,
                    marker=drawn.marker,
                )
                counts.append(interval.n)
            right.set_ylabel(self.whole)
            entitle(right, f"level {level}, {self.whole_title}", counts)
            right.yaxis.set_major_locator(MaxNLocator(4))
            name_places(right, places, shown=level == levels[-1])
        axes[-1, 0].set_xlabel("rank of the expert in its run")
        line = Line2D(
            [], [], color=GREY, linewidth=0.7, linestyle=NULL, label=f"left: {self.each_null}"
        )
        several = data["seed"].nunique() > 1
        legend(figure, [*(handle(o) for o in objectives), line, *estimate_handles(several=several)])
        return figure, axes


def _use_data(runs: RunSet) -> pd.DataFrame:
    """One row per run, level and expert at the selected epoch.

    Columns run, objective, seed, epoch, level, expert, rank, value (u, the expert's share of all
    subtasks' pathway mass of A), alpha (that of α), null (1/N), whole (experts in effective use,
    1/Σu²), whole_null (of the run's initial gates at the same τ), subtasks (n, over which u is a
    mean).
    """
    found = explainers(runs)
    selected = {run.id: run.selected_epoch for run in found}
    paths = found.frame("pathways")
    paths = paths[paths["epoch"] == paths["run"].map(selected)]
    use = paths.groupby([*_RUN, "epoch", "expert"], sort=False).agg(
        value=("effective", "mean"), alpha=("alpha", "mean"), subtasks=("subtask_index", "nunique")
    )
    frame = _ranked(use.reset_index(), "value")
    of_run = frame.groupby(_RUN)["value"]
    frame["null"], frame["whole"] = (
        1 / of_run.transform("size"),
        1 / of_run.transform(lambda u: (u**2).sum()),
    )
    summary = found.frame("gate_summary")
    initial = summary[
        (summary["metric"] == "use_cv2")
        & (summary["attention"] == "effective")
        & (summary["epoch"] == summary["run"].map(selected))
    ].set_index(["run", "level"])["initial"]
    at = pd.MultiIndex.from_frame(frame[["run", "level"]])
    frame["whole_null"] = (1 / frame["null"]) / (1 + initial.reindex(at).to_numpy())
    figures = ["rank", "value", "alpha", "null", "whole", "whole_null", "subtasks"]
    return frame[[*_RUN[:3], "epoch", "level", "expert", *figures]].reset_index(drop=True)


expert_use = Figure(
    "expert_use",
    "How many experts are in use",
    "Left: the share u of all subtasks' pathway mass (of effective attention A, at the selected "
    "epoch) that each expert carries, every run a line, its experts from the most to the least "
    "used, since experts have no identity across seeds; dashed: even use. Right: how many experts "
    "that is in effect, 1/Σu², in [1, N], every seed, the mean and its 95 % t-interval (none with "
    "one seed); dashed: the run's initial gates at the same τ. An expert whose share is below "
    "0.01/N is dead. α's shares stand in the data.",
    _use_data,
    _Ranked("share of all pathways u", "even use, 1/N", "experts 1/Σu²", "in effective use").draw,
)


def _contention_data(runs: RunSet) -> pd.DataFrame:
    """One row per run, level and expert; means over the probed epochs, of the hard loss on the
    train probe set.

    Columns run, objective, seed, level, expert, rank, value (what the expert adds to contention),
    null, whole (the level's contention), whole_null, epochs, n (probe images).
    """
    frame = explainers(runs, comparable=True).frame("contention_by_expert")
    frame = frame[(frame["split"] == "train") & (frame["term"] == "hard")]
    frame = frame.assign(null_mean=frame["null_mean"].where(frame["value"].notna()))
    means = frame.groupby([*_RUN, "expert"], sort=False).agg(
        value=("value", "mean"),
        null=("null_mean", "mean"),
        epochs=("value", "count"),
        n=("n", "first"),
    )
    data = _ranked(means.reset_index(), "value")
    of_run = data.groupby(_RUN)
    data["whole"], data["whole_null"] = (
        of_run["value"].transform("sum"),
        of_run["null"].transform("sum"),
    )
    return data[
        [*_RUN, "expert", "rank", "value", "null", "whole", "whole_null", "epochs", "n"]
    ].reset_index(drop=True)


contention = Figure(
    "contention",
    "In which experts subtasks contend",
    "Left: what each expert adds to its level's contention, the share of all gradient that pulls "
    "against another subtask's inside it; every run a line, its experts from the most to the least "
    "contended, since experts have no identity across seeds; dashed: the null of the same expert "
    "(residuals permuted over samples). Right: their sum, the level's contention, every seed, the "
    "mean and its 95 % t-interval (none with one seed), dashed the null. Of the actual gradients "
    "of the plain hard loss on the train probe set, mean over the probed epochs.",
    _contention_data,
    _Ranked(
        "share of gradient", "null of the same expert", "share of gradient", "all experts together"
    ).draw,
)
