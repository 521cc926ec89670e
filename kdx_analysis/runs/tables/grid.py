"""A grid of names and numbers as Markdown, LaTeX (booktabs), HTML and plain text.

Names are escaped in each.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len

from kdx_analysis.runs.tables.numbers import latex_escaped, markdown_escaped

SHORT = 16  # letters that a LaTeX table's label may have in any case before it is broken


@dataclass(frozen=True)
class Cell:
    """A number and, smaller, what belongs to it: interval, n, null."""

    main: str
    details: tuple[str, ...] = ()
    bold: bool = False

    @property
    def in_line(self) -> str:
        """As the title of a column: details in brackets."""
        return f"{self.main} ({', '.join(self.details)})" if self.details else self.main


EMPTY = Cell("–")


@dataclass(frozen=True)
class Grid:
    """Rows of cells under a head, each row begun by its labels.

    Attributes:
        head: titles of the labels' columns, then of the cells'; details are what a title is
            qualified by.
        labels, cells: row by row.
        caption: what is shown, in sentences.
    """

    head: tuple[Cell, ...]
    labels: tuple[tuple[str, ...], ...]
    cells: tuple[tuple[Cell, ...], ...]
    caption: str

    @property
    def _named(self) -> int:
        """Columns of labels."""
        return len(self.labels[0]) if self.labels else len(self.head)

    def to_markdown(self) -> str:
        def shown(cell: Cell) -> str:
            main = f"**{cell.main}**" if cell.bold else cell.main
            return " ".join([main, ", ".join(filter(None, cell.details))]).strip()

        head = [markdown_escaped(title.in_line) for title in self.head]
        lines = [head, [*["---"] * self._named, *["---:"] * (len(head) - self._named)]]
        for labels, cells in zip(self.labels, self.cells, strict=True):
            lines.append([*map(markdown_escaped, labels), *map(shown, cells)])
        return (
            "".join(f"| {' | '.join(line)} |\n" for line in lines)
            + f"\n{markdown_escaped(self.caption)}\n"
        )

    def to_latex(self, label: str) -> str:
        """A ``table`` with caption and label, for a document that uses the package booktabs."""
        lines = [
            r"\begin{table}[tb]",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_escaped(self.caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{'l' * self._named}{'r' * (len(self.head) - self._named)}}}",
            r"\toprule",
            *_latex_rows((), self.head),
            r"\midrule",
        ]
        for labels, cells in zip(self.labels, self.cells, strict=True):
            rows = _latex_rows(labels, cells)
            lines += rows
            if len(rows) > 1 and cells is not self.cells[-1]:
                lines.append(r"\addlinespace")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        def shown(cell: Cell) -> str:
            main = html.escape(cell.main)
            details = "".join(
                f"<br><small>{html.escape(detail)}</small>" for detail in cell.details if detail
            )
            return f"{f'<b>{main}</b>' if cell.bold else main}{details}"

        head = "".join(f"<th>{shown(title)}</th>" for title in self.head)
        rows = []
        for labels, cells in zip(self.labels, self.cells, strict=True):
            names = "".join(f'<th scope="row">{html.escape(label)}</th>' for label in labels)
            rows.append(f"<tr>{names}{''.join(f'<td>{shown(c)}</td>' for c in cells)}</tr>")
        caption = f"<caption>{html.escape(self.caption)}</caption>"
        return (
            f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )

    def to_text(self) -> str:
        """Columns with two spaces between them; a star behind what is bold.

        The caption is left to the caller.
        """

        def shown(cell: Cell) -> str:
            return " ".join(filter(None, [cell.main, *cell.details])) + ("*" if cell.bold else "")

        lines = [[title.in_line for title in self.head]]
        for labels, cells in zip(self.labels, self.cells, strict=True):
            lines.append([*(" ".join(label.split()) for label in labels), *map(shown, cells)])
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        return "".join("  ".join(map(_padded, line, widths)).rstrip() + "\n" for line in lines)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _latex_rows(labels: Sequence[str], cells: Sequence[Cell]) -> list[str]:
    """A row of numbers, then smaller ones of their details.

    Long labels stand in as many lines as there are rows.
    """
    rows = [list(map(_latex_main, cells))]
    for details in zip_longest(*(cell.details for cell in cells), fillvalue=""):
        if any(details):
            rows.append(list(map(_latex_detail, details)))
    names = [_lines(label, len(rows)) for label in labels]
    lines = []
    for i, row in enumerate(rows):
        in_line = [latex_escaped(name[i]) for name in names]
        lines.append(" & ".join([*in_line, *row]) + r" \\")
    return lines


def _latex_main(cell: Cell) -> str:
    text = latex_escaped(cell.main)
    return rf"\textbf{{{text}}}" if cell.bold else text


def _latex_detail(detail: str) -> str:
    return rf"{{\scriptsize {latex_escaped(detail)}}}" if detail else ""


def _lines(label: str, count: int) -> list[str]:
    """``label`` in ``count`` lines of one length, as far as its words allow.

    A short one is in the first of them.
    """
    for width in range(SHORT, max(SHORT, len(label)) + 1):
        lines = textwrap.wrap(label, width, break_long_words=False)
        if len(lines) <= count:
            return lines + [""] * (count - len(lines))
    return [label] + [""] * (count - 1)
