"""The tree's figure, legible whatever the classes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdx_analysis import plots
from kdx_analysis.data.sources import CIFAR100_SUPERCLASSES
from kdx_analysis.io import read_parquet
from kdx_analysis.runs import RunSet
from tests.planted_trees import random_tree, runs_with
from tests.plots.conftest import EPOCHS
from tests.plots.legible import faults

LADDER = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")


TEN = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


HUNDRED = tuple(name for members in CIFAR100_SUPERCLASSES.values() for name in members)


def test_tree_follows_the_largest_gates(small: RunSet) -> None:
    edges = plots.tree.data(small).query("objective == 'kd'")
    run = small.filter(role="explainer", objective="kd").runs[0]
    gates = read_parquet(run.path / "records" / "gates.parquet").query(f"epoch == {EPOCHS[-1]}")
    for level, top in gates.loc[
        gates.groupby(["level", "child_index"])["effective"].idxmax()
    ].groupby("level"):
        parent = dict(zip(top["child_index"], top["parent"], strict=True))
        of_level = edges[edges["child_level"] == level]
        assert all(parent[e.child] == e.parent for e in of_level.itertuples())
        assert of_level["subtasks"].sum() == 5
    assert set(edges.query("child_level == 4")["child"]) == set(range(5))
    assert sorted(edges.query("child_level == 4")["child_y"]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("objectives", "classes"),
    [
        (LADDER, TEN),
        (("kd",), HUNDRED),
        (LADDER, HUNDRED),
        (LADDER[:3], [f"{'w' * 40} {i}" for i in range(50)]),
    ],
)
def test_no_name_covers_another(
    tmp_path: Path, objectives: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    trees = {(o, 0): random_tree(i, classes, (1, 4, 4, 12)) for i, o in enumerate(objectives)}
    runs = runs_with(tmp_path, trees)
    for width in ("column", "page"):
        figure, _ = plots.tree(runs, width)
        assert faults(figure, width) == []
        assert figure.get_figheight() <= 10


def test_blocks_of_names_are_cut_where_they_would_not_fit(tmp_path: Path) -> None:
    trees = {(o, 0): random_tree(i, HUNDRED, (1, 4, 8)) for i, o in enumerate(LADDER)}
    figure, axes = plots.tree(runs_with(tmp_path, trees))
    assert "so many more subtasks" in figure.get_suptitle().replace("\n", " ")
    for ax in axes:
        shown = " ".join(t.get_text() for t in ax.texts).replace("\N{NO-BREAK SPACE}", " ")
        cut = sum(int(n) for n in re.findall(r"\+(\d+)", shown))
        assert (
            sum(bool(re.search(rf"\b{name}\b", shown.replace("\n", " "))) for name in HUNDRED) + cut
            >= 100
        )
