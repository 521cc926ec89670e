"""One visual language for every figure: two widths, type, legends, and files."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from kdx_analysis.io import staged_file
from kdx_analysis.registry import unknown

Width = Literal["column", "page"]
_INCHES: dict[Width, float] = {"column": 3.4, "page": 7.0}
COLUMNS: dict[Width, int] = {"column": 2, "page": 3}  # of panels
DOTS = 150  # an inch of the PNG in a page
# cells of a heat map from which on SVG and PDF hold it as a picture, its text still as text
RASTERED = 2000
# inches, of a letter of 7 to 7.5 pt on the average, so that lines of words end before they must
LETTER = 0.058

P = ParamSpec("P")
A = TypeVar("A")

INK, GREY, LIGHT = "#333333", "#666666", "#BBBBBB"
RC: dict[str, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": [
        "DejaVu Sans",
        "Verdana",
    ],  # Verdana, as wide, where an SVG is read without DejaVu
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 7.5,
    "figure.facecolor": "white",
    "lines.linewidth": 1.2,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "kdx_analysis",
}


def plain(text: object) -> str:
    """``text`` as matplotlib shows it letter by letter.

    A ``$`` in a class's name starts no formula.
    """
    return str(text).replace("$", r"\$")


def counted(counts: Iterable[int], what: str = "seed") -> str:
    """``1 seed``, ``3 seeds``, or ``2–3 seeds`` where counts differ; ``what`` is the noun."""
    distinct = sorted(set(counts)) or [0]
    number = "–".join(str(n) for n in dict.fromkeys((distinct[0], distinct[-1])))
    return f"{number} {what}" + ("" if distinct == [1] else "s")


def signed(value: float) -> str:
    """``value`` with two decimals and a minus as long as a plus."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def n_equals(counts: Iterable[int], what: str = "seed") -> str:
    """``n = 3 seeds``, which no line break parts; ``counts`` and ``what`` as of :func:`counted`."""
    return f"n = {counted(counts, what)}".replace(" ", "\N{NO-BREAK SPACE}")


def in_order(names: Iterable[str]) -> list[str]:
    """The distinct names, in the order in which they come first."""
    return list(dict.fromkeys(names))


class Drawing(Figure):
    """A figure apart from pyplot.

    There is nothing to close, and a notebook shows it once, as the value of its cell.
    """

    def _repr_png_(self) -> bytes:
        with style(), io.BytesIO() as buffer:
            self.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()


def inches(width: Width) -> float:
    """How wide a figure is: ``column`` 3.4 inches, a column of a two-column paper, ``page`` 7.

    Raises KdxError for another width.
    """
    if width not in _INCHES:
        raise unknown("width of figures", width, _INCHES)
    return _INCHES[width]


def drawing(width: Width, height: float) -> Drawing:
    """An empty figure that keeps its labels from overlapping.

    It is as wide as :func:`inches` says for ``width``, and ``height`` inches high.
    """
    return Drawing(figsize=(inches(width), height), layout="constrained")


def canvas(ax: Axes | None, width: Width, height: float) -> tuple[Figure, Axes]:
    """The figure of ``ax`` and itself.

    Without one it is a new figure of ``width`` and ``height``, as :func:`drawing` makes it.
    """
    if ax is None:
        ax = drawing(width, height).subplots()
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax


def wrapped(text: str, wide: float) -> str:
    """``text`` in lines at most ``wide`` inches wide, as far as its words allow.

    Its own line breaks stay.
    """
    most = max(1, int(wide / LETTER))
    return "\n".join(textwrap.fill(line, most, break_long_words=False) for line in text.split("\n"))


def heading(figure: Figure, text: str) -> None:
    """Say by ``text`` over the whole ``figure`` what is drawn and how many runs it rests on."""
    figure.suptitle(wrapped(text, figure.get_figwidth() - 0.1), x=0.01, ha="left")


def legend(figure: Figure, handles: Sequence[Line2D], heading: str | None = None) -> None:
    """One legend of the ``handles`` above all panels of a ``figure``, in as many columns as fit.

    ``heading`` stands over it.
    """
    wide = figure.get_figwidth()
    for handle in handles:
        handle.set_label(wrapped(str(handle.get_label()), wide / 2 - 0.62))
    lines = "\n".join(str(handle.get_label()) for handle in handles).split("\n")
    longest = max(map(len, lines))
    columns = int((wide - 0.1) / (0.5 + longest * LETTER))
    title = None if heading is None else wrapped(heading, wide - 0.15)
    figure.legend(
        handles=list(handles),
        loc="outside upper left",
        ncols=max(1, columns),
        title=title,
        alignment="left",
    )


def panels(figure: Figure, count: int, columns: int, **options: Any) -> np.ndarray:
    """``count`` axes of a ``figure``, row by row, in a grid of at most so many ``columns``.

    ``options`` are those of ``Figure.subplots``.
    """
    columns = min(columns, count)
    grid: np.ndarray = figure.subplots(
        -(-count // columns), columns, squeeze=False, **options
    ).ravel()
    for ax in grid[count:]:
        ax.remove()
    return grid[:count]


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's defaults with this package's changes, for the body only."""
    with matplotlib.style.context(RC, after_reset=True):
        yield


def styled(draw: Callable[P, tuple[Figure, A]]) -> Callable[P, tuple[Figure, A]]:
    """Run ``draw`` in :func:`style`, and lay its figure out there.

    Ticks take their style when they are first drawn.
    """

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> tuple[Figure, A]:
        with style():
            figure, axes = draw(*args, **kwargs)
            figure.draw_without_rendering()
        return figure, axes

    return drawn


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write ``figure`` as PNG (150 dpi, 256 colours) and SVG (text stays text).

    Each is written to ``path`` with its suffix.
    """
    written = []
    for suffix, content in pictures(figure).items():
        target = Path(f"{path}.{suffix}")
        with staged_file(target) as partial:
            partial.write_bytes(content)
        written.append(target)
    return written


def pictures(figure: Figure) -> dict[str, bytes]:
    """What :func:`save` writes of ``figure``, by suffix: ``png`` and ``svg``."""
    with style(), _laid_out(figure), io.BytesIO() as png, io.BytesIO() as svg:
        with io.BytesIO() as buffer:
            # Not compressed, as it is read again at once.
            figure.savefig(buffer, format="png", dpi=DOTS, pil_kwargs={"compress_level": 0})
            image = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
            image.save(png, format="png", optimize=True)
        figure.savefig(svg, format="svg", metadata={"Date": None})
        return {"png": png.getvalue(), "svg": svg.getvalue()}


@contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """Lay ``figure`` out once, if that is not done yet, for all files written inside the body.

    With an engine for its layout, be it one that does nothing, matplotlib draws a figure twice for
    every file: first to lay it out.
    """
    if figure.stale:
        figure.draw_without_rendering()
    engine = figure.get_layout_engine()
    figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)
