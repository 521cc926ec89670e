"""The figures of a report as files: drawn side by side, and only where their tables changed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from kdx_analysis import plots
from kdx_analysis.drawing.style import DOTS
from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.extensions import loaded_now
from kdx_analysis.plots.figure import Figure
from kdx_analysis.plots.workers import Drawers, Files, Job, usual_jobs
from kdx_analysis.registry import home, is_foreign
from kdx_analysis.report.kept import Kept, is_known_elsewhere, is_reproducible, key, write_manifest
from kdx_analysis.runs import RunSet

# Of CSS, an inch. Letters of 7 points, small enough for print, are then 13 pixels high on a screen.
_PIXELS = 134


@dataclass(frozen=True)
class Picture:
    """A figure as the report shows it.

    Attributes:
        name, title, caption: of the figure.
        formula: the function that makes its data, as ``module.function``.
        files: contents by file name (PNG, SVG, CSV).
        key: of what it is drawn of; None where that can't be told.
    """

    name: str
    title: str
    caption: str
    formula: str
    files: dict[str, bytes]
    key: str | None = None

    def source(self, suffix: str) -> str:
        """The PNG or SVG as a data address, so that the page needs no other file."""
        kind = {"png": "png", "svg": "svg+xml"}[suffix]
        content = base64.b64encode(self.files[f"{self.name}.{suffix}"]).decode()
        return f"data:image/{kind};base64,{content}"

    def size(self, suffix: str) -> int:
        """Bytes of the data address, nearly."""
        return 4 * len(self.files[f"{self.name}.{suffix}"]) // 3

    @property
    def width(self) -> int:
        """Width in CSS pixels."""
        with Image.open(BytesIO(self.files[f"{self.name}.png"])) as image:
            return round(image.width / DOTS * _PIXELS)


@dataclass(frozen=True)
class Album:
    """All figures of a report.

    Attributes:
        pictures: in the order of FIGURES.
        left_out: title and reason of those that the runs can't give.
        kept: the names of those that were taken over from an earlier report.
    """

    pictures: list[Picture]
    left_out: list[tuple[str, str]]
    kept: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """As ``15 figures drawn, 2 kept as their data has not changed``."""
        drawn = len(self.pictures) - len(self.kept)
        text = f"{drawn} figure{'' if drawn == 1 else 's'} drawn"
        return f"{text}, {len(self.kept)} kept, as their data is the same" if self.kept else text

    def write_manifest(self, folder: Path) -> None:
        """Say beside the pictures what they were drawn of, where any can be kept."""
        drawn = {}
        for each in self.pictures:
            if each.key is not None:
                files = {suffix: each.files[f"{each.name}.{suffix}"] for suffix in ("png", "svg")}
                drawn[each.name] = (each.key, files)
        if drawn:
            write_manifest(folder, drawn)


class Easel:
    """Draws the album of some runs, beginning at once; within ``with``.

    Args:
        runs: of the report.
        folder: where pictures of an earlier report may lie; None: draw all.
        jobs: processes that draw, by default :func:`~kdx_analysis.plots.workers.usual_jobs`.
    """

    def __init__(self, runs: RunSet, folder: Path | None, jobs: int | None) -> None:
        self._tables: dict[str, tuple[Figure, bytes, str | None]] = {}
        self._why_not: dict[str, Exception] = {}
        self._kept: dict[str, Files] = {}
        earlier = None if folder is None else Kept(folder)
        # Workers know no objective that a notebook declares, and would give it another colour.
        most = (usual_jobs() if jobs is None else jobs) if is_reproducible() else 1
        self._drawers = Drawers(most, loaded_now())
        try:
            for figure in plots.FIGURES.values():
                self._begin(figure, runs, earlier)
        except BaseException as error:
            self._drawers.__exit__(type(error), error, error.__traceback__)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drawers.__exit__(kind, error, trace)

    def _begin(self, figure: Figure, runs: RunSet, earlier: Kept | None) -> None:
        try:
            data = figure.data(runs)
        except Exception as error:
            self._why_not[figure.name] = error
            _raise_own(figure, error)
            return
        csv = data.to_csv(index=False).encode()
        drawn_of = key(figure, data, csv)
        self._tables[figure.name] = (figure, csv, drawn_of)
        files = earlier.files(figure.name, drawn_of) if earlier and drawn_of else None
        if files is None:
            self._drawers.submit(Job(figure, data), here=not is_known_elsewhere(figure))
        else:
            self._kept[figure.name] = files

    def finish(self) -> Album:
        """Wait until all are drawn."""
        self._drawers.finish()
        pictures, left_out = [], []
        for figure in plots.FIGURES.values():
            files = self._kept.get(figure.name) or self._drawers.files.get(figure.name)
            if files is not None:
                _, csv, drawn_of = self._tables[figure.name]
                named = {f"{figure.name}.{suffix}": files[suffix] for suffix in files}
                named[f"{figure.name}.csv"] = csv
                about = (figure.name, figure.title, figure.caption, home(figure.table))
                pictures.append(Picture(*about, named, drawn_of))
                continue
            error = self._why_not.get(figure.name) or self._drawers.errors[figure.name]
            _raise_own(figure, error)
            if not isinstance(error, AbsentError):
                left_out.append((figure.title, _reason(figure, error)))
        return Album(pictures, left_out, frozenset(self._kept))


def _raise_own(figure: Figure, error: Exception) -> None:
    """Raise an error that is a mistake in this package's own figure.

    A mistake in a user's own figure does not cost the report of a whole study.
    """
    if not isinstance(error, KdxError) and not is_foreign(figure):
        raise error


def _reason(figure: Figure, error: Exception) -> str:
    return str(error) if isinstance(error, KdxError) else f"{figure.home} raised {error!r}"
