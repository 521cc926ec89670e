"""The page on fidelity: the answer first, then the figure, tables, classes, images and notes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import pandas as pd

from kdx_analysis import plots
from kdx_analysis.intervals import Interval, t_interval
from kdx_analysis.io import staged_file, write_text
from kdx_analysis.metrics import METRICS
from kdx_analysis.probes.fidelity.drawing import along_ladder
from kdx_analysis.probes.fidelity.result import OWN, Fidelity
from kdx_analysis.probes.fidelity.whose import BASELINE, LIKENESSES, Part
from kdx_analysis.registry import home
from kdx_analysis.report.fidelity_answers import said
from kdx_analysis.report.methods import definitions_named
from kdx_analysis.report.page import PAGE, Picture, assets, environment
from kdx_analysis.runs.tables.grid import Cell, Grid
from kdx_analysis.runs.tables.numbers import MISSING, estimate, markdown_escaped, number

FIGURE = "fidelity"
_TITLE = "What each objective shares with its teacher: the task's, the kind's and the own part"
_CAPTION = (
    "Likeness to the own teacher, taken apart. Task: what students on hard labels share with it. "
    "Kind: by how much the objective brings students nearer to every teacher of the recipe. Own: "
    "what only this teacher gave."
)
# Levels of a student beside its own teacher or by itself, in the order in which they are shown.
_LEVELS = {
    "agreement": "agreement_excess",
    "error_consistency": "error_consistency",
    "copied_errors": "copied_errors",
    "kl_T1": "kl_T1",
    "kl_T4": "kl_T4",
    "js": "js",
    "ece": "ece",
    "nll": "nll",
}
_LOUDEST_CLASSES = 10


class Shown(NamedTuple):
    """A cell of the page: its text, and the functions that make its number."""

    text: str
    formula: str


@dataclass(frozen=True)
class FidelityPage:
    """What the page shows of a fidelity.

    Attributes:
        fidelity: what students got from their teachers.
        name: of the whole, for the title.
    """

    fidelity: Fidelity
    name: str = ""

    @cached_property
    def sentences(self) -> list[str]:
        """The answer."""
        return said(self.fidelity)

    @cached_property
    def grid(self) -> Grid:
        """The table that is printed: parts of every likeness, or likeness alone without ``hard``.

        Own is bold where it is decided.
        """
        return _parts(self.fidelity) if len(self.fidelity.whose) else _likenesses(self.fidelity)

    @cached_property
    def picture(self) -> Picture | None:
        """The figure; None where no part can be told."""
        data = self.fidelity.drawn()
        if data.empty:
            return None
        canvas, _ = along_ladder(data)
        with tempfile.TemporaryDirectory() as folder:
            written = plots.save(canvas, Path(folder) / FIGURE)
            files = {path.name: path.read_bytes() for path in written}
        files[f"{FIGURE}.csv"] = data.to_csv(index=False).encode()
        return Picture(FIGURE, _TITLE, _CAPTION, home(Fidelity), files)

    def printed(self, form: str) -> str:
        """Notes, answer and table as ``text`` or ``markdown``; as ``latex`` or ``csv`` the table.

        ``form`` says which.
        """
        if form == "csv":
            return self.fidelity.to_frame().to_csv(index=False)
        if form == "latex":
            return self.grid.to_latex("tab:fidelity")
        notes, sentences = self.fidelity.notes, self.sentences
        if form == "markdown":
            listed = "".join(f"- {markdown_escaped(note)}\n" for note in notes)
            answer = "\n\n".join(map(markdown_escaped, sentences))
            return f"{answer}\n\n{self.grid.to_markdown()}\n{listed}"
        said_so = "".join(f"note: {note}\n" for note in notes)
        answer = "\n".join(sentences)
        return f"{said_so}\n{answer}\n\n{self.grid.to_text()}{fill(self.grid.caption, 110)}\n"

    def html(self) -> str:
        """One page that needs no other file and no network."""
        template = environment().get_template("fidelity.html.j2")
        fidelity = self.fidelity
        return template.render(
            name=self.name or FIGURE,
            sentences=self.sentences,
            counted=_counted(fidelity),
            picture=self.picture,
            grid=_with_formulas(self.grid),
            levels=_levels(fidelity),
            classes=_classes(fidelity),
            images=_images(fidelity),
            leading=fidelity.leading,
            notes=fidelity.notes,
            definitions=definitions_named(_defined()),
            objectives_defined=[],
            **assets(),
        )

    def save(self, folder: str | Path) -> Path:
        """Write the four tables, the figure with its data, and last ``report.html``.

        Files of the same names are replaced, others in ``folder`` are left alone.

        Returns:
            The page's path.
        """
        out = Path(folder)
        page = self.html()
        self.fidelity.save(out)
        for name, content in self.picture.files.items() if self.picture else ():
            with staged_file(out / name) as partial:
                partial.write_bytes(content)
        write_text(out / PAGE, page)
        return out / PAGE


def _counted(fidelity: Fidelity) -> str:
    seeds = sorted({len(fidelity.seeds(objective)) for objective in fidelity.objectives})
    several = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    plural = "" if seeds == [1] else "s"
    siblings = f"{fidelity.siblings} sibling{'' if fidelity.siblings == 1 else 's'}"
    return f"{fidelity.num_images} images, {several} seed{plural} an objective, {siblings}"


def _parts(fidelity: Fidelity) -> Grid:
    titles = ("objective", "likeness", "task", "kind", "own", "own, 95 % over seeds")
    head = (*titles, "own, 95 % over teachers", "ceiling", "verdict")
    labels, rows = [], []
    for objective in fidelity.objectives:
        for metric, (title, _) in LIKENESSES.items():
            parts = fidelity.parts(metric, objective) if objective != BASELINE else {}
            if parts:
                labels.append((objective, title))
                rows.append(_cells(parts, fidelity.decided(metric, objective)))
    caption = (
        f"Likeness to the own teacher is task + kind + own ({_counted(fidelity)}). Own is decided, "
        "and set in bold, where both intervals leave out 0 and it is beyond own of the negative "
        "controls."
    )
    return Grid(tuple(map(Cell, head)), tuple(labels), tuple(rows), caption)


def _cells(parts: Mapping[str, Part], decided: bool) -> tuple[Cell, ...]:
    part = parts["own"]
    few = math.isnan(part.over_teachers.low)
    return (
        Cell(number(parts["task"].value)),
        Cell(number(parts["kind"].value, signed=True)),
        Cell(number(part.value, signed=True), bold=decided),
        Cell(_ends(part.over_seeds)),
        Cell(_ends(part.over_teachers)),
        Cell(number(parts["ceiling"].value)),
        Cell("decided" if decided else "not decidable" if few else "undecided"),
    )


def _ends(interval: Interval) -> str:
    if math.isnan(interval.low):
        return MISSING
    return f"[{number(interval.low)}, {number(interval.high)}]"


def _likenesses(fidelity: Fidelity) -> Grid:
    labels, rows = [], []
    for objective in fidelity.objectives:
        for metric, (title, _) in LIKENESSES.items():
            to_own, to_siblings = (
                _over_seeds(fidelity.pairs, objective, metric, own_teacher)
                for own_teacher in (True, False)
            )
            labels.append((objective, title))
            rows.append(
                (
                    Cell(estimate(to_own)),
                    Cell(estimate(to_siblings)),
                    Cell(str(len(fidelity.seeds(objective)))),
                )
            )
    head = ("objective", "likeness", "to its own teacher", "to siblings", "seeds")
    caption = (
        f"Likeness with 95 % t-intervals over seeds ({_counted(fidelity)}). Without students of "
        "the objective hard it can't be taken apart into task, kind and own."
    )
    return Grid(tuple(map(Cell, head)), tuple(labels), tuple(rows), caption)


def _over_seeds(
    pairs: pd.DataFrame, objective: str, metric: str, own_teacher: bool = True
) -> Interval | None:
    """Mean over seeds, of siblings each seed's mean over them; None where it is undefined."""
    chosen = pairs[(pairs["objective"] == objective) & (pairs["metric"] == metric)]
    beside = chosen["teacher"].isin([OWN, ""])
    chosen = chosen[beside if own_teacher else ~beside]
    by_seed = chosen.groupby("seed")["value"].mean().dropna()
    return None if by_seed.empty else t_interval(by_seed.to_numpy())


def _with_formulas(grid: Grid) -> dict[str, Any]:
    """The printed table, each number with what makes it."""
    by_title = {title: name for name, (title, _) in LIKENESSES.items()}
    rows = []
    for labels, cells in zip(grid.labels, grid.cells, strict=True):
        name = by_title[labels[1]]
        formula = f"{METRICS[name].home} {METRICS[f'own_{name}'].home} {home(t_interval)}"
        rows.append((labels, cells, formula))
    return {"head": grid.head, "rows": rows, "caption": grid.caption}


def _levels(fidelity: Fidelity) -> dict[str, Any]:
    """Accuracy, agreement, divergences and calibration, objective by objective."""
    mean = home(t_interval)
    right = fidelity.accuracy
    shown = [
        name for name in _LEVELS if fidelity.pairs.query("metric == @name")["value"].notna().any()
    ]
    rows = []
    for objective in fidelity.objectives:
        accuracy = t_interval(right[right["objective"] == objective]["value"].to_numpy())
        cells = [Shown(estimate(accuracy), f"{METRICS['accuracy'].home} {mean}")]
        for name in shown:
            value = _over_seeds(fidelity.pairs, objective, name)
            cells.append(Shown(estimate(value), f"{METRICS[_LEVELS[name]].home} {mean}"))
        rows.append((objective, cells))
    teacher = float(right[right["objective"] == ""]["value"].mean())
    titles = ["accuracy", *(METRICS[_LEVELS[name]].title for name in shown)]
    return {"titles": titles, "rows": rows, "teacher": number(teacher)}


def _classes(fidelity: Fidelity) -> list[tuple[Any, ...]]:
    """The classes with the largest own part in instance knowledge under the leading objective."""
    table = fidelity.of_classes
    if table.empty:
        return []
    leading = table[(table["objective"] == fidelity.leading) & (table["metric"] == "instance")]
    loudest = leading.dropna(subset="own").sort_values("own", ascending=False)
    return [
        (
            row["class"],
            int(row["n"]),
            number(row["own"], signed=True),
            _ends(Interval(int(row["seeds"]), row["own"], row["seed_low"], row["seed_high"])),
            number(row["kind"], signed=True),
            number(row["accuracy"]),
            number(row["hard_accuracy"]),
        )
        for _, row in loudest.head(_LOUDEST_CLASSES).iterrows()
    ]


def _images(fidelity: Fidelity) -> list[tuple[Any, ...]]:
    rows = []
    for _, row in fidelity.images.iterrows():
        shares = [number(row[name], 2) for name in ("students", "hard", "siblings")]
        value = number(row["value"], 2, signed=True)
        rows.append((row["id"], row["class"], row["teacher_second"], value, *shares))
    return rows


def _defined() -> Sequence[str]:
    """Metrics that are declared in fidelity's room."""
    return [name for name, metric in METRICS.items() if ".fidelity." in metric.home]
