import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

from kdx_analysis.errors import KdxError
from kdx_analysis.models import Tree
from tests.planted_trees import random_tree

NAMES = tuple("abcdefgh")
CATERPILLAR = Tree(tuple("abcd"), (1, 2, 3), ((0, 0), (0, 0, 1), (0, 0, 1, 2)))  # ((ab)c)(d)
BALANCED = Tree(tuple("abcd"), (1, 2), ((0, 0), (0, 0, 1, 1)))  # (ab)(cd)
STAR = Tree(tuple("abcd"), (1, 4), ((0, 0, 0, 0), (0, 1, 2, 3)))
COLLAPSED = Tree(tuple("abcd"), (1, 2), ((0, 0), (1, 1, 1, 1)))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def renumbered(tree: Tree, seed: int) -> Tree:
    """The same tree with the last level's experts in another order."""
    order = torch.randperm(tree.experts[-1], generator=torch.Generator().manual_seed(seed)).tolist()
    below = tuple(tree.parents[-2][order.index(i)] for i in range(len(order)))
    return replace(
        tree,
        parents=(*tree.parents[:-2], below, tuple(order[parent] for parent in tree.parents[-1])),
    )


def reordered(tree: Tree, order: list[int]) -> Tree:
    """The same tree with its classes listed in another order."""
    names, last = tuple(tree.classes[k] for k in order), tuple(tree.parents[-1][k] for k in order)
    return replace(tree, classes=names, parents=(*tree.parents[:-1], last))


def brute_robinson_foulds(a: Tree, b: Tree) -> float:
    """By trying every set of 2 to K−1 subtasks: is it all that an internal node of networkx's tree
    leads to?
    """

    def clades(tree: Tree) -> list[set[str]]:
        graph, leaf = tree.to_networkx(), len(tree.experts) + 1

        def below(node) -> set[str]:
            if node[0] == leaf:
                return {tree.classes[node[1]]}
            return set().union(*(below(child) for child in graph.successors(node)))

        nodes = [below(node) for node in graph if node[0] < leaf]
        K = len(tree.classes)
        return [
            set(s)
            for size in range(2, K)
            for s in combinations(sorted(tree.classes), size)
            if set(s) in nodes
        ]

    of_a, of_b = clades(a), clades(b)
    apart = [c for c in of_a if c not in of_b] + [c for c in of_b if c not in of_a]
    return len(apart) / (len(of_a) + len(of_b))


def test_robinson_foulds_by_hand() -> None:
    # clades: {ab, abc} against {ab, cd}: one shared of two each
    assert CATERPILLAR.robinson_foulds(BALANCED) == 0.5
    assert BALANCED.robinson_foulds(CATERPILLAR) == 0.5
    assert CATERPILLAR.robinson_foulds(CATERPILLAR) == 0
    assert CATERPILLAR.robinson_foulds(STAR) == 1


def test_without_any_clade_there_is_no_distance() -> None:
    assert math.isnan(STAR.robinson_foulds(COLLAPSED))
    assert math.isnan(STAR.null("robinson_foulds", COLLAPSED, 9, generator()).p)


@pytest.mark.parametrize("seed", range(6))
def test_robinson_foulds_by_brute_force(seed: int) -> None:
    a, b = random_tree(seed, NAMES, (1, 3, 4)), random_tree(seed + 50, NAMES, (1, 2, 3, 5))
    assert a.robinson_foulds(b) == brute_robinson_foulds(a, b)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_experts_and_classes_does_not_matter(seed: int) -> None:
    a, b = random_tree(seed, NAMES), random_tree(seed + 50, NAMES)
    same = reordered(renumbered(a, seed), torch.randperm(8, generator=generator()).tolist())
    assert same.robinson_foulds(a) == 0
    assert same.cophenetic_correlation(a) == pytest.approx(1)
    assert same.robinson_foulds(b) == a.robinson_foulds(b)
    assert same.cophenetic_correlation(b) == pytest.approx(a.cophenetic_correlation(b))


def test_cophenetic_correlation_against_scipy() -> None:
    a, b = random_tree(1, NAMES, (1, 3, 5)), random_tree(2, NAMES, (1, 3, 5))
    distances = squareform(b.cophenetic().numpy())
    linked = linkage(
        a.cophenetic().numpy()[np.triu_indices(8, 1)], "single"
    )  # ultrametric: linkage gives it back
    expected, back = cophenet(linked, distances)
    assert np.array_equal(back, squareform(a.cophenetic().numpy()))
    assert a.cophenetic_correlation(b) == pytest.approx(expected)
    assert a.cophenetic_correlation(b.cophenetic()) == pytest.approx(expected)
    assert a.cophenetic_correlation(b.cophenetic().numpy()) == pytest.approx(expected)


def test_cophenetic_correlation_by_hand() -> None:
    # ab ac ad bc bd cd: 1 2 3 2 3 3 against 1 2 2 2 2 1
    expected = np.corrcoef([1, 2, 3, 2, 3, 3], [1, 2, 2, 2, 2, 1])[0, 1]
    assert CATERPILLAR.cophenetic_correlation(BALANCED) == pytest.approx(expected)
    assert math.isnan(CATERPILLAR.cophenetic_correlation(STAR))
    assert math.isnan(Tree(("a",), (1,), ((0,),)).cophenetic_correlation(np.zeros((1, 1))))


def test_purity_by_hand() -> None:
    # last experts hold ab, c, d; of {a, c, d} and {b}: 1 + 1 + 1 of 4
    assert CATERPILLAR.purity({"x": ("a", "c", "d"), "y": ("b",)}) == 0.75
    assert BALANCED.purity({"x": ("a", "b"), "y": ("c", "d")}) == 1
    assert COLLAPSED.purity({"x": ("a", "b", "c"), "y": ("d",)}) == 0.75
    assert STAR.purity({"x": ("a", "b", "c"), "y": ("d",)}) == 1


def test_null_of_purity_against_every_permutation() -> None:
    superclasses = {"x": ("a", "b"), "y": ("c", "d")}
    # of the 3 ways to pair four subtasks one is pure, two have one of each in either expert
    found = BALANCED.null("purity", superclasses, 3000, generator())
    assert found.value == 1
    assert found.null_mean == pytest.approx(1 / 3 * 1 + 2 / 3 * 0.5, abs=0.03)
    assert found.p == pytest.approx(1 / 3, abs=0.03)
    assert (found.null_low, found.null_high) == (0.5, 1)


def test_null_of_robinson_foulds_against_every_permutation() -> None:
    found = BALANCED.null("robinson_foulds", BALANCED, 3000, generator())
    assert found.value == 0
    assert found.null_mean == pytest.approx(2 / 3, abs=0.03)
    assert found.p == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("measure", ["robinson_foulds", "cophenetic_correlation"])
def test_a_planted_likeness_is_found_and_none_where_there_is_none(measure: str) -> None:
    names = [str(i) for i in range(30)]
    planted, other = random_tree(0, names, (1, 3, 6)), random_tree(9, names, (1, 3, 6))
    assert planted.null(measure, planted, 99, generator()).p == 0.01
    assert planted.null(measure, other, 99, generator()).p > 0.05


def test_null_is_repeated_by_its_generator() -> None:
    a, b = random_tree(0), random_tree(1)
    assert a.null("robinson_foulds", b, 39, generator()) == a.null(
        "robinson_foulds", b, 39, generator()
    )


def test_what_can_t_be_compared() -> None:
    other = Tree(tuple("abcx"), (1,), ((0, 0, 0, 0),))
    for compare in (BALANCED.robinson_foulds, BALANCED.cophenetic_correlation):
        with pytest.raises(KdxError, match="2 stand in one tree only, as 'd', 'x'"):
            compare(other)
    for matrix in (np.zeros((3, 3)), np.triu(np.ones((4, 4))), np.full((4, 4), np.nan)):
        with pytest.raises(KdxError, match="symmetric 4×4 matrix"):
            BALANCED.cophenetic_correlation(matrix)
    with pytest.raises(KdxError, match="'d' stands in 0 superclasses"):
        BALANCED.purity({"x": ("a", "b", "c")})
    with pytest.raises(KdxError, match="'a' stands in 2 superclasses"):
        BALANCED.purity({"x": ("a", "b", "c", "d"), "y": ("a",)})
    with pytest.raises(KdxError, match="did you mean 'purity'"):
        BALANCED.null("purty", {}, 9, generator())
    with pytest.raises(KdxError, match="0 permutations"):
        BALANCED.null("robinson_foulds", BALANCED, 0, generator())
