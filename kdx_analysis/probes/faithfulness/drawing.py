"""Do attention and ablation agree, what do experts look at, and is it the model that says so?"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdx_analysis import null
from kdx_analysis.drawing.images import grey, overlay, shown
from kdx_analysis.drawing.style import (
    GREY,
    INK,
    LIGHT,
    canvas,
    counted,
    drawing,
    panels,
    plain,
    styled,
)
from kdx_analysis.errors import KdxError
from kdx_analysis.probes.faithfulness.ablation import Faithfulness, LevelAblation
from kdx_analysis.probes.faithfulness.attribution import Attribution, Conductance
from kdx_analysis.probes.faithfulness.explanation import Explanation
from kdx_analysis.probes.faithfulness.sanity import Randomisation

_FOR, _AGAINST = "#B2182B", "#2166AC"
_heat = partial(overlay, above=_FOR, below=_AGAINST)


@styled
def explanation(record: Explanation) -> tuple[Figure, np.ndarray]:
    """For one class: images, what its path's experts look at, and what each expert is worth.

    That is its pathway mass and what its ablation costs.

    Heat is the integrated gradients through that expert, on one scale for all levels: red speaks
    for the class, blue against it. Bars are all experts of the level, those of the path in colour.
    """
    images = record.attributions[0].images
    count, rows = len(images), 1 + len(record.path)
    figure = drawing("page", 1.1 * rows + 0.7)
    ratios = {"width_ratios": [1] * count + [1.45] * 2}
    axes = figure.subplots(rows, count + 2, squeeze=False, gridspec_kw=ratios)
    scale = max(float(attribution.maps.abs().max()) for attribution in record.attributions)
    for ax, image in zip(axes[0], images, strict=False):
        ax.imshow(shown(image, images), cmap="gray", vmin=0, vmax=1)
    for ax in axes[0, count:]:
        ax.set_axis_off()
    axes[0, 0].set_ylabel(plain(record.name))
    frame, pictures = record.to_frame(), grey(images)
    for row, attribution in zip(axes[1:], record.attributions, strict=True):
        assert attribution.expert is not None
        level, expert = attribution.expert
        for ax, picture, heat in zip(row, pictures, attribution.maps, strict=False):
            _heat(ax, picture, heat, scale)
        row[0].set_ylabel(f"level {level}\nexpert {expert}")
        _bars(row[count:], frame[frame["level"] == level])
    axes[1, count].set_title("pathway mass of A")
    axes[1, count + 1].set_title(f"margin lost without it\n(n = {frame['n'].iloc[0]} images)")
    for ax in axes[-1, count:]:
        ax.set_xlabel("expert")
    for ax in axes[:, :count].flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    figure.suptitle(
        f"{plain(record.name)}: what its path looks at, and what each expert is worth\n"
        "red speaks for the class, blue against it, on one scale (integrated gradients through "
        "that expert)"
    )
    return figure, axes


def _bars(axes: np.ndarray, experts: pd.DataFrame) -> None:
    """Pathway mass and lost margin of all experts of a level."""
    colours = [INK if on else LIGHT for on in experts["on_path"]]
    for ax, column in zip(axes, ("effective", "drop"), strict=True):
        ax.bar(experts["expert"], experts[column], color=colours, width=0.7)
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.set_xticks(experts["expert"])
    axes[0].set_ylim(0, 1)


@styled
def ablation(record: Faithfulness, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """Margin lost to an expert's ablation against its pathway mass of A.

    A dot a subtask and expert.

    A panel for each level with a choice; in ``ax`` the last of them. Filled: the subtask's
    strongest expert by A. Raises KdxError where no level has one.
    """
    levels = [level for level in record.levels if level.drop.shape[1] > 1]
    if not levels:
        raise KdxError(
            "every level has one expert, so there is nothing that attention could choose"
        )
    if ax is not None:
        _scatter(ax, record, levels[-1])
        return canvas(ax, "page", 0)[0], np.array([ax])
    figure = drawing("page", 2.7 * -(-len(levels) // 3))
    axes = panels(figure, len(levels), 3)
    for one, level in zip(axes, levels, strict=True):
        _scatter(one, record, level)
    axes[0].set_ylabel(
        f"mean margin lost on the class's images\n(ablated features: {record.baseline})"
    )
    return figure, axes


@styled
def randomisation(record: Randomisation, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """Similarity of an attribution's maps to those under random weights.

    With its mean, the null's range and the bound.
    """
    figure, ax = canvas(ax, "column", 2.8)
    table = record.to_frame()
    for x, row in enumerate(table.to_dict("records")):
        values = record.similarity[row["maps"]].flatten().numpy()
        values = values[~np.isnan(values)]
        if not np.isnan(row["null_low"]):
            ax.fill_between(
                [x - 0.35, x + 0.35], row["null_low"], row["null_high"], color=LIGHT, linewidth=0
            )
        ax.plot(np.linspace(x - 0.2, x + 0.2, len(values)), values, ".", color=GREY, markersize=3)
        ax.plot([x - 0.35, x + 0.35], [row["value"]] * 2, color=INK)
    ax.axhline(record.bound, color=GREY, linestyle="--", linewidth=0.8)
    ax.set_xticks(range(len(record.similarity)), [f"{name} values" for name in record.similarity])
    ax.set(ylim=(-1.05, 1.05), ylabel="rank correlation with\nthe map under random weights")
    n = counted(table["n"], "map")
    undecided = "undecided under" if table["undecided"].any() else "does not survive"
    beside = "grey: null" if table["null_low"].notna().all() else null.NO_RANGE
    ax.set_title(
        f"{'survives' if record.survives else undecided} random weights\n(n = {n}; {beside})"
    )
    return figure, np.array([ax])


@styled
def attribution(record: Attribution, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """Images side by side under their maps; red speaks for the subtask, blue against it."""
    B, H, W = record.maps.shape
    figure, ax = canvas(ax, "page" if B > 3 else "column", 1.7)
    scale = float(record.maps.abs().max())
    for i, (picture, heat) in enumerate(zip(grey(record.images), record.maps, strict=True)):
        left = i * 1.08 * W
        _heat(ax, picture, heat, scale, extent=(left, left + W, H, 0))
    ax.set(xlim=(0, (B - 1) * 1.08 * W + W), ylim=(H, 0), yticks=[], title=record.title)
    ax.set_xticks(
        [i * 1.08 * W + W / 2 for i in range(B)], [f"subtask {k}" for k in record.subtask.tolist()]
    )
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure, np.array([ax])


@styled
def conductance(record: Conductance, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
    """Every image's conductance a dot for each expert, and the experts' means."""
    figure, ax = canvas(ax, "column", 2.4)
    for i, values in enumerate(record.values.T.numpy()):
        ax.plot(np.linspace(i - 0.2, i + 0.2, len(values)), values, ".", color=GREY, markersize=3)
        ax.plot([i - 0.35, i + 0.35], [values.mean()] * 2, color=INK)
    ax.axhline(0, color=GREY, linewidth=0.6)
    ax.set_xticks(range(record.values.shape[1]))
    ax.set(xlabel=f"expert of level {record.level}", ylabel="conductance")
    ax.set_title(f"n = {counted([len(record.values)], 'image')}")
    return figure, np.array([ax])


def _scatter(ax: Axes, record: Faithfulness, level: LevelAblation) -> None:
    """A dot a subtask and expert of one level, and how far mass and loss go together.

    Filled: the strongest expert of each.
    """
    mass, lost = level.effective, level.drop
    strongest = torch.zeros_like(mass, dtype=torch.bool)
    strongest[torch.arange(len(mass)), mass.argmax(dim=1)] = True
    for chosen, face in ((~strongest, "none"), (strongest, INK)):
        ax.scatter(
            mass[chosen].numpy(),
            lost[chosen].numpy(),
            s=16,
            facecolors=face,
            edgecolors=INK,
            linewidths=0.7,
        )
    ax.axhline(0, color=GREY, linewidth=0.6)
    table = record.agreement
    row = table[
        (table["level"] == level.level)
        & (table["attention"] == "effective")
        & (table["measure"] == "drop")
    ].iloc[0]
    correlation = "ρ undefined: one side is flat"
    if not np.isnan(row["value"]):
        beside = null.shown(row["null_low"], row["null_high"])
        correlation = f"ρ = {row['value']:.2f}, n = {row['n']}, p = {row['p']:.2g}\n{beside}"
    ax.set(
        xlim=(-0.04, 1.04),
        xlabel="pathway mass of A",
        title=f"level {level.level}: {row['says']}\n{correlation}",
    )
