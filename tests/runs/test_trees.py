import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.models import Tree
from kdx_analysis.runs import deal_objectives, tree_pairs
from tests.planted_trees import NAMES, random_tree, runs_with

SIX = ("hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd")
STAR = Tree(NAMES, (1, 12), ((0,) * 12, tuple(range(12))))


def test_a_run_has_the_tree_of_its_selected_epoch(tmp_path):
    tree = random_tree(0)
    (run,) = runs_with(tmp_path, {("kd", 0): tree})
    assert run.tree == tree


def test_pairs_are_those_of_the_trees(tmp_path):
    trees = {("hard", 0): random_tree(0), ("hard", 1): random_tree(1), ("kd", 0): random_tree(2)}
    table = tree_pairs(runs_with(tmp_path, trees)).table
    assert len(table) == 6
    assert table.groupby("shared")["value"].count().to_dict() == {
        "objective": 2,
        "seed": 2,
        "neither": 2,
    }
    for row in table.itertuples():
        a, b = trees[row.objective_a, row.seed_a], trees[row.objective_b, row.seed_b]
        assert row.value == pytest.approx(getattr(a, row.measure)(b))
        null = a.null(row.measure, b, 199, torch.Generator().manual_seed(5))
        assert row.null_mean == pytest.approx(null.null_mean, abs=0.05)
        assert row.null_low <= row.null_high
    shared = table.set_index(["measure", "objective_a", "seed_a", "objective_b", "seed_b"])[
        "shared"
    ]
    assert shared["robinson_foulds", "hard", 0, "hard", 1] == "objective"
    assert shared["robinson_foulds", "hard", 0, "kd", 0] == "seed"
    assert shared["robinson_foulds", "hard", 1, "kd", 0] == "neither"


def test_a_group_of_pairs_beside_the_mean_of_its_null(tmp_path):
    same = random_tree(0)
    pairs = tree_pairs(runs_with(tmp_path, {("hard", seed): same for seed in range(3)}))
    values, null = pairs.of("robinson_foulds", "objective")
    assert values.tolist() == [0, 0, 0]
    assert null.shape == (199,)
    assert null.mean() > 0.7
    values, null = pairs.of("robinson_foulds", "seed")
    assert len(values) == len(null) == 0


def test_trees_without_groups_are_undefined(tmp_path):
    pairs = tree_pairs(
        runs_with(tmp_path, {("hard", 0): STAR, ("hard", 1): STAR, ("kd", 0): random_tree(0)})
    )
    undefined = pairs.table["value"].isna()
    assert undefined.sum() == 1 + 3  # of the two stars the distance, of any star the correlation
    assert len(pairs.of("robinson_foulds", "objective")[0]) == 0


def test_one_run_makes_no_pair_and_other_classes_are_refused(tmp_path):
    assert tree_pairs(runs_with(tmp_path / "one", {("kd", 0): random_tree(0)})).table.empty
    other = {("kd", 0): random_tree(0), ("kd", 1): random_tree(0, NAMES[:11])}
    with pytest.raises(KdxError, match="different classes"):
        tree_pairs(runs_with(tmp_path / "two", other))


def test_dealings_find_an_objective_that_makes_the_tree(tmp_path):
    trees = {(o, seed): random_tree(i) for i, o in enumerate(SIX[:3]) for seed in range(3)}
    dealt = deal_objectives(tree_pairs(runs_with(tmp_path, trees)).table)
    assert (dealt.alike, dealt.dealings, dealt.exact) == (1, math.factorial(3) ** 2, True)


def test_dealings_find_none_where_the_seed_makes_the_tree(tmp_path):
    trees = {(o, seed): random_tree(seed) for o in SIX[:3] for seed in range(2)}
    dealt = deal_objectives(tree_pairs(runs_with(tmp_path, trees)).table)
    assert (dealt.alike, dealt.dealings, dealt.exact) == (6, 6, True)


def test_too_many_dealings_are_sampled(tmp_path):
    trees = {(o, seed): random_tree(i) for i, o in enumerate(SIX) for seed in range(3)}
    dealt = deal_objectives(tree_pairs(runs_with(tmp_path, trees)).table)
    assert (dealt.dealings, dealt.exact) == (1000, False)
    assert dealt.alike <= 3


def test_dealings_of_noise_are_as_alike_by_chance():
    """Of m dealings of random likenesses, k are as alike with probability 1/m each: their mean
    share is about 1/2.
    """
    rng = np.random.default_rng(0)
    runs = [(f"{o}{seed}", o, seed) for o in SIX[:4] for seed in range(2)]
    rows = [(*a, *b) for a, b in combinations(runs, 2)]
    table = pd.DataFrame(
        rows, columns=["run_a", "objective_a", "seed_a", "run_b", "objective_b", "seed_b"]
    )
    table["measure"] = "cophenetic_correlation"
    found = [deal_objectives(table.assign(value=rng.normal(size=len(rows)))) for _ in range(100)]
    shares = [dealt.alike / dealt.dealings for dealt in found]
    assert {dealt.dealings for dealt in found} == {24}
    assert np.mean(shares) == pytest.approx(25 / 48, abs=0.09)
    assert np.mean([share <= 0.05 for share in shares]) < 0.12
