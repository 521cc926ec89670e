"""A tree as text: Newick, DOT, nested dictionaries, and lines to read. Pure functions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdx_analysis.models.tree import Tree

_WIDTH = 100
_UNBROKEN = "\N{NO-BREAK SPACE}"  # textwrap breaks lines at a space, but not here


def newick(tree: Tree) -> str:
    def node(level: int, expert: int) -> str:
        if level == len(tree.experts):
            inside = [
                "'" + tree.classes[k].replace("'", "''") + "'" for k in tree.children(level, expert)
            ]
        else:
            inside = [node(level + 1, child) for child in _live_children(tree, level, expert)]
        return f"({','.join(inside)}){_label(level, expert)}"

    return f"{node(1, 0)};"


def dot(tree: Tree) -> str:
    lines = ["digraph tree {", "  rankdir=LR;", "  node [shape=box];"]
    for (level, index), name in tree.to_networkx().nodes(data="label"):
        is_leaf = level > len(tree.experts)
        lines.append(
            f"  S{index} [label={_dot_quoted(name)}, shape=plaintext];"
            if is_leaf
            else f"  L{level}E{index};"
        )
    for (level, parent), (_, child) in tree.to_networkx().edges:
        end = f"S{child}" if level == len(tree.experts) else _label(level + 1, child)
        lines.append(f"  {_label(level, parent)} -> {end};")
    return "\n".join([*lines, "}"]) + "\n"


def nested(tree: Tree, level: int = 1, expert: int = 0) -> dict[str, Any]:
    below = tree.children(level, expert)
    children: list[dict[str, Any]]
    if level == len(tree.experts):
        children = [{"subtask": k, "name": tree.classes[k]} for k in below]
    else:
        children = [nested(tree, level + 1, child) for child in below]
    return {"level": level, "expert": expert, "children": children}


def printed(tree: Tree) -> str:
    lines = [*_lines(tree, 1, 0, "", "")]
    dead = [
        _label(level, expert)
        for level, live in enumerate(tree.live, 1)
        for expert in range(tree.experts[level - 1])
        if expert not in live
    ]
    return "\n".join([*lines, *([f"dead: {', '.join(dead)}"] if dead else [])])


def _lines(tree: Tree, level: int, expert: int, first: str, rest: str) -> Iterator[str]:
    """The node and all below it as lines.

    ``first`` stands before its own line, ``rest`` before those that follow.
    """
    size = len(tree.subtasks(level, expert))
    head = f"{first}{_label(level, expert)} ({size} subtask{'s' if size > 1 else ''})"
    if level == len(tree.experts):
        names = ", ".join(_visible(tree.classes[k]) for k in tree.children(level, expert))
        wrapped = textwrap.wrap(
            names,
            _WIDTH,
            initial_indent=f"{head}: ",
            subsequent_indent=f"{rest}   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield from (line.replace(_UNBROKEN, " ") for line in wrapped)
        return
    yield head
    children = _live_children(tree, level, expert)
    for child in children:
        last = child == children[-1]
        yield from _lines(
            tree,
            level + 1,
            child,
            rest + ("└─ " if last else "├─ "),
            rest + ("   " if last else "│  "),
        )


def _live_children(tree: Tree, level: int, expert: int) -> list[int]:
    return [child for child in tree.children(level, expert) if child in tree.live[level]]


def _label(level: int, expert: int) -> str:
    return f"L{level}E{expert}"


def _visible(name: str) -> str:
    """The name in one line, and not broken at its spaces."""
    shown = name if name.isprintable() else name.encode("unicode_escape").decode()
    return shown.replace(" ", _UNBROKEN)


def _dot_quoted(name: str) -> str:
    """A label that Graphviz shows letter by letter.

    It reads escapes after a backslash and entities after an &.
    """
    for letter, escaped in (("\\", "\\\\"), ('"', '\\"'), ("&", "&amp;")):
        name = name.replace(letter, escaped)
    return f'"{name}"'
