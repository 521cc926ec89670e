"""The tree's figure, legible whatever the classes, and the figure that compares trees."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from kdx_analysis import plots
from kdx_analysis.data.sources import CIFAR100_SUPERCLASSES
from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_parquet
from kdx_analysis.models import Tree
from kdx_analysis.runs import RunSet
from tests.planted_trees import random_tree, runs_with

from .conftest import EPOCHS
from .legible import faults, overlapping

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


def test_experts_side_by_side_with_one_subtask_each() -> None:
    chain = tuple(range(40))
    figure, axes = plots.tree_of(
        Tree(tuple(f"class {i}" for i in chain), (1, 40), ((0,) * 40, chain))
    )
    assert overlapping(figure) == []
    experts = [t for t in axes[0].texts if t.get_bbox_patch() and t.get_position()[0] == 2]
    nodes = [t.get_bbox_patch().get_window_extent() for t in experts]
    assert len(nodes) == 40
    assert all(
        low.y1 <= high.y0 + 1.5 for low, high in pairwise(sorted(nodes, key=lambda box: box.y0))
    )


def test_long_names_are_cut_and_those_of_two_lines_put_in_one() -> None:
    _, axes = plots.tree_of(Tree(("n" * 50, "two\nlines"), (1, 2), ((0, 0), (0, 1))))
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


def planted(tmp_path: Path, seeds: range) -> RunSet:
    return runs_with(
        tmp_path,
        {(o, s): random_tree(10 * i + s) for i, o in enumerate(("hard", "kd")) for s in seeds},
    )


def test_agreement_draws_every_pair(tmp_path: Path) -> None:
    runs = planted(tmp_path, range(3))
    data = plots.tree_agreement.data(runs)
    _, axes = plots.tree_agreement.draw(data)
    names = [t.get_text() for t in axes[0].get_yticklabels()]
    assert names == [
        "hard,\ntwo seeds",
        "kd,\ntwo seeds",
        "two objectives,\none seed",
        "neither\nin common",
    ]
    for ax, measure in zip(axes, ("robinson_foulds", "cophenetic_correlation"), strict=True):
        drawn = np.concatenate([line.get_xdata() for line in ax.lines if line.get_marker() == "o"])
        assert sorted(drawn) == pytest.approx(sorted(data.loc[data["measure"] == measure, "value"]))
        assert [t.get_text() for t in ax.texts] == [
            "n = 3 pairs",
            "n = 3 pairs",
            "n = 3 pairs",
            "n = 6 pairs",
        ]


def test_agreement_of_one_seed_says_what_is_not_available(tmp_path: Path) -> None:
    _, axes = plots.tree_agreement(planted(tmp_path, range(1)))
    assert [t.get_text() for t in axes[0].texts] == ["not available", "n = 1 pair", "not available"]
    assert axes[0].get_yticklabels()[0].get_text() == "one objective,\ntwo seeds"


def test_agreement_counts_undefined_pairs(tmp_path: Path) -> None:
    star = Tree(tuple("abcd"), (1, 4), ((0,) * 4, (0, 1, 2, 3)))
    pair = Tree(tuple("abcd"), (1, 2), ((0, 0), (0, 0, 1, 1)))
    runs = runs_with(
        tmp_path, {("hard", 0): star, ("hard", 1): star, ("kd", 0): pair, ("kd", 1): pair}
    )
    _, axes = plots.tree_agreement(runs)
    assert axes[0].texts[0].get_text() == "n = 0 pairs\n1 undefined"
    with pytest.raises(KdxError, match="no tree groups"):
        plots.tree_agreement(runs.filter(objective="hard"))
    with pytest.raises(KdxError, match="one explainer makes no pair"):
        plots.tree_agreement(runs.filter(objective="hard", seed=0))


def test_tanglegram_puts_kd_beside_a_seed_its_control_and_hard_labels(tmp_path: Path) -> None:
    objectives = ("hard", "kd_shuffled", "kd")
    runs = runs_with(
        tmp_path,
        {(o, s): random_tree(10 * i + s) for i, o in enumerate(objectives) for s in (0, 1)},
    )
    data = plots.tanglegram.data(runs)
    assert data["pair"].unique().tolist() == [
        "kd, seed 0 | kd, seed 1",
        "kd, seed 0 | kd_shuffled, seed 0",
        "kd, seed 0 | hard, seed 0",
    ]
    kd, hard = random_tree(20), random_tree(0)
    of_pair = data[data["pair"] == "kd, seed 0 | hard, seed 0"]
    assert of_pair["correlation"].unique() == pytest.approx(kd.cophenetic_correlation(hard))
    figure, axes = plots.tanglegram.draw(data)
    assert faults(figure, "page") == []
    places = of_pair[of_pair["name"] != ""].pivot(index="name", columns="side", values="child_y")
    lines = axes[2].collections[-1].get_segments()
    assert sorted((a[1], b[1]) for a, b in lines) == sorted(
        map(tuple, places[["left", "right"]].to_numpy())
    )


def test_the_right_tree_turns_to_follow_the_left_one(tmp_path: Path) -> None:
    tree = random_tree(0)
    data = plots.tanglegram.data(runs_with(tmp_path, {("hard", 0): tree, ("hard", 1): tree}))
    leaves = data[data["name"] != ""].pivot(index="name", columns="side", values="child_y")
    assert (leaves["left"] == leaves["right"]).all()
    assert data["correlation"].unique() == pytest.approx(1)
    with pytest.raises(KdxError, match="one explainer makes no pair"):
        plots.tanglegram(runs_with(tmp_path / "one", {("kd", 0): tree}))


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
