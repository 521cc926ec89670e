"""VAM's gates: attention between blocks, layer by layer, and its entropy through training.

``kdx.plots.vam.attention(runs)``, ``kdx.plots.vam.entropy(runs)``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdx_analysis.drawing.style import (
    LIGHT,
    Width,
    counted,
    drawing,
    heading,
    in_order,
    inches,
    legend,
    plain,
    styled,
    wrapped,
)
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.plots.figure import Drawn, Figure
from kdx_analysis.plots.looks import handle, look
from kdx_analysis.runs import RunSet

_SHOWN = {"alpha": "attention α", "share": "share of flow A"}


def _with_vam(runs: RunSet) -> RunSet:
    found = RunSet(tuple(run for run in runs if "vam_gates" in run.kinds))
    if not len(found):
        raise AbsentError(
            f"none of the {len(runs)} runs has VAM; give runs of students with a vam section"
        )
    return found


def _attention_data(runs: RunSet) -> pd.DataFrame:
    """Columns objective, vam, seed, epoch, layer, row, column, alpha, share, uniform_share, tau;
    one run an arm.
    """
    found = _with_vam(runs)
    if len(students := found.group("model")) > 1:
        raise KdxError(
            f"the layers of {' and '.join(sorted(students))} differ; filter the runs by model"
        )
    chosen: dict[tuple[str, str], pd.DataFrame] = {}
    for run in found.filter(seed=found.seeds[0]):
        gates = run.record("vam_gates")
        gates = gates[gates["epoch"] == run.selected_epoch]
        keys = {"objective": run.objective, "vam": run.vam}
        chosen.setdefault((run.objective, run.vam), gates.assign(**keys, seed=run.seed))
    frame = pd.concat(chosen.values(), ignore_index=True)
    columns = ["seed", "epoch", "layer", "row", "column", "alpha", "share", "uniform_share", "tau"]
    return frame[["objective", "vam", *columns]]


@styled
def _draw_attention(data: pd.DataFrame, width: Width = "page") -> Drawn:
    arms, layers = list(data.groupby(["objective", "vam"], sort=False)), in_order(data["layer"])
    side = min(0.9, (inches(width) - 1.2) / len(layers))
    figure = drawing(width, 1.9 + len(_SHOWN) * len(arms) * (side + 0.12))
    axes = figure.subplots(len(_SHOWN) * len(arms), len(layers), squeeze=False)
    high = np.nanmax(data[list(_SHOWN)].to_numpy())
    for i, (keys, of_arm) in enumerate(arms):
        for j, layer in enumerate(layers):
            pairs = of_arm[of_arm["layer"] == layer]
            for k, (column, label) in enumerate(_SHOWN.items()):
                ax = axes[len(_SHOWN) * i + k, j]
                cells = pairs.pivot(index="row", columns="column", values=column)
                sns.heatmap(
                    cells, ax=ax, cmap="viridis", vmin=0, vmax=high, cbar=False, square=True
                )
                ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
                if j == 0:
                    title = "".join(
                        f"{wrapped(plain(key), 1.0)}\n" for key in keys if key and k == 0
                    )
                    ax.set_ylabel(f"{title}{label}", rotation=0, ha="right", va="center")
                if ax is axes[-1, j]:
                    ax.set_xlabel(plain(layer), rotation=90, fontsize=7)
    bar = figure.colorbar(
        axes[0, 0].collections[0],
        ax=axes,
        orientation="horizontal",
        shrink=0.6,
        aspect=30,
        pad=0.01,
    )
    bar.set_label("of an output block (row)\nto an input block (column)")
    bar.outline.set_visible(False)
    epochs = ", ".join(str(epoch) for epoch in sorted(data["epoch"].unique()))
    heading(figure, f"seed {data['seed'].iloc[0]}, epoch {epochs} (n = 1 run in each pair of rows)")
    return figure, axes


attention = Figure(
    "vam_attention",
    "VAM: attention between blocks of channels",
    "α of every layer's output blocks (rows) over its input blocks (columns) for one seed at the "
    "selected epoch, under every objective and setting of VAM, and "
    "the share A of each input block in the flow ‖V̂‖·RMS, which does not change where V takes "
    "over what α gives. Uniform attention over M blocks, as before training, is 1/M; A without "
    "VAM's scales stands in the data as uniform_share.",
    _attention_data,
    _draw_attention,
)


def _entropy_data(runs: RunSet) -> pd.DataFrame:
    """Columns student, run, objective, vam, seed, epoch, attention, value, initial, n (rows of all
    layers: a mean).
    """
    found = _with_vam(runs)
    frame = found.frame("vam_entropy")
    frame["student"] = frame["run"].map({run.id: run.info["config"]["model"] for run in found})
    keys = ["student", "run", "objective", "vam", "seed", "epoch", "attention"]
    means = frame.groupby(keys, sort=False).agg(
        value=("value", "mean"), initial=("initial", "mean"), n=("row", "size")
    )
    return means.reset_index()


@styled
def _draw_entropy(data: pd.DataFrame, width: Width = "page") -> Drawn:
    arms = list(data.groupby(["student", "vam"], sort=False))
    figure = drawing(width, 1.2 + 1.8 * len(arms))
    axes = figure.subplots(len(arms), len(_SHOWN), sharex=True, sharey=True, squeeze=False)
    for row, (keys, of_arm) in zip(axes, arms, strict=True):
        for ax, (attention_, label) in zip(row, _SHOWN.items(), strict=True):
            for (objective, _), run in of_arm[of_arm["attention"] == attention_].groupby(
                ["objective", "run"], sort=False
            ):
                of, run = look(str(objective)), run.sort_values("epoch")
                ax.plot(run["epoch"], run["initial"], color=LIGHT, linewidth=0.6, zorder=1)
                ax.plot(
                    run["epoch"],
                    run["value"],
                    color=of.colour,
                    linestyle=of.line,
                    marker=of.marker,
                    markersize=3.5,
                    markevery=max(1, len(run) // 6),
                    linewidth=1,
                    zorder=2,
                )
            ax.set_title(plain("\n".join([*filter(None, map(str, keys)), label])), loc="left")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        row[0].set_ylabel("entropy H / ln M,\nmean over rows")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    reference = Line2D(
        [], [], color=LIGHT, linewidth=0.9, label="uniform attention on the same weights"
    )
    n = counted(data.groupby(["student", "vam", "objective"])["run"].nunique(), "run")
    handles = [*(handle(o) for o in in_order(data["objective"])), reference]
    legend(figure, handles, f"n = {n} per panel and objective, one line each")
    return figure, axes


entropy = Figure(
    "vam_entropy",
    "VAM: entropy of attention through training",
    "H/ln M, mean over all rows of all layers, of α (what the penalty γ acts on) and of the shares "
    "of flow A; one line a run. Grey: the same weights at uniform attention, which is 1 for α.",
    _entropy_data,
    _draw_entropy,
)
