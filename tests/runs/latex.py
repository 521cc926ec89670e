"""A strict reading of LaTeX tables: environments, columns, braces and escapes; and pdfTeX where it
is installed.
"""

import re
import shutil
import subprocess
from pathlib import Path

DOCUMENT = (
    "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n%s\n\\end{document}\n"
)
_COMMANDS = {
    "begin",
    "end",
    "centering",
    "footnotesize",
    "scriptsize",
    "setlength",
    "tabcolsep",
    "caption",
    "label",
    "toprule",
    "midrule",
    "bottomrule",
    "addlinespace",
    "textbf",
    "textbackslash",
    "textasciitilde",
    "textasciicircum",
    "textless",
    "textgreater",
    "textbar",
    "pm",
    "geq",
    "leq",
    "times",
    "tau",
    "lambda",
    "varepsilon",
}


def tables(source: str) -> list[list[list[str]]]:
    """Of every tabular its rows of texts; fails where the source can't be a fragment of a document."""
    assert re.search(r"(?<!\\)[#~^]", source) is None
    assert re.search(r"(?<!\\)%", source) is None
    assert set(re.findall(r"\\([a-zA-Z]+)", source)) <= _COMMANDS
    assert source.isascii() or not set(source) & set("−–±≥≤")
    assert _braces_balance(source)
    assert len(re.findall(r"(?<!\\)\$", source)) % 2 == 0
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", source):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    return [
        _rows(*found)
        for found in re.findall(
            r"\\begin\{tabular\}\{([lrc]+)\}(.*?)\\end\{tabular\}", source, re.S
        )
    ]


def plain(text: str) -> str:
    """What is read in a cell."""
    text = re.sub(r"\\scriptsize |\\textbf", "", text)
    for source, sign in (("$-$", "−"), ("{[}", "["), ("{*}", "*"), (r"\textless{}", "<")):
        text = text.replace(source, sign)
    return re.sub(r"\\([&%#_$])", r"\1", text).replace("{", "").replace("}", "").strip()


def compiles(source: str, folder: Path) -> bool:
    """Whether pdfTeX makes a document of it; True where there is no pdfTeX to ask."""
    if shutil.which("pdflatex") is None:
        return True
    (folder / "document.tex").write_text(DOCUMENT % source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=60).returncode == 0


def _rows(columns: str, body: str) -> list[list[str]]:
    lines = [line for line in body.strip().splitlines() if re.fullmatch(r"\\\w+", line) is None]
    assert all(line.endswith(r" \\") for line in lines)
    rows = [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]
    assert {len(row) for row in rows} == {len(columns)}
    assert not any(
        row[0].lstrip().startswith(("[", "*")) for row in rows
    )  # would be an argument of the line before
    return rows


def _braces_balance(source: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", source):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0
