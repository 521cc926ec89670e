"""The report's one renderer."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdx_analysis.errors import AbsentError, KdxError
from kdx_analysis.io import staged_file, write_text
from kdx_analysis.metrics import METRICS
from kdx_analysis.report import formats, methods, provenance
from kdx_analysis.report.answers import Answer, Claim, by_chance, claims
from kdx_analysis.report.arm_answers import ArmAnswer, arm_answer
from kdx_analysis.report.arm_findings import MARGIN, ArmFinding, first_arm
from kdx_analysis.report.fidelity_answers import said
from kdx_analysis.report.fidelity_sections import answer_formulas, sections
from kdx_analysis.report.findings import LOWERS, RAISES, Decision, Finding
from kdx_analysis.report.formulas import formulas, named
from kdx_analysis.report.health import health, summary
from kdx_analysis.report.pictures import Album, Easel, Picture
from kdx_analysis.report.tables import (
    accuracy,
    answers,
    headline_tables,
    teacher_scores,
    tested_images,
)
from kdx_analysis.report.thumbnails import thumbnails
from kdx_analysis.report.trees import newicks, trees_sentence
from kdx_analysis.runs import RunSet, ladders
from kdx_analysis.runs.fidelity import RunsFidelity
from kdx_analysis.runs.tables.numbers import (
    estimate,
    latex_escaped,
    listed,
    number,
    percent,
    tied,
)

PAGE, FIGURES, ANSWER, ARMS, TREES = "report.html", "figures", "answer.csv", "arms.csv", "trees.csv"
FIDELITY = "fidelity"  # the figure, and the folder of its tables
_ROLES = {"student": "undivided students", "explainer": "explainers", "tree": "trees"}
_WHO = {"student": "students", "explainer": "explainers", "tree": "trees"}
EMBEDDED = 3_000_000  # bytes of figures in a page, as long as their PNGs allow


@dataclass(frozen=True)
class Report:
    """The report on runs of one study: the answer, tables and figures, and where they come from.

    Shows itself in a notebook; :meth:`save` writes it as a page, as Markdown or as PDF, with its
    figures and tables beside it. Raises KdxError if there is none but a teacher among the runs.
    """

    runs: RunSet

    def __post_init__(self) -> None:
        if all(run.role == "teacher" for run in self.runs):
            raise KdxError(
                "there is no run but a teacher's, and nothing to report; give the directory of a "
                "study or of imports"
            )

    @cached_property
    def answers(self) -> list[Answer]:
        """One per KD objective that explainers were trained under."""
        return answers(self.runs)

    @cached_property
    def arms(self) -> ArmAnswer | None:
        """The answer on VAM; None where the runs are of no two arms."""
        try:
            return arm_answer(self.runs)
        except AbsentError:
            return None

    @cached_property
    def fidelities(self) -> list[RunsFidelity]:
        """What students got from their teachers: undivided ones, then explainers, then trees."""
        return self.runs.fidelities

    @cached_property
    def got(self) -> list[tuple[str, list[str]]]:
        """Of every group of :attr:`fidelities` who they are, and what they got, in sentences."""
        groups = []
        for each in self.fidelities:
            arm = f" with VAM {each.group.vam}" if each.group.vam else ""
            who = f"{_ROLES[each.group.role]}{arm}"
            groups.append((who, said(each.fidelity, _WHO[each.group.role])))
        return groups

    @cached_property
    def _fidelity(self) -> dict[str, Any]:
        """What is shown of it: the first group in full, of others the answer."""
        groups = [{"role": role, "sentences": sentences} for role, sentences in self.got]
        if not groups:
            return {"groups": []}
        first = self.fidelities[0]
        ids = first.fidelity.images["id"].tolist()
        pictures = thumbnails(next(iter(first.runs[0].values())), ids)
        return {
            "groups": groups,
            "notes": first.fidelity.notes,
            "said_by": answer_formulas(),
            **sections(first.fidelity, pictures),
        }

    @cached_property
    def album(self) -> Album:
        """The figures, and those that these runs can't give; drawn when they are first asked for.

        What is written after :meth:`save` has drawn them shows the same ones.
        """
        return self._drawn(None, None)

    def _drawn(self, folder: Path | None, jobs: int | None) -> Album:
        """Draw the figures, while all is computed that the page says beside them."""
        with Easel(self.runs, folder, jobs) as easel:
            _ = self.answers, self.arms, self._fidelity, self._trees, self._tables
            return easel.finish()

    @cached_property
    def _trees(self) -> tuple[list[str], pd.DataFrame | None]:
        """What the trees support, and the trees; nothing where the runs hold no gates."""
        try:
            return trees_sentence(self.runs), newicks(self.runs)
        except KdxError:  # the tree's figure is left out for the same reason, and says so
            return [], None

    def _repr_html_(self) -> str:
        return self._render("fragment.html.j2", files_at=None)

    def save(self, out: str | Path, *, jobs: int | None = None) -> Path:
        """Write the report as the suffix says, ``.html``, ``.md`` or ``.pdf``; returns the path.

        A path without suffix is a directory, for ``report.html`` in it.

        Args:
            out: the file or directory.
            jobs: as for :meth:`save_html`.

        Raises KdxError for another suffix.
        """
        path = Path(out)
        if path.suffix not in _SAVERS:
            raise KdxError(
                f"{str(path)!r} has a suffix that no report is written as: choose .html, .md or "
                ".pdf"
            )
        return _SAVERS[path.suffix](self, path, jobs=jobs)

    def save_html(self, out: str | Path, *, jobs: int | None = None) -> Path:
        """Write the page, last, and ``answer.csv``, ``trees.csv`` and ``figures/`` beside it.

        A figure that lies in ``figures/`` already is drawn anew only where the table that it is
        drawn from, the code or a library has changed.

        Args:
            out: a directory, for ``report.html`` in it, or the page's own path, ending in
                ``.html``.
            jobs: processes that draw figures, this one among them; by default one for each core
                that it may use, four at most. The files are the same whatever it is.

        Returns:
            The page's path.
        """
        path = Path(out) if Path(out).suffix == ".html" else Path(out) / PAGE
        self._draw(path.parent / FIGURES, jobs)
        page = self._render("report.html.j2", files_at=FIGURES)
        self._save_beside(path)
        write_text(path, page)
        return path

    def save_markdown(self, out: str | Path, *, jobs: int | None = None) -> Path:
        """Write the report as Markdown, figures and tables as files beside it; returns ``out``.

        ``jobs`` is as for :meth:`save_html`.
        """
        path = Path(out)
        self._draw(path.parent / FIGURES, jobs)
        text = formats.markdown(self._render("fragment.html.j2", files_at=FIGURES, embed=False))
        self._save_beside(path)
        write_text(path, text)
        return path

    def save_pdf(self, out: str | Path, *, jobs: int | None = None) -> Path:
        """Write the report as one PDF, its figures as vectors; returns ``out``.

        ``jobs`` is as for :meth:`save_html`. Needs WeasyPrint (``kdx_analysis[pdf]``); raises
        KdxError without it.
        """
        path = Path(out)
        self._draw(None, jobs)
        written = formats.pdf(self._render("report.html.j2", files_at=None))
        with staged_file(path) as partial:
            partial.write_bytes(written)
        return path

    def _draw(self, folder: Path | None, jobs: int | None) -> None:
        """Draw the figures unless that is done, and keep those in ``folder`` that are the same."""
        if "album" not in vars(self):
            vars(self)["album"] = self._drawn(folder, jobs)

    def _save_beside(self, path: Path) -> None:
        """The figures and tables that a page at ``path`` links to."""
        for figure in self.album.pictures:
            for name, content in figure.files.items():
                with staged_file(path.parent / FIGURES / name) as partial:
                    partial.write_bytes(content)
        self.album.write_manifest(path.parent / FIGURES)
        if self.answers:
            write_text(path.parent / ANSWER, self._answer_csv())
        for i, each in enumerate(self.fidelities):
            each.fidelity.save(path.parent / (FIDELITY if not i else f"{FIDELITY}/{i}"))
        if self.arms is not None:
            write_text(path.parent / ARMS, self.arms.to_frame().to_csv(index=False))
        if self._trees[1] is not None:
            write_text(path.parent / TREES, self._trees[1].to_csv(index=False))

    def _confidences(self) -> dict[str, float]:
        """What the intervals of paired differences are corrected over, and their confidence."""
        confidences = {}
        if self.answers:
            findings = self.answers[0].findings
            together = findings[0].confidence if findings else self.answers[0].confidence
            confidences["all metrics and contrasts, for claims"] = together
            confidences["the metrics asked about, for one contrast alone"] = self.answers[
                0
            ].confidence
        if self.arms is not None:
            confidences["all differences between arms of VAM"] = self.arms.confidence
        return confidences

    def _answer_csv(self) -> str:
        texts = [
            answer.to_frame().to_csv(index=False, header=not i)
            for i, answer in enumerate(self.answers)
        ]
        return "".join(texts)

    def _render(self, template: str, *, files_at: str | None, embed: bool = True) -> str:
        """The page or the fragment.

        Args:
            template: its file.
            files_at: where the files beside the page are linked to.
            embed: whether it holds its figures.
        """
        drawn, left_out = self.album.pictures, self.album.left_out
        titles = {figure.name: re.split("[:,]", figure.title)[0] for figure in drawn}
        linked = {name: f"{FIGURES}/{name}.svg" for name in titles}
        return (
            environment()
            .get_template(template)
            .render(
                answers=self._answered(titles),
                fidelity=self._fidelity,
                tables_at=None if files_at is None else f"{FIDELITY}/",
                first_figure=next((each for each in drawn if each.name == FIDELITY), None),
                answer_file=ANSWER,
                arms=self.arms,
                arms_file=ARMS,
                margin=100 * MARGIN,
                **self._tables,
                figures=drawn,
                titles=titles,
                sources=_embedded(drawn) if embed else linked,
                trees=self._trees[0],
                trees_file=TREES,
                left_out=left_out,
                files_at=files_at,
                **self._sources(),
                formulas=formulas(),
                **assets(),
            )
        )

    def _answered(self, titles: dict[str, str]) -> list[dict[str, Any]]:
        """What is shown of every answer."""
        labels = ladders(self.runs) if self.answers else []
        return [
            {"said": answer, "grid": _grid(answer), "claims": claims(answer, rungs, titles)}
            for answer, rungs in zip(self.answers, labels, strict=True)
        ]

    @cached_property
    def _tables(self) -> dict[str, Any]:
        trainings = health(self.runs)
        shown = bool(self.answers) or self.arms is None
        return {
            "accuracy": accuracy(first_arm(self.runs)) if shown else [],
            "teachers": teacher_scores(self.runs),
            "tested_images": tested_images(self.runs),
            "headlines": headline_tables(self.runs),
            "trainings": trainings,
            "health_summary": summary(trainings),
        }

    def _sources(self) -> dict[str, Any]:
        """What the runs are, and how they were made and compared."""
        return {
            "study": ", ".join(dict.fromkeys(str(run.info["study"]) for run in self.runs)),
            "objectives": self.runs.objectives,
            "seeds": self.runs.seeds,
            "classes": self.runs.classes,
            "provenance": provenance.provenance(self.runs),
            "differing": provenance.differing(self.runs),
            "spent": provenance.time_spent(self.runs),
            "given": methods.given(self.runs),
            "selection": provenance.selection(self.runs),
            "methods": methods.methods(self.runs, self._confidences()),
            "definitions": methods.definitions(self.runs),
            "objectives_defined": methods.objectives_defined(self.runs),
            "bibtex": methods.bibtex(),
        }


_SAVERS: dict[str, Callable[..., Path]] = {
    "": Report.save_html,
    ".html": Report.save_html,
    ".md": Report.save_markdown,
    ".pdf": Report.save_pdf,
}


def _embedded(figures: Sequence[Picture]) -> dict[str, str]:
    """The data address of every figure: the SVG as far as EMBEDDED allows, else the PNG.

    An SVG stays sharp when it is enlarged. The smallest SVGs go first; the figures that are left
    over show their PNG.
    """
    chosen = {figure.name: "png" for figure in figures}
    total = sum(figure.size("png") for figure in figures)
    for figure in sorted(figures, key=lambda figure: figure.size("svg")):
        total += figure.size("svg") - figure.size("png")
        if total > EMBEDDED:
            break
        chosen[figure.name] = "svg"
    return {figure.name: figure.source(chosen[figure.name]) for figure in figures}


def assets() -> dict[str, Any]:
    """Style and script that a page holds, and the script's hash, which alone may run in it."""
    script = _resource("report.js")
    return {
        "style": Markup(_resource("style.css")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _resource(name: str) -> str:
    return (resources.files("kdx_analysis.report") / "templates" / name).read_text(encoding="utf-8")


def _grid(answer: Answer) -> dict[str, Any]:
    """The findings as rows of metrics by columns of contrasts."""
    contrasts = list(dict.fromkeys(finding.contrast for finding in answer.findings))
    metrics = dict.fromkeys(finding.metric for finding in answer.findings)
    cells = {(finding.metric, finding.contrast): finding for finding in answer.findings}
    rows = []
    for metric in metrics:
        rows.append((METRICS[metric], [cells[metric, contrast] for contrast in contrasts]))
    return {"contrasts": contrasts, "rows": rows}


def _decided(finding: Finding | Decision | Claim | ArmFinding) -> bool:
    return finding.verdict in (LOWERS, RAISES)


def environment() -> Environment:
    """Templates, in which every name is escaped, with the filters that they use."""
    templates = Environment(
        loader=PackageLoader("kdx_analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": number,
        "estimate": estimate,
        "percent": percent,
        "latex": latex_escaped,
        "tied": tied,
        "listed": lambda items: listed(list(map(str, items))),
    }
    templates.globals |= {"by_chance": by_chance, "named": named}
    templates.tests["decided"] = _decided
    return templates
