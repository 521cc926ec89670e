"""How KD changes which subtasks' gradients oppose each other, as matrices."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdx_analysis.drawing.style import Width, plain
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.comparisons import against_kd, outside_ladder, without
from kdx_analysis.plots.figure import Drawn, comparable_explainers, figure
from kdx_analysis.plots.matrices import cosines, draw_matrices, with_rows
from kdx_analysis.runs import RunSet

_PAIR = ["a", "b", "a_index", "b_index"]
_COLUMNS = [
    "a",
    "b",
    "a_row",
    "b_row",
    "kd",
    "other",
    "includes",
    "difference",
    "null",
    "seeds",
    "epochs",
    "n",
    "left_out",
]


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per objective beside KD and pair of subtasks.

    Columns a, b (subtasks), a_row, b_row, kd, other, includes, difference, null, seeds, epochs, n,
    left_out.

    One row a pair. ``difference`` is kd − other of the cosine, paired by seed and epoch and then
    averaged over ``epochs`` and ``seeds``; ``null`` the same of the nulls' means; n is probe
    images; ``left_out`` names the objectives that do not share the first ladder's settings.
    """
    kd, others = against_kd(explainers)
    frame = cosines(explainers)
    keyed = frame.set_index(["seed", "epoch", *_PAIR])[["objective", "cosine", "null_mean", "n"]]
    by_objective = dict(list(keyed.groupby("objective")))
    probed = [other for other in others if other in by_objective]
    if kd not in by_objective or not probed:
        raise KdxError(
            f"conflict was not probed under {kd!r} and another objective; probe the explainers of "
            "both"
        )
    tables = [
        _paired(by_objective[kd], by_objective[other]).assign(
            kd=kd, other=other, includes=others[other]
        )
        for other in probed
    ]
    data = pd.concat(tables, ignore_index=True)
    if not data["difference"].notna().any():
        raise KdxError(
            f"{kd!r} shares no seed with {', '.join(probed)}; train them with the same seeds"
        )
    data = with_rows(data, frame, len(explainers.classes))
    return data.assign(left_out=outside_ladder(explainers))[_COLUMNS]


def _paired(kd: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Differences of cosines and of nulls, kd − other, pair by pair.

    Means over the seeds and epochs that both have.
    """
    both = kd.add_suffix("_kd").join(other.add_suffix("_other"), how="inner").reset_index()
    both["difference"] = both["cosine_kd"] - both["cosine_other"]
    both["null"] = both["null_mean_kd"] - both["null_mean_other"]
    defined = both["difference"].notna()  # seeds and epochs without a difference don't count
    for name in ("seed", "epoch"):
        both[name] = both[name].where(defined)
    means = both.groupby(_PAIR, sort=False).agg(
        difference=("difference", "mean"),
        null=("null", "mean"),
        seeds=("seed", "nunique"),
        epochs=("epoch", "nunique"),
        n=("n_kd", "first"),
    )
    return means.reset_index()


@figure(
    title="Between which subtasks KD changes conflict",
    caption="The cosine of two subtasks' gradients (plain hard loss, trunk and experts, train "
    "probe set) under KD less that under each other objective with its settings, paired by seed "
    "and epoch and averaged over both. Above the diagonal the same difference of the nulls, whose "
    "cells show how far nothing but chance and the cut into subtasks move a pair. All panels are "
    "on one scale, symmetric about 0, and in one order of classes. Only kd − kd_shuffled isolates "
    "class structure; against label_smoothing and hard the difference includes temperature and "
    "softness.",
    table=_table,
    wants=comparable_explainers,
    follows="conflict",
)
def conflict_differences(data: pd.DataFrame, width: Width = "page") -> Drawn:
    kd, others = plain(data["kd"].iloc[0]), data["other"].map(plain)
    panel: pd.Series[str] = kd + " − " + others + np.where(data["includes"] != "", " †", "")
    # 1 where all differences are 0, since a scale has to have a width
    limit = float(data[["difference", "null"]].abs().max().max()) or 1.0
    included = data.loc[data["includes"] != "", "includes"]
    parts = [
        "below the diagonal: difference of the cosine, paired by seed",
        "above it: the difference of the nulls",
        f"† {included.iloc[0]}" if len(included) else "",
        without(data),
    ]
    return draw_matrices(
        data.assign(panel=panel, below=data["difference"], above=data["null"]),
        width,
        drawn=" · ".join(filter(None, parts)),
        scale="difference of gradient cosines; red: KD opposes more, blue: less",
        limit=limit,
    )
