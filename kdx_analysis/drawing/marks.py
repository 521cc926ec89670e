"""What stands for several runs at one place: seeds, mean, interval and null; with n."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from kdx_analysis.drawing.style import GREY, n_equals, plain, wrapped

NULL = (0, (2, 1))

_HALF = 0.18  # of the distance between two places, the half of a mean's bar


def shifts(seeds: Sequence[int]) -> dict[int, float]:
    """Where each seed's points stand beside their place, so that none covers another."""
    apart = np.linspace(-0.13, 0.13, len(seeds)) if len(seeds) > 1 else [0]
    return dict(zip(seeds, apart, strict=True))


def estimate(
    ax: Axes,
    x: float,
    at: ArrayLike,
    values: ArrayLike,
    *,
    colour: str,
    marker: str,
    mean: float | None = None,
    interval: tuple[float, float] | None = None,
    null: float | None = None,
    paler: bool = False,
) -> None:
    """Draw values at the places ``at``, and over ``x`` what is given of mean, interval and null.

    The null is dashed.
    """
    alpha = 0.4 if paler else 1
    ends = (x - _HALF, x + _HALF)
    ax.plot(
        at, values, marker, color=colour, markersize=4, alpha=alpha, markeredgewidth=0, zorder=3
    )
    if mean is not None:
        ax.hlines(mean, *ends, color=colour, linewidth=1.8, alpha=alpha, zorder=4)
    if interval is not None:
        ax.vlines(x, *interval, color=colour, linewidth=0.9, zorder=2)
    if null is not None:
        ax.hlines(null, *ends, color=GREY, linewidth=1, linestyle=NULL, alpha=alpha)


def estimate_handles(interval: str, *, several: bool) -> list[Line2D]:
    """What the legend says of :func:`estimate`, whose upright line is the named ``interval``.

    With one seed, so not ``several``, there is no mean or interval to speak of.
    """
    null = Line2D(
        [],
        [],
        color=GREY,
        linewidth=1,
        linestyle=NULL,
        label="null" + ", mean over seeds" * several,
    )
    if not several:
        return [Line2D([], [], linestyle="none", label="one seed: no interval"), null]
    label = f"mean over seeds; upright: {interval}"
    return [Line2D([], [], color=GREY, linewidth=1.8, label=label), null]


def name_places(ax: Axes, places: Mapping[str, float], *, shown: bool = True) -> None:
    """Name what stands at these places along x, slanting, or leave their ticks alone."""
    names = [plain(name) for name in places] if shown else []
    ax.set_xticks(
        [*places.values()],
        names or [""] * len(places),
        rotation=40,
        ha="right",
        rotation_mode="anchor",
    )
    ax.set_xlim(-0.5, max(places.values()) + 0.5)


def entitle(ax: Axes, title: str, counts: Iterable[int] | None = None, what: str = "seed") -> None:
    """The panel's title, with its n where ``counts`` are given, in as many lines as it takes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    wide = figure.get_figwidth() / ax.get_gridspec().ncols - 0.55  # type: ignore[union-attr]
    n = "" if counts is None else f" ({n_equals(counts, what)})"
    ax.set_title(wrapped(title + n, wide), loc="left")
