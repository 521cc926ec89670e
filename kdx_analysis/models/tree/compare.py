"""Trees against trees, distances and superclasses.

Pure functions; the methods of ``Tree`` say what they compute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.errors import KdxError
from kdx_analysis.registry import unknown

if TYPE_CHECKING:
    from kdx_analysis.models.tree import Tree


@dataclass(frozen=True)
class BesideNull:
    """A comparison and its null, ``permutations`` permuted trees.

    Their mean, the range that holds one more of them with 95 % (NaN below 39 ``permutations``), and
    the one-sided p of trees that are more alike than permuted ones.
    """

    comparison: str
    value: float
    null_mean: float
    null_low: float
    null_high: float
    p: float
    permutations: int


def robinson_foulds(a: Tree, b: Tree) -> float:
    if set(a.classes) != set(b.classes):
        raise KdxError(_other_classes(a.classes, b.classes))
    return clade_distance(a.clades, b.clades)


def clade_distance(a: frozenset[frozenset[str]], b: frozenset[frozenset[str]]) -> float:
    # 0/0 where neither tree has a clade: there is nothing to be alike or not.
    return len(a ^ b) / (len(a) + len(b)) if a or b else math.nan


def cophenetic_correlation(tree: Tree, other: Tree | Tensor | np.ndarray) -> float:
    pairs = np.triu_indices(len(tree.classes), k=1)
    x, y = tree.cophenetic().numpy()[pairs], _distances(tree, other)[pairs]
    if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:  # a constant correlates with nothing
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def purity(tree: Tree, superclasses: Mapping[str, Sequence[str]]) -> float:
    filed = Counter(name for members in superclasses.values() for name in members)
    wrong = [name for name in tree.classes if filed[name] != 1]
    if wrong:
        raise KdxError(
            f"class {wrong[0]!r} stands in {filed[wrong[0]]} superclasses; it should stand in one"
        )
    above = {name: superclass for superclass, members in superclasses.items() for name in members}
    cells = Counter(
        (expert, above[name]) for name, expert in zip(tree.classes, tree.parents[-1], strict=True)
    )
    largest: Counter[int] = Counter()
    for (expert, _), size in cells.items():
        largest[expert] = max(largest[expert], size)
    return largest.total() / len(tree.classes)


# Every comparison, and on which side trees are more alike.
_COMPARISONS: dict[str, tuple[Callable[[Tree, Any], float], null.Side]] = {
    "robinson_foulds": (robinson_foulds, "less"),
    "cophenetic_correlation": (cophenetic_correlation, "greater"),
    "purity": (purity, "greater"),
}


def beside_null(
    tree: Tree, comparison: str, other: Any, permutations: int, generator: torch.Generator
) -> BesideNull:
    if comparison not in _COMPARISONS:
        raise unknown("comparison of trees", comparison, _COMPARISONS)
    if permutations < 1:
        raise KdxError(f"{permutations} permutations make no null; take 99 or more")
    compare, side = _COMPARISONS[comparison]
    value = compare(tree, other)
    if math.isnan(value):
        return BesideNull(comparison, value, math.nan, math.nan, math.nan, math.nan, permutations)
    draws = np.array([compare(permuted(tree, generator), other) for _ in range(permutations)])
    beside = null.beside_one(draws)
    p = float(null.p_value(value, draws, side))
    return BesideNull(
        comparison,
        value,
        beside["null_mean"],
        beside["null_low"],
        beside["null_high"],
        p,
        permutations,
    )


def permuted(tree: Tree, generator: torch.Generator) -> Tree:
    """The same tree with its subtasks permuted over its leaves."""
    places = torch.randperm(len(tree.classes), generator=generator).tolist()
    return replace(
        tree, parents=(*tree.parents[:-1], tuple(tree.parents[-1][place] for place in places))
    )


def _distances(tree: Tree, other: Tree | Tensor | np.ndarray) -> np.ndarray:
    """K×K, in the order of the tree's classes."""
    K = len(tree.classes)
    if isinstance(other, Tensor | np.ndarray):
        matrix = np.asarray(other, dtype=float)
        if (
            matrix.shape != (K, K)
            or not np.isfinite(matrix).all()
            or not np.allclose(matrix, matrix.T)
        ):
            raise KdxError(
                f"distances between {K} subtasks are a symmetric {K}×{K} matrix of finite numbers; "
                f"this one has the shape {'×'.join(map(str, matrix.shape))}"
            )
        return matrix
    if set(tree.classes) != set(other.classes):
        raise KdxError(_other_classes(tree.classes, other.classes))
    order = [other.classes.index(name) for name in tree.classes]
    return other.cophenetic().numpy()[np.ix_(order, order)].astype(float)


def _other_classes(a: Sequence[str], b: Sequence[str]) -> str:
    only = sorted(set(a) ^ set(b))
    return (
        f"trees over different classes can't be compared: {len(only)} stand in one tree only, as "
        f"{', '.join(map(repr, only[:3]))}"
    )
