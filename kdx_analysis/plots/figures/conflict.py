"""Which subtasks' gradients oppose each other, as matrices."""

from __future__ import annotations

import pandas as pd

from kdx_analysis.drawing.style import Width, plain
from kdx_analysis.pairing import shared
from kdx_analysis.plots.figure import Drawn, comparable_explainers, figure
from kdx_analysis.plots.matrices import cosines, draw_matrices, with_rows
from kdx_analysis.runs import RunSet, of_one_teacher

_PAIR = ["objective", "a", "b", "a_index", "b_index"]
_MEANS = ["cosine", "null", "values", "undefined", "seeds", "epochs", "n"]


def _table(explainers: RunSet) -> pd.DataFrame:
    """One row per objective and pair of subtasks.

    Columns objective, a, b, a_row, b_row, cosine, null, values, undefined, seeds, epochs, n.

    Of the first teacher's explainers, where there are several teachers.

    Means over seeds and probed epochs, of a seed's those at which the cosine is defined under every
    objective; ``values`` went into them, ``undefined`` did not; n is probe images.
    """
    explainers = of_one_teacher(explainers)
    frame = _together(cosines(explainers))
    frame = frame.assign(undefined_here=frame["cosine"].isna())
    data = frame.groupby(_PAIR, sort=False).agg(
        cosine=("cosine", "mean"),
        null=("null_mean", "mean"),
        values=("cosine", "count"),
        seeds=("seed", "nunique"),
        undefined=("undefined_here", "sum"),
        epochs=("epoch", "nunique"),
        n=("n", "first"),
    )
    data = with_rows(data.reset_index(), frame, len(explainers.classes))
    return data[["objective", "a", "b", "a_row", "b_row", *_MEANS]]


def _together(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` without the epochs at which not all objectives of a seed have a pair's cosine.

    Cosines and nulls are NaN there.
    """
    keys = ["seed", "a_index", "b_index"]
    by_objective = frame.set_index([*keys, "epoch", "objective"])["cosine"].unstack("objective")
    taken = shared(by_objective, keys).stack(future_stack=True).notna()
    kept = taken.loc[pd.MultiIndex.from_frame(frame[[*keys, "epoch", "objective"]])].to_numpy()
    columns = ("cosine", "null_mean")
    return frame.assign(**{name: frame[name].where(kept) for name in columns})


@figure(
    title="Which subtasks oppose each other",
    caption="Cosine between the gradients of two subtasks' plain hard loss over trunk and experts, "
    "on the train probe set, mean over probed epochs and seeds. Below the diagonal the cosine, "
    "above it the null of the same pair (residuals permuted over samples with the model fixed). "
    "Classes stand in one order for all panels, clustered on the mean cosine; where there are too "
    "many to name, every few are, and the data hold all. Grey: not defined.",
    table=_table,
    wants=comparable_explainers,
    follows="tree_agreement",
)
def conflict(data: pd.DataFrame, width: Width = "page") -> Drawn:
    names = data["objective"].map(plain)
    return draw_matrices(
        data.assign(panel=names, below=data["cosine"], above=data["null"]),
        width,
        drawn="below the diagonal: cosine of two subtasks' gradients · above it: its null, "
        "residuals permuted",
        scale="gradient cosine, in [−1, 1]; red: opposed",
        limit=1.0,
    )
