"""Which subtasks' gradients oppose each other, and how KD changes that, as matrices."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns

from kdx_analysis.drawing.classes import clustered, name_classes, symmetric, unnamed
from kdx_analysis.drawing.style import (
    COLUMNS,
    INK,
    RASTERED,
    Width,
    counted,
    drawing,
    heading,
    in_order,
    inches,
    n_equals,
    panels,
    plain,
    styled,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.pairing import shared
from kdx_analysis.plots.comparisons import against_kd, outside_ladder, without
from kdx_analysis.plots.figure import Drawn, Figure, explainers
from kdx_analysis.runs import RunSet

_DOTTED = 30
_MEANS = ["cosine", "null", "values", "undefined", "seeds", "epochs", "n"]


def _cosines(found: RunSet) -> pd.DataFrame:
    """Conflict records of the plain hard loss on the train probe set, over all levels; no null
    without its cosine.
    """
    frame = found.frame("conflict")
    frame = frame[
        (frame["split"] == "train") & (frame["term"] == "hard") & (frame["level"] == "all")
    ]
    if not frame["cosine"].notna().any():
        raise KdxError(
            "no cosine of the hard term on the train probe set is defined; look at the runs' "
            "gradients"
        )
    return frame.assign(null_mean=frame["null_mean"].where(frame["cosine"].notna()))


def _together(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with cosines and nulls of a pair at the epochs alone that all objectives of a seed
    have.
    """
    keys = ["seed", "a_index", "b_index"]
    cosines = frame.set_index([*keys, "epoch", "objective"])["cosine"].unstack("objective")
    taken = shared(cosines, keys).stack(future_stack=True).notna()
    kept = taken.loc[pd.MultiIndex.from_frame(frame[[*keys, "epoch", "objective"]])].to_numpy()
    return frame.assign(**{name: frame[name].where(kept) for name in ("cosine", "null_mean")})


def _with_rows(data: pd.DataFrame, frame: pd.DataFrame, K: int) -> pd.DataFrame:
    """``data`` with a_row and b_row, in the order of classes clustered on the mean cosine of
    ``frame``.
    """
    rows = {k: row for row, k in enumerate(clustered(1 - symmetric(frame, "cosine", K, 1.0)).order)}
    return data.assign(a_row=data["a_index"].map(rows), b_row=data["b_index"].map(rows))


def _conflict_data(runs: RunSet) -> pd.DataFrame:
    """Columns objective, a, b, a_row, b_row, cosine, null, values, undefined, seeds, epochs, n; one
    row per pair.

    Means over seeds and probed epochs, of a seed's those at which the cosine is defined under every
    objective; ``values`` went into them, ``undefined`` did not; n is probe images.
    """
    found = explainers(runs, comparable=True)
    frame = _together(_cosines(found))
    pairs = frame.groupby(["objective", "a", "b", "a_index", "b_index"], sort=False)
    data = pairs.agg(
        cosine=("cosine", "mean"),
        null=("null_mean", "mean"),
        values=("cosine", "count"),
        seeds=("seed", "nunique"),
        undefined=("cosine", lambda c: int(c.isna().sum())),
        epochs=("epoch", "nunique"),
        n=("n", "first"),
    ).reset_index()
    data = _with_rows(data, frame, len(found.classes))
    return data[["objective", "a", "b", "a_row", "b_row", *_MEANS]]


@styled
def _draw_conflict(data: pd.DataFrame, width: Width = "page") -> Drawn:
    return _matrices(
        data.assign(panel=data["objective"].map(plain), below=data["cosine"], above=data["null"]),
        width,
        "below the diagonal: cosine of two subtasks' gradients · above it: its null, residuals "
        "permuted",
        "gradient cosine, in [−1, 1]; red: opposed",
        1.0,
    )


def _matrices(data: pd.DataFrame, width: Width, drawn: str, scale: str, limit: float) -> Drawn:
    """One matrix a ``panel``, ``below`` and ``above`` its diagonal, all on one scale that diverges
    from 0.

    Below 0 the cells have dots, for readers and prints without colour, where they are large enough.
    """
    names = pd.concat([data.set_index("a_row")["a"], data.set_index("b_row")["b"]])
    names = names[~names.index.duplicated()].sort_index().tolist()
    K, titles, columns = len(names), in_order(data["panel"]), COLUMNS[width]
    counts = data.groupby("panel")[["seeds", "epochs"]].max()
    apart = len(counts.drop_duplicates()) > 1
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    letters = 14 if width == "page" else 12
    margin = 0.12 + 0.058 * min(letters, max(map(len, names)))
    side = min(2.6, (inches(width) - margin) / columns - 0.12)
    figure = drawing(width, 1.1 + margin + rows * (side + 0.45))
    axes = panels(figure, len(titles), columns, sharex=True, sharey=True)
    step = 1
    for i, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        chosen = data[data["panel"] == title]
        matrix = np.full((K, K), np.nan)
        high, low = chosen[["a_row", "b_row"]].max(axis=1), chosen[["a_row", "b_row"]].min(axis=1)
        matrix[high, low], matrix[low, high] = chosen["below"], chosen["above"]
        ax.set_facecolor("#DDDDDD")
        sns.heatmap(
            matrix,
            ax=ax,
            cmap="RdBu",
            vmin=-limit,
            vmax=limit,
            square=True,
            cbar=False,
            rasterized=K * K > RASTERED,
        )
        ax.plot([0, K], [0, K], color="white", linewidth=0.8)
        if K <= _DOTTED:
            y, x = np.nonzero(matrix < 0)
            ax.plot(x + 0.5, y + 0.5, ".", color=INK, markersize=1.6, markeredgewidth=0)
        n = f"\n{_runs(counts.loc[[title]])}" if apart else ""
        ax.set_title(wrapped(title, side) + n, loc="left")
        for which in ("x", "y"):
            step = max(step, name_classes(ax, which, names, side / K, start=0.5, letters=letters))
        ax.tick_params(labelbottom=i // columns == rows - 1, labelleft=i % columns == 0)
    bar = figure.colorbar(
        axes[0].collections[0],
        ax=list(axes),
        orientation="horizontal",
        shrink=0.6,
        aspect=30,
        pad=0.01,
    )
    bar.set_label(wrapped(scale, 0.9 * figure.get_figwidth()))
    bar.outline.set_visible(False)
    dots = "dotted: below 0" if K <= _DOTTED else ""
    heading(
        figure,
        " · ".join(filter(None, ["" if apart else _runs(counts), drawn, dots, unnamed(step)])),
    )
    return figure, axes


def _runs(counts: pd.DataFrame) -> str:
    epochs = counted(counts["epochs"], "epoch").replace(" ", "\N{NO-BREAK SPACE}")
    return f"{n_equals(counts['seeds'])} × {epochs}"


conflict = Figure(
    "conflict",
    "Which subtasks oppose each other",
    "Cosine between the gradients of two subtasks' plain hard loss over trunk and experts, on the "
    "train probe set, mean over probed epochs and seeds. Below the diagonal the cosine, above it "
    "the null of the same pair (residuals permuted over samples with the model fixed). Classes "
    "stand in one order for all panels, clustered on the mean cosine; where there are too many to "
    "name, every few are, and the data hold all. Grey: not defined.",
    _conflict_data,
    _draw_conflict,
)


def _conflict_differences_data(runs: RunSet) -> pd.DataFrame:
    """Columns a, b (subtasks), a_row, b_row, kd, other, includes, difference, null, seeds, epochs,
    n, left_out.

    One row a pair. ``difference`` is kd − other of the cosine, paired by seed and epoch and then
    averaged over ``epochs`` and ``seeds``; ``null`` the same of the nulls' means; n is probe
    images; ``left_out`` names the objectives that do not share the first ladder's settings.
    """
    found = explainers(runs, comparable=True)
    kd, others = against_kd(found)
    frame = _cosines(found)
    pair = ["a", "b", "a_index", "b_index"]
    keyed = frame.set_index(["seed", "epoch", *pair])[["objective", "cosine", "null_mean", "n"]]
    by_objective = dict(list(keyed.groupby("objective")))
    probed = [other for other in others if other in by_objective]
    if kd not in by_objective or not probed:
        raise KdxError(
            f"conflict was not probed under {kd!r} and another objective; probe the explainers of "
            "both"
        )
    tables = []
    for other in probed:
        sides = by_objective[kd].add_suffix("_kd"), by_objective[other].add_suffix("_other")
        both = sides[0].join(sides[1], how="inner").reset_index()
        both["difference"] = both["cosine_kd"] - both["cosine_other"]
        both["null"] = both["null_mean_kd"] - both["null_mean_other"]
        counted = both.assign(
            **{name: both[name].where(both["difference"].notna()) for name in ("seed", "epoch")}
        )
        means = counted.groupby(pair, sort=False).agg(
            difference=("difference", "mean"),
            null=("null", "mean"),
            seeds=("seed", "nunique"),
            epochs=("epoch", "nunique"),
            n=("n_kd", "first"),
        )
        tables.append(means.reset_index().assign(kd=kd, other=other, includes=others[other]))
    data = pd.concat(tables, ignore_index=True)
    if not data["difference"].notna().any():
        raise KdxError(
            f"{kd!r} shares no seed with {', '.join(probed)}; train them with the same seeds"
        )
    data = _with_rows(data, frame, len(found.classes)).assign(left_out=outside_ladder(found))
    columns = ["difference", "null", "seeds", "epochs", "n", "left_out"]
    return data[["a", "b", "a_row", "b_row", "kd", "other", "includes", *columns]]


@styled
def _draw_conflict_differences(data: pd.DataFrame, width: Width = "page") -> Drawn:
    panel: pd.Series[str] = (
        plain(data["kd"].iloc[0])
        + " − "
        + data["other"].map(plain)
        + np.where(data["includes"] != "", " †", "")
    )
    limit = float(data[["difference", "null"]].abs().max().max()) or 1.0
    drawn = "below the diagonal: difference of the cosine, paired by seed · above it: the difference of the nulls"
    included = data.loc[data["includes"] != "", "includes"]
    if len(included):
        drawn += f" · † {included.iloc[0]}"
    if told := without(data):
        drawn += f" · {told}"
    return _matrices(
        data.assign(panel=panel, below=data["difference"], above=data["null"]),
        width,
        drawn,
        "difference of gradient cosines; red: KD opposes more, blue: less",
        limit,
    )


conflict_differences = Figure(
    "conflict_differences",
    "Between which subtasks KD changes conflict",
    "The cosine of two subtasks' gradients (plain hard loss, trunk and experts, train probe set) "
    "under KD less that under each other objective with its settings, paired by seed and epoch and "
    "averaged over both. Above the diagonal the same difference of the nulls, whose cells show how "
    "far nothing but chance and the cut into subtasks move a pair. All panels are on one scale, "
    "symmetric about 0, and in one order of classes. Only kd − kd_shuffled isolates class "
    "structure; against label_smoothing and hard the difference includes temperature and softness.",
    _conflict_differences_data,
    _draw_conflict_differences,
)
