"""The record of a tree: which expert every expert and head has above it."""

from __future__ import annotations

import pandas as pd

from kdx_analysis.models.tree.tree import Tree
from kdx_analysis.records import count, kind, text

kind(
    "tree",
    "One expert or head of a tree, and the expert above it; the trunk is expert 0 of level 1.",
    keys=(count("child_level", "from 2; L + 1 are the heads", low=2), count("child", "on it")),
    values=(
        count("parent", "expert on the level below"),
        text("subtask", "of a head; '' elsewhere"),
    ),
    home=__name__,
)


def tree_record(tree: Tree) -> pd.DataFrame:
    """One row an expert or head: child_level, child, parent, subtask (of heads, '' elsewhere)."""
    leaves = len(tree.experts) + 1
    rows = []
    for level, parents in enumerate(tree.parents, 2):
        for child, parent in enumerate(parents):
            rows.append((level, child, parent, tree.classes[child] if level == leaves else ""))
    return pd.DataFrame(rows, columns=["child_level", "child", "parent", "subtask"])
