"""VAM's attention between blocks of channels, layer by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns

from kdx_analysis.drawing.style import (
    Width,
    drawing,
    heading,
    in_order,
    inches,
    plain,
    wrapped,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.plots.figure import Drawn, figure, with_vam
from kdx_analysis.runs import RunSet

_SHOWN = {"alpha": "attention α", "share": "share of flow A"}
_COLUMNS = [
    "objective",
    "vam",
    "seed",
    "epoch",
    "layer",
    "row",
    "column",
    "alpha",
    "share",
    "uniform_share",
    "tau",
]


def _table(students: RunSet) -> pd.DataFrame:
    """One row per arm, layer and pair of blocks, of one run an arm.

    Columns objective, vam, seed, epoch, layer, row, column, alpha, share, uniform_share, tau.
    """
    if len(models := students.group("model")) > 1:
        raise KdxError(
            f"the layers of {' and '.join(sorted(models))} differ; filter the runs by model"
        )
    chosen: dict[tuple[str, str], pd.DataFrame] = {}
    for run in students.filter(seed=students.seeds[0]):
        gates = run.at_selected("vam_gates")
        named = gates.assign(objective=run.objective, vam=run.vam, seed=run.seed)
        chosen.setdefault((run.objective, run.vam), named)
    return pd.concat(chosen.values(), ignore_index=True)[_COLUMNS]


@figure(
    title="VAM: attention between blocks of channels",
    caption="α of every layer's output blocks (rows) over its input blocks (columns) for one seed "
    "at the selected epoch, under every objective and setting of VAM, and the share A of each "
    "input block in the flow ‖V̂‖·RMS, which does not change where V takes over what α gives. "
    "Uniform attention over M blocks, as before training, is 1/M; A without VAM's scales stands in "
    "the data as uniform_share.",
    table=_table,
    wants=with_vam,
    follows="arms",
)
def vam_attention(data: pd.DataFrame, width: Width = "page") -> Drawn:
    arms, layers = list(data.groupby(["objective", "vam"], sort=False)), in_order(data["layer"])
    side = min(0.9, (inches(width) - 1.2) / len(layers))
    canvas = drawing(width, 1.9 + len(_SHOWN) * len(arms) * (side + 0.12))
    axes = canvas.subplots(len(_SHOWN) * len(arms), len(layers), squeeze=False)
    high = np.nanmax(data[list(_SHOWN)].to_numpy())
    for i, (keys, of_arm) in enumerate(arms):
        for k, (column, label) in enumerate(_SHOWN.items()):
            row = axes[len(_SHOWN) * i + k]
            _row(row, of_arm, layers, column, high)
            names = [str(key) for key in keys if key] if k == 0 else []
            title = "".join(f"{wrapped(plain(name), 1.0)}\n" for name in names)
            row[0].set_ylabel(f"{title}{label}", rotation=0, ha="right", va="center")
    for ax, layer in zip(axes[-1], layers, strict=True):
        ax.set_xlabel(plain(layer), rotation=90, fontsize=7)
    bar = canvas.colorbar(
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
    heading(canvas, f"seed {data['seed'].iloc[0]}, epoch {epochs} (n = 1 run in each pair of rows)")
    return canvas, axes


def _row(
    axes: np.ndarray, gates: pd.DataFrame, layers: list[str], column: str, high: float
) -> None:
    """One kind of attention of one run, a panel a layer, from 0 to ``high``."""
    for ax, layer in zip(axes, layers, strict=True):
        pairs = gates[gates["layer"] == layer]
        cells = pairs.pivot(index="row", columns="column", values=column)
        sns.heatmap(cells, ax=ax, cmap="viridis", vmin=0, vmax=high, cbar=False, square=True)
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
