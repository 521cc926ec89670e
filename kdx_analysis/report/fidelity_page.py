"""The page on fidelity: the answer first, then the figure, tables, classes, images and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import fill

from kdx_analysis.drawing.style import pictures
from kdx_analysis.io import staged_file, write_text
from kdx_analysis.metrics import METRICS
from kdx_analysis.probes.fidelity.drawing import along_ladder
from kdx_analysis.probes.fidelity.result import Fidelity
from kdx_analysis.registry import home
from kdx_analysis.report.fidelity_answers import said
from kdx_analysis.report.fidelity_sections import grid, sections
from kdx_analysis.report.methods import definitions_named
from kdx_analysis.report.page import PAGE, assets, environment
from kdx_analysis.report.pictures import Picture
from kdx_analysis.runs.tables.grid import Grid
from kdx_analysis.runs.tables.numbers import markdown_escaped

FIGURE = "fidelity"
_TITLE = "What each objective shares with its teacher: the task's, the kind's and the own part"
_CAPTION = (
    "Likeness to the own teacher, taken apart. Task: what students on hard labels share with it. "
    "Kind: by how much the objective brings students nearer to every teacher of the recipe. Own: "
    "what only this teacher gave."
)


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
        return grid(self.fidelity)

    @cached_property
    def picture(self) -> Picture | None:
        """The figure; None where no part can be told."""
        data = self.fidelity.drawn()
        if data.empty:
            return None
        canvas, _ = along_ladder(data)
        files = {f"{FIGURE}.{suffix}": each for suffix, each in pictures(canvas).items()}
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
            fidelity=sections(fidelity),
            picture=self.picture,
            tables_at="",
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


def _defined() -> Sequence[str]:
    """Metrics that are declared in fidelity's room."""
    return [name for name, metric in METRICS.items() if ".fidelity." in metric.home]
