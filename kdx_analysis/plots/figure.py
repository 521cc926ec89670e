"""What a figure is: tidy data out of runs, and a drawing of that data alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib.figure
import numpy as np
import pandas as pd

from kdx_analysis.drawing.style import Width, inches, style
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.io import staged_file, write_text
from kdx_analysis.registry import Registry, unknown
from kdx_analysis.runs import RunSet

Format = Literal["svg", "pdf", "png"]
Drawn = tuple[matplotlib.figure.Figure, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Figure:
    """A figure of a report; calling it with a RunSet gives (figure, axes).

    Attributes:
        name: stem of its files.
        title: its heading.
        caption: what is drawn, on which axes, beside which null.
        data: the tidy table that is drawn; raises KdxError where the runs don't hold it,
            AbsentError where they are not of the kind that it is about.
        draw: that table as (figure, axes); it needs nothing else but the width, ``column`` or
            ``page``.
    """

    name: str
    title: str
    caption: str
    data: Callable[[RunSet], pd.DataFrame]
    draw: Callable[..., Drawn]

    def __post_init__(self) -> None:
        title = self.title if self.title.endswith("?") else f"{self.title}."
        told = f"{title}\n\n{self.caption}\n\nThe table it is drawn from. {inspect.cleandoc(self.data.__doc__ or '')}"
        object.__setattr__(
            self, "__doc__", told
        )  # what `kdx.plots.ladder?` and the API reference show

    def __call__(self, runs: RunSet, width: Width = "page") -> Drawn:
        return self.draw(self.data(runs), width)

    def write(
        self, runs: RunSet, folder: str | Path, width: Width = "page", format: Format = "svg"
    ) -> tuple[Path, Path]:
        """Write the figure and its tidy data beside it, ``NAME.FORMAT`` and ``NAME.csv``, into
        ``folder``.

        Text in SVG and PDF stays text. PNG has 300 dots an inch. Raises KdxError for another format
        or width, or where the runs don't hold what is drawn.
        """
        if format not in get_args(Format):
            raise unknown("format of figures", format, get_args(Format))
        inches(width)
        data = self.data(runs)
        figure, _ = self.draw(data, width)
        picture, table = (Path(folder) / f"{self.name}.{suffix}" for suffix in (format, "csv"))
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[format]
        with style(), staged_file(picture) as partial:
            figure.savefig(partial, format=format, metadata=undated)
        write_text(table, data.to_csv(index=False))
        return picture, table


FIGURES: Registry[Figure] = Registry("figure")


def explainers(runs: RunSet, *, comparable: bool = False) -> RunSet:
    """The explainers among ``runs``.

    With ``comparable``, of one decomposition only: conflict depends on how the subtasks are cut
    (method, §4). Raises KdxError if there is none, if two stand for one objective and seed, or if
    they can't be compared.
    """
    found = runs.filter(role="explainer")
    if not len(found):
        raise AbsentError(f"none of the {len(runs)} runs is an explainer; give runs of a study")
    cells = [(run.objective, run.seed) for run in found]
    twice = next((cell for cell in cells if cells.count(cell) > 1), None)
    if twice is not None:
        objective, seed = twice
        differing = map(str, found.filter(objective=objective, seed=seed).diff())
        raise KdxError(
            f"{cells.count(twice)} explainers are {objective!r} with seed {seed}; they differ in "
            f"{', '.join(differing) or 'nothing'}: filter the runs, or draw their directories apart"
        )
    decompositions = sorted({run.info["decomposition"] for run in found})
    if comparable and len(decompositions) > 1:
        raise KdxError(
            f"the explainers are of the decompositions {' and '.join(decompositions)}, between "
            "which objectives can't "
            "be compared; filter the runs by decomposition"
        )
    return found


def of_first_seed(runs: RunSet) -> RunSet:
    """The explainers of the first seed among ``runs``."""
    found = explainers(runs)
    return found.filter(seed=found.seeds[0])
