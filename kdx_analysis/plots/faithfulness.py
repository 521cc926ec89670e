"""Do attention and ablation agree, what does each expert look at, and is it the model that says so?"""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.drawing.style import GREY, INK, LIGHT, counted, drawing, panels, plain, styled
from kdx_analysis.errors import KdxError
from kdx_analysis.probes.faithfulness.ablation import Faithfulness, LevelAblation
from kdx_analysis.probes.faithfulness.attribution import Attribution, Conductance
from kdx_analysis.probes.faithfulness.explanation import Explanation
from kdx_analysis.probes.faithfulness.sanity import Randomisation

Extent = tuple[float, float, float, float]
_FOR, _AGAINST = "#B2182B", "#2166AC"


@styled
def faithfulness(explanation: Explanation) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """For one class: images, what its path's experts look at, their pathway mass and what their
    ablation costs.

    Heat is the integrated gradients through that expert, on one scale for all levels: red speaks
    for the class, blue against it. Bars are all experts of the level, those of the path in colour.
    """
    images, shown = explanation.attributions[0].images, len(explanation.attributions[0].images)
    rows = 1 + len(explanation.path)
    figure = drawing("page", 1.1 * rows + 0.7)
    axes = figure.subplots(
        rows, shown + 2, squeeze=False, gridspec_kw={"width_ratios": [1] * shown + [1.45] * 2}
    )
    scale = max(float(of.maps.abs().max()) for of in explanation.attributions)
    grey = _grey(images)
    for ax, image in zip(axes[0], images, strict=False):
        ax.imshow(_shown(image, images), cmap="gray", vmin=0, vmax=1)
    for ax in axes[0, shown:]:
        ax.set_axis_off()
    axes[0, 0].set_ylabel(plain(explanation.name))
    frame = explanation.to_frame()
    for row, of in zip(axes[1:], explanation.attributions, strict=True):
        assert of.expert is not None
        level, expert = of.expert
        for ax, picture, heat in zip(row, grey, of.maps, strict=False):
            _overlay(ax, picture, heat, scale)
        row[0].set_ylabel(f"level {level}\nexpert {expert}")
        experts = frame[frame["level"] == level]
        for ax, column in zip(row[shown:], ("effective", "drop"), strict=True):
            colours = [INK if on else LIGHT for on in experts["on_path"]]
            ax.bar(experts["expert"], experts[column], color=colours, width=0.7)
            ax.axhline(0, color=GREY, linewidth=0.6)
            ax.set_xticks(experts["expert"])
        row[shown].set_ylim(0, 1)
    axes[1, shown].set_title("pathway mass of A")
    axes[1, shown + 1].set_title(f"margin lost without it\n(n = {frame['n'].iloc[0]} images)")
    for ax in axes[-1, shown:]:
        ax.set_xlabel("expert")
    for ax in axes[:, :shown].flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    figure.suptitle(
        f"{plain(explanation.name)}: what its path looks at, and what each expert is worth\n"
        "red speaks for the class, blue against it, on one scale (integrated gradients through "
        "that expert)"
    )
    return figure, axes


@styled
def ablation(
    record: Faithfulness, ax: Axes | None = None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Margin lost to an expert's ablation against its pathway mass of A, a dot a subtask and
    expert.

    A panel for each level with a choice; in ``ax`` the last of them. Filled: the subtask's
    strongest expert by A. Raises KdxError where no level has one.
    """
    levels = [of for of in record.levels if of.drop.shape[1] > 1]
    if not levels:
        raise KdxError(
            "every level has one expert, so there is nothing that attention could choose"
        )
    if ax is not None:
        _scatter(ax, record, levels[-1])
        return _figure_of(ax), np.array([ax])
    figure = drawing("page", 2.7 * -(-len(levels) // 3))
    axes = panels(figure, len(levels), 3)
    for one, of in zip(axes, levels, strict=True):
        _scatter(one, record, of)
    axes[0].set_ylabel(
        f"mean margin lost on the class's images\n(ablated features: {record.baseline})"
    )
    return figure, axes


@styled
def randomisation(
    record: Randomisation, ax: Axes | None = None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Similarity of an attribution's maps to those under random weights, its mean, the null's
    range, the bound.
    """
    figure, ax = (drawing("column", 2.8), None) if ax is None else (_figure_of(ax), ax)
    ax = figure.subplots() if ax is None else ax
    table = record.to_frame()
    for x, row in enumerate(table.to_dict("records")):
        values = record.similarity[row["measure"]].flatten().numpy()
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
def attribution(
    record: Attribution, ax: Axes | None = None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Images side by side under their maps; red speaks for the subtask, blue against it."""
    B, H, W = record.maps.shape
    figure, ax = (
        (drawing("page" if B > 3 else "column", 1.7), None) if ax is None else (_figure_of(ax), ax)
    )
    ax = figure.subplots() if ax is None else ax
    scale = float(record.maps.abs().max())
    for i, (picture, heat) in enumerate(zip(_grey(record.images), record.maps, strict=True)):
        left = i * 1.08 * W
        _overlay(ax, picture, heat, scale, (left, left + W, H, 0))
    ax.set(xlim=(0, (B - 1) * 1.08 * W + W), ylim=(H, 0), yticks=[], title=record.title)
    ax.set_xticks(
        [i * 1.08 * W + W / 2 for i in range(B)], [f"subtask {k}" for k in record.subtask.tolist()]
    )
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure, np.array([ax])


@styled
def conductance(
    record: Conductance, ax: Axes | None = None
) -> tuple[matplotlib.figure.Figure, np.ndarray]:
    """Every image's conductance a dot for each expert, and the experts' means."""
    figure, ax = (drawing("column", 2.4), None) if ax is None else (_figure_of(ax), ax)
    ax = figure.subplots() if ax is None else ax
    for i, values in enumerate(record.values.T.numpy()):
        ax.plot(np.linspace(i - 0.2, i + 0.2, len(values)), values, ".", color=GREY, markersize=3)
        ax.plot([i - 0.35, i + 0.35], [values.mean()] * 2, color=INK)
    ax.axhline(0, color=GREY, linewidth=0.6)
    ax.set_xticks(range(record.values.shape[1]))
    ax.set(xlabel=f"expert of level {record.level}", ylabel="conductance")
    ax.set_title(f"n = {counted([len(record.values)], 'image')}")
    return figure, np.array([ax])


def _scatter(ax: Axes, record: Faithfulness, of: LevelAblation) -> None:
    strongest = torch.zeros_like(of.effective, dtype=torch.bool)
    strongest[torch.arange(len(of.effective)), of.effective.argmax(dim=1)] = True
    for chosen, face in ((~strongest, "none"), (strongest, INK)):
        ax.scatter(
            of.effective[chosen].numpy(),
            of.drop[chosen].numpy(),
            s=16,
            facecolors=face,
            edgecolors=INK,
            linewidths=0.7,
        )
    ax.axhline(0, color=GREY, linewidth=0.6)
    table = record.agreement
    row = table[
        (table["level"] == of.level)
        & (table["attention"] == "effective")
        & (table["measure"] == "drop")
    ].iloc[0]
    found = "ρ undefined: one side is flat"
    if not np.isnan(row["value"]):
        beside = null.shown(row["null_low"], row["null_high"])
        found = f"ρ = {row['value']:.2f}, n = {row['n']}, p = {row['p']:.2g}\n{beside}"
    ax.set(
        xlim=(-0.04, 1.04),
        xlabel="pathway mass of A",
        title=f"level {of.level}: {row['says']}\n{found}",
    )


def _overlay(
    ax: Axes, picture: np.ndarray, heat: Tensor, scale: float, extent: Extent | None = None
) -> None:
    """A pale picture, and heat over it, red above 0 and blue below, the less see-through the
    stronger it is.
    """
    ax.imshow(picture, cmap="gray", vmin=-3, vmax=1, extent=extent)
    strength = (heat / scale if scale > 0 else heat).numpy()
    colours = np.where(strength[..., None] > 0, to_rgba(_FOR), to_rgba(_AGAINST))
    colours[..., 3] = np.abs(strength)
    ax.imshow(colours, extent=extent)


def _shown(image: Tensor, images: Tensor) -> np.ndarray:
    """An image as imshow takes it, in [0, 1] with all ``images`` on one scale: H×W, or H×W×3."""
    low, high = images.min(), images.max()
    scaled = (
        ((image - low) / (high - low)).float() if high > low else torch.zeros_like(image).float()
    )
    return (scaled.permute(1, 2, 0) if len(image) == 3 else scaled.mean(dim=0)).numpy()


def _grey(images: Tensor) -> list[np.ndarray]:
    means = images.double().mean(dim=1, keepdim=True)
    return [_shown(image, means) for image in means]


def _figure_of(ax: Axes) -> matplotlib.figure.Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure
