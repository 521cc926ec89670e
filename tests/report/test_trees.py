import re

import matplotlib.figure
import pandas as pd
import pytest

from kdx_analysis import plots
from kdx_analysis.errors import KdxError
from kdx_analysis.io import write_parquet
from kdx_analysis.models import Tree
from kdx_analysis.plots import Figure
from kdx_analysis.registry import Registry
from kdx_analysis.report import Report
from kdx_analysis.report.trees import newicks, trees_sentence
from tests.planted_trees import NAMES, gates_of, random_tree, runs_with

FOUR = ("hard", "label_smoothing", "kd_flat", "kd")
STAR = Tree(NAMES, (1, 12), ((0,) * 12, tuple(range(12))))


def said(folder, planted) -> str:
    return "\n".join(trees_sentence(runs_with(folder, planted)))


def test_shares_and_correlations_by_hand(tmp_path):
    # clades {ab, abc} and {ab, cd}: half of them shared; of a tree with itself all
    a = Tree(tuple("abcd"), (1, 2, 3), ((0, 0), (0, 0, 1), (0, 0, 1, 2)))
    b = Tree(tuple("abcd"), (1, 2), ((0, 0), (0, 0, 1, 1)))
    text = said(tmp_path, {("hard", 0): a, ("hard", 1): a, ("kd", 0): b})
    assert (
        "Trees of one objective under two seeds share 100 % of their clades (Robinson–Foulds "
        "distance 0.00, n = 1 pair;" in text
    )
    assert (
        "trees of two objectives under one seed share 50 % of their clades (Robinson–Foulds "
        "distance 0.50, n = 1 pair;" in text
    )
    assert (
        f"for trees with neither in common {a.cophenetic_correlation(b):.2f} (n = 1 pair; random "
        "leaf order" in text
    )


def test_an_objective_that_makes_the_tree(tmp_path):
    text = said(
        tmp_path, {(o, seed): random_tree(i) for i, o in enumerate(FOUR) for seed in range(2)}
    )
    assert "The tree is in part a property of the objective" in text
    assert "1 of 24 ways to deal the objectives" in text


def test_data_that_make_the_tree(tmp_path):
    text = said(tmp_path, {(o, seed): random_tree(0) for o in FOUR for seed in range(2)})
    assert (
        "The tree is not shown to be a property of the objective: trees of one objective are more "
        "alike" in text
    )
    assert "24 of 24 ways" in text


def test_trees_of_chance(tmp_path):
    text = said(
        tmp_path,
        {(o, seed): random_tree(10 * i + seed) for i, o in enumerate(FOUR) for seed in range(2)},
    )
    assert "not shown to be a property of the objective: under another seed" in text


def test_one_seed_is_undecidable(tmp_path):
    text = said(tmp_path, {(o, 0): random_tree(0) for o in FOUR})
    assert (
        "Undecidable: whether the tree is a property of the objective, as no objective was run "
        "with two seeds" in text
    )
    assert "under two seeds" not in text
    assert "trees of two objectives" in text.lower()
    assert said(tmp_path / "one", {("kd", 0): random_tree(0)}).startswith("Undecidable")


def test_two_objectives_and_two_seeds_are_too_few(tmp_path):
    text = said(
        tmp_path, {(o, seed): random_tree(i) for i, o in enumerate(FOUR[:2]) for seed in range(2)}
    )
    assert "Undecided: trees of one objective are more alike" in text
    assert "only 2 ways" in text


def test_one_objective_is_no_comparison(tmp_path):
    text = said(tmp_path, {("kd", seed): random_tree(0) for seed in range(2)})
    assert "nothing tells whether that is due to the objective or to the data" in text


def test_trees_that_group_nothing_are_undecidable(tmp_path):
    sentences = trees_sentence(
        runs_with(tmp_path, {(o, seed): STAR for o in FOUR for seed in range(2)})
    )
    assert len(sentences) == 1
    assert sentences[0].startswith("Undecidable")


def test_newick_of_every_run(tmp_path):
    planted = {("hard", 0): random_tree(0), ("kd", 1): random_tree(1)}
    table = newicks(runs_with(tmp_path, planted))
    assert list(table.columns) == ["run", "objective", "seed", "epoch", "newick"]
    assert {(row.objective, row.seed): row.newick for row in table.itertuples()} == {
        key: tree.to_newick() for key, tree in planted.items()
    }
    assert set(table["epoch"]) == {3}


@pytest.fixture
def tree_figure(monkeypatch):
    def draw(data):
        figure = matplotlib.figure.Figure((2, 1))
        return figure, figure.subplots()

    figures = Registry("figure")
    figures.register("tree")(
        Figure("tree", "The tree", "Drawn.", lambda runs: pd.DataFrame({"a": [1]}), draw)
    )
    monkeypatch.setattr(plots, "FIGURES", figures)


def test_the_page_says_it_beside_the_trees_figure(write, tree_figure, tmp_path):
    classes = ("it's", "<b>", "c, d", "e")
    runs = write(FOUR, seeds=2, classes=classes)
    for i, run in enumerate(runs.filter(role="explainer")):
        write_parquet(
            run.path / "records" / "gates.parquet", gates_of(random_tree(i, classes, (1, 2, 3)))
        )
    text = Report(runs).save_html(tmp_path / "out").read_text()
    figure = text.index("The tree</h3>")
    assert (
        figure
        < text.index("ees of one objective under two seeds")
        < text.index('id="kdx-training"')
    )
    assert 'href="trees.csv"' in text
    table = pd.read_csv(tmp_path / "out" / "trees.csv")
    assert table["newick"].tolist() == newicks(runs)["newick"].tolist()
    assert len(table) == 8
    assert "it''s" in table["newick"][0]
    assert not re.search(r"p-value", text)
    fragment = Report(runs)._repr_html_()
    assert "under two seeds" in fragment
    assert "trees.csv" not in fragment


def test_without_gates_there_is_no_tree_to_report(write, tree_figure, tmp_path):
    runs = write(FOUR[:2], seeds=1)
    with pytest.raises(KdxError, match="no 'gates' records"):
        trees_sentence(runs)
    text = Report(runs).save_html(tmp_path / "out").read_text()
    assert "trees.csv" not in text
    assert not (tmp_path / "out" / "trees.csv").exists()
