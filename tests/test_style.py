"""The style of the package's source, file by file.

``python -m tests.test_style plots/ report/health.py`` lists what breaks it there.
"""

from __future__ import annotations

import ast
import doctest
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdx_analysis

PACKAGE = Path(kdx_analysis.__file__).parent
WIDTH, LINES, COMPLEXITY = 100, 50, 15
EMPTY_WORDS = {"of", "found", "told", "own", "held"}
ALLOWED_NAMES: dict[tuple[str, str], str] = {}  # (file, name) → why it has to be called so
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

Violation = tuple[int, str]  # its line, and what is wrong there
Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def violations(file: str) -> list[Violation]:
    """All of a file of the package, by line."""
    source = (PACKAGE / file).read_text()
    return violations_in(source, file)


def violations_in(source: str, file: str = "") -> list[Violation]:
    tree = ast.parse(source)
    broken = [
        *long_lines(source),
        *formatting_switched_off(source, tree),
        *comprehensions(tree),
        *empty_names(tree, file),
        *renamed_imports(tree),
        *functions_too_large(tree),
        *summaries(tree),
        *without_doctest(tree),
    ]
    return sorted(set(broken))


def long_lines(source: str) -> Iterator[Violation]:
    for number, line in enumerate(source.splitlines(), start=1):
        if len(line) > WIDTH:
            yield number, f"{len(line)} columns; a line has {WIDTH} at most"


def formatting_switched_off(source: str, tree: ast.Module) -> Iterator[Violation]:
    """``fmt: skip`` and ``fmt: off`` anywhere but at the end of a module's table of data."""
    tables = {
        node.end_lineno
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_data(node.value)
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and re.search(r"fmt:\s*(skip|off)", token.string):
            switched_off = "off" in token.string or token.start[0] not in tables
            if switched_off:
                yield (
                    token.start[0],
                    "formatting is switched off elsewhere than at a table of data",
                )


def is_data(value: ast.expr | None) -> bool:
    """Whether an expression holds constants and names alone, in any containers."""
    data = (
        ast.Constant,
        ast.Tuple,
        ast.List,
        ast.Set,
        ast.Dict,
        ast.UnaryOp,
        ast.unaryop,
        ast.Name,
        ast.Attribute,
        ast.expr_context,
    )
    return value is not None and all(isinstance(node, data) for node in ast.walk(value))


def comprehensions(tree: ast.Module) -> Iterator[Violation]:
    for node in ast.walk(tree):
        if not isinstance(node, COMPREHENSIONS):
            continue
        inner = [
            part for part in ast.walk(node) if part is not node and isinstance(part, COMPREHENSIONS)
        ]
        if inner:
            yield inner[0].lineno, "a comprehension inside another; write a loop or name a function"
        if sum(len(generator.ifs) for generator in node.generators) > 1:
            yield node.lineno, "a comprehension with more than one if"


def empty_names(tree: ast.Module, file: str) -> Iterator[Violation]:
    """Variables, parameters and fields whose name says nothing."""
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.MatchAs | ast.MatchStar | ast.ExceptHandler):
            name = node.name or ""
        if name in EMPTY_WORDS and (file, name) not in ALLOWED_NAMES:
            yield node.lineno, f"{name!r} is no name; say what it is, in the field's words"


def renamed_imports(tree: ast.Module) -> Iterator[Violation]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            ours = [alias for alias in node.names if alias.name.startswith("kdx_analysis")]
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            ours = node.names if node.level or home.startswith("kdx_analysis") else []
        else:
            continue
        for alias in ours:
            if alias.asname not in (None, alias.name):
                yield node.lineno, f"{alias.name} is imported as {alias.asname}; keep its name"


def functions_in(tree: ast.Module) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def functions_too_large(tree: ast.Module) -> Iterator[Violation]:
    for function in functions_in(tree):
        length, complex_by = lines_in(function), complexity(function)
        if length > LINES:
            yield function.lineno, f"{function.name} has {length} lines; {LINES} at most"
        if complex_by > COMPLEXITY:
            yield (
                function.lineno,
                f"{function.name} has a complexity of {complex_by}; {COMPLEXITY} at most",
            )


def lines_in(function: Function) -> int:
    """From ``def`` to the end, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        described = function.body[0]
        assert described.end_lineno is not None
        lines -= described.end_lineno - described.lineno + 1
    return lines


def complexity(function: Function) -> int:
    """McCabe's, as radon counts it: 1 and 1 for each decision, a function inside with its own."""
    decisions = 0
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.IfExp):
            decisions += 1
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While):
            decisions += 1 + bool(node.orelse)
        elif isinstance(node, ast.Try | ast.TryStar):
            decisions += len(node.handlers) + bool(node.orelse)
        elif isinstance(node, ast.BoolOp):
            decisions += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            decisions += 1 + len(node.ifs)
        elif isinstance(node, ast.match_case):
            decisions += not (
                isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
            )
        elif isinstance(node, Function):
            decisions += 1
    return decisions


def summaries(tree: ast.Module) -> Iterator[Violation]:
    """Docstrings whose first paragraph goes on to a second line."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node) or ""
            if "\n" in text.partition("\n\n")[0]:
                name = getattr(node, "name", "the module")
                line = getattr(node, "lineno", 1)
                yield line, f"the summary of {name} does not fit into one line"


def without_doctest(tree: ast.Module) -> Iterator[Violation]:
    """Public formulas, metrics and functions with checked shapes, without an example in numbers."""
    for function in functions_in(tree):
        decorated = {ast.unparse(each).partition("(")[0] for each in function.decorator_list}
        if function.name.startswith("_") or not decorated & {"metric", "jaxtyped"}:
            continue
        examples = doctest.DocTestParser().get_examples(ast.get_docstring(function) or "")
        if not any(re.search(r"\d", example.want) for example in examples):
            yield function.lineno, f"formula {function.name} has no doctest that gives numbers"


@pytest.mark.parametrize("file", FILES)
def test_source_keeps_to_the_style(file: str) -> None:
    broken = violations(file)
    assert not broken, "\n" + "\n".join(f"{file}:{line}: {what}" for line, what in broken)


def test_names_that_are_allowed_are_there() -> None:
    for file, name in ALLOWED_NAMES:
        assert re.search(rf"\b{name}\b", (PACKAGE / file).read_text()), (file, name)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = [[b for b in a] for a in c]", "inside another"),
        ("x = [a for a in (b for b in c)]", "inside another"),
        ("x = [a for a in c if any(b for b in a)]", "inside another"),
        ("x = {f(lambda: [b for b in a]) for a in c}", "inside another"),
        ("x = [a for a in c if a if b]", "more than one if"),
        ("x = [a for b in c if b for a in b if a]", "more than one if"),
        ("x = f(1)  # fmt: skip", "switched off"),
        ("def f():\n    x = [1]  # fmt: skip", "switched off"),
        ("# fmt: off", "switched off"),
        ("x = 1  # " + 92 * "-", "columns"),
        ("for own in x: pass", "'own'"),
        ("def f(*, of): pass", "'of'"),
        ("with a as (held, b): pass", "'held'"),
        ("f = lambda told: 1", "'told'"),
        ("if (found := 1): pass", "'found'"),
        ("import kdx_analysis.null as nulls", "keep its name"),
        ("from kdx_analysis import gates as gating", "keep its name"),
        ("from . import gates as gating", "keep its name"),
        ("def f():\n" + 50 * "    x\n", "51 lines"),
        ("def f():\n" + 15 * "    if x: y\n", "complexity of 16"),
        ("def f(): return a" + 15 * " or b", "complexity of 16"),
        ("def f():\n    def g():\n" + 14 * "        if x: y\n", "complexity of 16"),
        ('def f():\n    """One\n    two."""', "one line"),
        ("@metric('a')\ndef f(x): return x", "no doctest"),
        ("@jaxtyped(typechecker=t)\ndef f(x):\n    '''F.\n\n    >>> f(1)\n    '''", "no doctest"),
    ],
)
def test_what_breaks_the_style_is_seen(source: str, expected: str) -> None:
    assert any(expected in what for _, what in violations_in(source)), violations_in(source)


@pytest.mark.parametrize(
    "source",
    [
        "x = [a for b in c for a in b if a]",
        "x = (\n    (1, -2),\n    (A.b, 'c'),\n)  # fmt: skip",
        "import numpy as np",
        "from torch.nn import functional as F",
        "def f():\n" + 49 * "    x\n",
        'def f():\n    """D.\n\n' + 60 * "    d\n" + '    """\n' + 49 * "    x\n",
        "def f():\n" + 14 * "    if x: y\n",
        "class A:\n    @classmethod\n    def of(cls): pass",
        "@metric('a')\ndef f(x):\n    '''F.\n\n    >>> f(1)\n    1\n    '''",
    ],
)
def test_what_keeps_to_the_style_is_let_through(source: str) -> None:
    assert violations_in(source) == []


def main(rooms: list[str]) -> None:
    """Print the violations in rooms, by default all, and their number in each."""
    numbers: Counter[str] = Counter()
    for file in FILES:
        if file.startswith(tuple(rooms) or ""):
            for line, what in violations(file):
                numbers[file.partition("/")[0]] += 1
                print(f"kdx_analysis/{file}:{line}: {what}")
    print(*(f"{number:5} {room}" for room, number in numbers.most_common()), sep="\n")


if __name__ == "__main__":
    main([room.removeprefix("kdx_analysis/") for room in sys.argv[1:]])
