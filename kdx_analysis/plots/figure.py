"""What a figure is: tidy data out of runs, and a drawing of that data alone.

    @figure(
        title="Severity, seed by seed",
        caption="Conflict severity of every explainer.",
        table=lambda runs: runs.to_frame().query("metric == 'severity'"),
        wants=explainers,
    )
    def severities(data, width="page"):
        canvas = drawing(width, 2.0)
        ax = canvas.subplots()
        ax.plot(data["seed"], data["value"], "o")
        return canvas, np.array([ax])

A file of that kind in :mod:`kdx_analysis.plots.figures`, or one of a user's own that is imported,
is all that a figure takes: commands, reports, documentation and gallery read FIGURES.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib.figure
import numpy as np
import pandas as pd

from kdx_analysis.drawing.style import Width, inches, style, styled
from kdx_analysis.errors import AbsentError
from kdx_analysis.io import staged_file, write_text
from kdx_analysis.registry import Registry, home, unknown
from kdx_analysis.runs import RunSet, arms
from kdx_analysis.runs import comparable_explainers as comparable_explainers
from kdx_analysis.runs import explainers as explainers

Format = Literal["svg", "pdf", "png"]
Drawn = tuple[matplotlib.figure.Figure, np.ndarray[Any, Any]]


def all_runs(runs: RunSet) -> RunSet:
    """What a figure wants that draws whatever there is."""
    return runs


@dataclass(frozen=True)
class Figure:
    """A figure of a report; calling it with a RunSet gives (figure, axes).

    Attributes:
        name: stem of its files.
        title: its heading.
        caption: what is drawn, on which axes, beside which null.
        table: from the runs that it ``wants`` to the tidy table that is drawn; raises KdxError
            where they don't hold it.
        draw: that table as (figure, axes); it needs nothing else but the width, ``column`` or
            ``page``.
        wants: from any runs to those that it is about; raises AbsentError where there are none, and
            a report then passes the figure over.
        follows: the name of the figure that it comes right after in a report; one that follows none
            comes behind those of the package.
    """

    name: str
    title: str
    caption: str
    table: Callable[[RunSet], pd.DataFrame]
    draw: Callable[..., Drawn]
    wants: Callable[[RunSet], RunSet] = all_runs
    follows: str | None = None

    def __post_init__(self) -> None:
        title = self.title if self.title.endswith("?") else f"{self.title}."
        columns = inspect.cleandoc(self.table.__doc__ or "")
        text = f"{title}\n\n{self.caption}\n\nThe table it is drawn from. {columns}"
        # what `kdx.plots.ladder?` and the API reference show
        object.__setattr__(self, "__doc__", text)

    def __call__(self, runs: RunSet, width: Width = "page") -> Drawn:
        return self.draw(self.data(runs), width)

    @property
    def home(self) -> str:
        """Where it is declared, as ``module.function``."""
        return home(self.draw)

    def data(self, runs: RunSet) -> pd.DataFrame:
        """The tidy table that is drawn of ``runs``.

        Raises KdxError where they don't hold it, AbsentError where they are not of the kind that
        the figure is about.
        """
        return self.table(self.wants(runs))

    def write(
        self, runs: RunSet, folder: str | Path, width: Width = "page", format: Format = "svg"
    ) -> tuple[Path, Path]:
        """Write ``NAME.FORMAT`` and its tidy data beside it, ``NAME.csv``, into ``folder``.

        Text in SVG and PDF stays text. PNG has 300 dots an inch. Raises KdxError for another format
        or width, or where the runs don't hold what is drawn.
        """
        if format not in get_args(Format):
            raise unknown("format of figures", format, get_args(Format))
        inches(width)  # refuses another width before anything is computed
        data = self.data(runs)
        figure, _ = self.draw(data, width)
        picture, table = (Path(folder) / f"{self.name}.{suffix}" for suffix in (format, "csv"))
        # without a date, so that the same runs give the same file
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[format]
        with style(), staged_file(picture) as partial:
            figure.savefig(partial, format=format, metadata=undated)
        write_text(table, data.to_csv(index=False))
        return picture, table


FIGURES: Registry[Figure] = Registry(
    "figure", rooms=("kdx_analysis.plots.figures",), follows=lambda figure: figure.follows
)


def figure(
    *,
    title: str,
    caption: str,
    table: Callable[[RunSet], pd.DataFrame],
    wants: Callable[[RunSet], RunSet] = all_runs,
    follows: str | None = None,
) -> Callable[[Callable[..., Drawn]], Figure]:
    """Declare a figure on the function that draws it, whose name it takes.

    The function gets the table and the width and is run in the package's style. ``title``,
    ``caption``, ``table``, ``wants`` and ``follows`` are attributes of :class:`Figure`.
    """

    def declare(draw: Callable[..., Drawn]) -> Figure:
        name = draw.__name__
        declared = Figure(name, title, caption, table, styled(draw), wants, follows)
        return FIGURES.register(name)(declared)

    return declare


def with_vam(runs: RunSet) -> RunSet:
    """The runs that hold gates of VAM. Raises AbsentError if there is none."""
    chosen = runs.only(run for run in runs if "vam_gates" in run.kinds)
    if not len(chosen):
        raise AbsentError(
            f"none of the {len(runs)} runs has VAM; give runs of students with a vam section"
        )
    return chosen


def students_of_arms(runs: RunSet) -> RunSet:
    """The students of arms of VAM. Raises AbsentError if there are not two arms."""
    return arms(runs)
