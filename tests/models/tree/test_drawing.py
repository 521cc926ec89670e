"""The drawing of one tree."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
from matplotlib.figure import Figure as Canvas

from kdx_analysis.models import Tree
from tests.planted_trees import random_tree
from tests.plots.legible import overlapping


def test_experts_side_by_side_with_one_subtask_each() -> None:
    chain = tuple(range(40))
    figure, axes = Tree(tuple(f"class {i}" for i in chain), (1, 40), ((0,) * 40, chain)).plot()
    assert overlapping(figure) == []
    experts = [t for t in axes[0].texts if t.get_bbox_patch() and t.get_position()[0] == 2]
    nodes = [t.get_bbox_patch().get_window_extent() for t in experts]
    assert len(nodes) == 40
    assert all(
        low.y1 <= high.y0 + 1.5 for low, high in pairwise(sorted(nodes, key=lambda box: box.y0))
    )


def test_long_names_are_cut_and_those_of_two_lines_put_in_one() -> None:
    _, axes = Tree(("n" * 50, "two\nlines"), (1, 2), ((0, 0), (0, 1))).plot()
    shown = {t.get_text() for t in axes[0].texts}
    assert {"n" * 23 + "…", "two lines"} <= shown


def test_a_tree_is_drawn_into_the_axes_given() -> None:
    canvas = Canvas()
    ax = canvas.subplots()
    figure, axes = random_tree(0).plot(ax)
    assert figure is canvas
    assert axes.tolist() == [ax]
    assert {t.get_text() for t in ax.texts} >= {f"class {i}" for i in range(12)}
    assert plt.get_fignums() == []
