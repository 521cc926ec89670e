"""The report's one renderer."""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.io import staged_file, write_text
from kdx_analysis.report import health, numbers, provenance, tables, trees
from kdx_analysis.report.answer import Answer
from kdx_analysis.report.findings import LOWERS, RAISES, Finding
from kdx_analysis.runs import METRIC, RunSet

PAGE, FIGURES, ANSWER, TREES = "report.html", "figures", "answer.csv", "trees.csv"


@dataclass(frozen=True)
class Drawn:
    """A figure as the report shows it; ``files`` are its contents by file name (PNG, SVG, CSV)."""

    name: str
    title: str
    caption: str
    files: dict[str, bytes]

    @property
    def source(self) -> str:
        """The PNG as a data address, so that the page needs no other file."""
        return f"data:image/png;base64,{base64.b64encode(self.files[f'{self.name}.png']).decode()}"

    @property
    def width(self) -> int:
        """Width in CSS pixels that shows the figure at its size in inches (a PNG's width is its bytes 16–20)."""
        return round(int.from_bytes(self.files[f"{self.name}.png"][16:20], "big") * 96 / 150)


@dataclass(frozen=True)
class Report:
    """The report on runs of one study: the answer, its tables and figures, and where they come from.

    Shows itself in a notebook; :meth:`save_html` writes it as a page with its figures and tables beside it.
    Raises KdxError if there is none but a teacher among the runs.
    """

    runs: RunSet

    def __post_init__(self) -> None:
        if all(run.role == "teacher" for run in self.runs):
            raise KdxError(
                f"the {len(self.runs)} runs are of teachers alone, so there is nothing to report; give the directory "
                "of a study, or of imported runs"
            )

    @cached_property
    def answers(self) -> list[Answer]:
        """One per KD objective that was run."""
        return tables.answers(self.runs)

    @cached_property
    def _figures(self) -> tuple[list[Drawn], list[tuple[str, str]]]:
        """The figures, and title and reason of those that these runs can't give."""
        drawn, left_out = [], []
        for figure in plots.FIGURES.values():
            try:
                data = figure.data(self.runs)
            except KdxError as error:
                left_out.append((figure.title, str(error)))
                continue
            drawing, _ = figure.draw(data)
            with tempfile.TemporaryDirectory() as folder:
                written = plots.save(drawing, Path(folder) / figure.name)
                files = {path.name: path.read_bytes() for path in written}
            files[f"{figure.name}.csv"] = data.to_csv(index=False).encode()
            drawn.append(Drawn(figure.name, figure.title, figure.caption, files))
        return drawn, left_out

    @cached_property
    def _trees(self) -> tuple[list[str], pd.DataFrame | None]:
        """What the trees support, and the trees; nothing where the runs hold no gates to take them from."""
        try:
            return trees.trees_sentence(self.runs), trees.newicks(self.runs)
        except KdxError:  # the tree's figure is left out for the same reason, and says so
            return [], None

    def _repr_html_(self) -> str:
        return self._render("fragment.html.j2", files_at=None)

    def save_html(self, out: str | Path) -> Path:
        """Write the page, and ``answer.csv``, ``trees.csv`` and ``figures/`` beside it; the page comes last.

        Args:
            out: a directory, for ``report.html`` in it, or the page's own path, ending in ``.html``.

        Returns:
            The page's path.
        """
        page_file = Path(out) if Path(out).suffix == ".html" else Path(out) / PAGE
        out = page_file.parent
        page = self._render("report.html.j2", files_at=FIGURES)
        for figure in self._figures[0]:
            for name, content in figure.files.items():
                with staged_file(out / FIGURES / name) as partial:
                    partial.write_bytes(content)
        write_text(out / ANSWER, self._answer_csv())
        if self._trees[1] is not None:
            write_text(out / TREES, self._trees[1].to_csv(index=False))
        write_text(page_file, page)
        return page_file

    def _answer_csv(self) -> str:
        texts = [answer.to_frame().to_csv(index=False, header=not i) for i, answer in enumerate(self.answers)]
        return "".join(texts)

    def _render(self, template: str, *, files_at: str | None) -> str:
        drawn, left_out = self._figures
        trainings = health.health(self.runs)
        return _environment().get_template(template).render(
            answers=[{"said": answer, "grid": _grid(answer)} for answer in self.answers],
            answer_file=ANSWER,
            accuracy=tables.accuracy(self.runs),
            teachers=tables.teacher_accuracy(self.runs),
            tested_images=tables.tested_images(self.runs),
            headlines=tables.headline_tables(self.runs),
            figures=drawn,
            trees=self._trees[0],
            trees_file=TREES,
            left_out=left_out,
            files_at=files_at,
            trainings=trainings,
            health_summary=health.summary(trainings),
            provenance=provenance.provenance(self.runs),
            differing=provenance.differing(self.runs),
            selection=provenance.selection(self.runs),
            study=", ".join(dict.fromkeys(str(run.info["study"]) for run in self.runs)),
            objectives=self.runs.objectives,
            seeds=self.runs.seeds,
            classes=self.runs.classes,
        )  # fmt: skip


def _grid(answer: Answer) -> dict[str, Any]:
    """The findings as rows of metrics by columns of contrasts."""
    contrasts = list(dict.fromkeys(finding.contrast for finding in answer.findings))
    metrics = dict.fromkeys(finding.metric for finding in answer.findings)
    cells = {(finding.metric, finding.contrast): finding for finding in answer.findings}
    rows = [(METRIC[metric], [cells[metric, contrast] for contrast in contrasts]) for metric in metrics]
    return {"contrasts": contrasts, "rows": rows}


def _decided(finding: Finding) -> bool:
    return finding.verdict in (LOWERS, RAISES)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kdx_analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": numbers.number,
        "estimate": numbers.estimate,
        "percent": numbers.percent,
        "listed": lambda items: numbers.listed([str(item) for item in items]),
    }
    environment.tests["decided"] = _decided
    return environment
