"""A grid of names and numbers as Markdown, LaTeX (booktabs), HTML and plain text; names are escaped in each."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "*": "{*}", "−": "$-$", "–": "--", "±": r"$\pm$",
    "≥": r"$\geq$", "≤": r"$\leq$", "×": r"$\times$", "τ": r"$\tau$", "λ": r"$\lambda$", "ε": r"$\varepsilon$",
})  # fmt: skip


def latex_escaped(text: str) -> str:
    """``text`` on one line as LaTeX source that pdfTeX takes; letters beyond Latin need XeTeX or LuaTeX.

    >>> print(latex_escaped("hard_T: −0.25 at 95 %"))
    hard\\_T: $-$0.25 at 95 \\%
    """
    return " ".join(text.replace('"', "''").split()).translate(_LATEX)


def markdown_escaped(text: str) -> str:
    """``text`` on one line as Markdown in which nothing is markup."""
    return re.sub(r"([\\`*_\[\]<>|~#$])", r"\\\1", " ".join(text.split()))


@dataclass(frozen=True)
class Cell:
    """A number and, smaller, what belongs to it: interval, n, null."""

    main: str
    details: tuple[str, ...] = ()
    bold: bool = False


EMPTY = Cell("–")


@dataclass(frozen=True)
class Grid:
    """Rows of cells under a head, each row begun by its labels.

    Attributes:
        head: titles of the labels' columns, then of the cells'.
        labels, cells: row by row.
        caption: what is shown, in sentences.
    """

    head: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    cells: tuple[tuple[Cell, ...], ...]
    caption: str

    def to_markdown(self) -> str:
        def shown(cell: Cell) -> str:
            main = f"**{cell.main}**" if cell.bold else cell.main
            return " ".join([main, ", ".join(cell.details)]).strip()

        named = len(self.head) - len(self.cells[0])
        lines = [list(map(markdown_escaped, self.head)), [*["---"] * named, *["---:"] * len(self.cells[0])]]
        for labels, cells in zip(self.labels, self.cells, strict=True):
            lines.append([*map(markdown_escaped, labels), *map(shown, cells)])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{markdown_escaped(self.caption)}\n"

    def to_latex(self, label: str) -> str:
        """A ``table`` with \\caption and \\label, to be put into a document that uses the package booktabs."""
        named = len(self.head) - len(self.cells[0])
        lines = [
            r"\begin{table}[tb]", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_escaped(self.caption)}}}", rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{'l' * named}{'r' * len(self.cells[0])}}}", r"\toprule",
            _latex_row(map(latex_escaped, self.head)), r"\midrule",
        ]  # fmt: skip
        for labels, cells in zip(self.labels, self.cells, strict=True):
            mains = [rf"\textbf{{{latex_escaped(c.main)}}}" if c.bold else latex_escaped(c.main) for c in cells]
            lines.append(_latex_row([*map(latex_escaped, labels), *mains]))
            depth = max(len(cell.details) for cell in cells)
            for i in range(depth):
                details = [cell.details[i] if i < len(cell.details) else "" for cell in cells]
                small = [rf"{{\scriptsize {latex_escaped(detail)}}}" if detail else "" for detail in details]
                lines.append(_latex_row([*[""] * named, *small]))
            if depth and cells is not self.cells[-1]:
                lines.append(r"\addlinespace")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        def shown(cell: Cell) -> str:
            main = html.escape(cell.main)
            details = "".join(f"<br><small>{html.escape(detail)}</small>" for detail in cell.details)
            return f"<td>{f'<b>{main}</b>' if cell.bold else main}{details}</td>"

        head = "".join(f"<th>{html.escape(title)}</th>" for title in self.head)
        rows = []
        for labels, cells in zip(self.labels, self.cells, strict=True):
            names = "".join(f'<th scope="row">{html.escape(label)}</th>' for label in labels)
            rows.append(f"<tr>{names}{''.join(map(shown, cells))}</tr>")
        caption = f"<caption>{html.escape(self.caption)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def to_text(self) -> str:
        """Columns with two spaces between them; a star behind what is bold. The caption is left to the caller."""

        def shown(cell: Cell) -> str:
            return " ".join([cell.main, *cell.details]) + ("*" if cell.bold else "")

        lines = [list(self.head)]
        for labels, cells in zip(self.labels, self.cells, strict=True):
            lines.append([*(" ".join(label.split()) for label in labels), *map(shown, cells)])
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        return "".join("  ".join(map(_padded, line, widths)).rstrip() + "\n" for line in lines)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _latex_row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"
