import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from kdx_analysis.probes import agreement


def table(seed: int, K: int = 5) -> torch.Tensor:
    return torch.rand(K, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("method", "reference"), [("spearman", spearmanr), ("pearson", pearsonr)])
def test_mantel_of_five_classes_by_enumeration(method, reference) -> None:
    x, y = table(1), table(2)
    symmetric = [((t + t.T) / 2).numpy() for t in (x, y)]
    a, b = np.triu_indices(5, k=1)
    null = [
        reference(symmetric[0][np.ix_(order, order)][a, b], symmetric[1][a, b])[0]
        for order in map(list, itertools.permutations(range(5)))
    ]
    found = agreement.mantel(x, y, 999, generator(), method)
    assert found.value == pytest.approx(null[0])
    assert found.p == pytest.approx(np.mean(np.array(null) >= null[0] - 1e-12))
    assert found.null_mean == pytest.approx(np.mean(null[1:]))  # of the 119 others
    others = np.sort(null[1:])
    assert (found.null_low, found.null_high) == (
        pytest.approx(others[2]),
        pytest.approx(others[116]),
    )
    assert (found.draws, found.pairs) == (119, 10)


def test_random_permutations_come_near_the_enumeration() -> None:
    x, y = table(3, 6), table(4, 6)
    exact, drawn = (
        agreement.mantel(x, y, 719, generator()),
        agreement.mantel(x, y, 718, generator()),
    )
    assert (exact.draws, drawn.draws) == (719, 718)
    assert drawn.p == pytest.approx(exact.p, abs=0.06)


def test_a_table_agrees_with_itself_and_nothing_with_a_flat_one() -> None:
    x = table(5, 8)
    same = agreement.mantel(x, x**3, 199, generator())
    assert (same.value, same.p) == (pytest.approx(1, abs=0.3), pytest.approx(1 / 200, abs=0.02))
    assert math.isnan(agreement.mantel(x, torch.ones(8, 8).double(), 199, generator()).value)
    four = agreement.mantel(table(6, 4), table(7, 4), 199, generator())
    assert math.isnan(four.p)
    assert not math.isnan(four.value)


def test_permuting_classes_of_both_changes_nothing() -> None:
    x, y, order = table(8, 7), table(9, 7), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    moved = agreement.mantel(x[order][:, order], y[order][:, order], 199, generator())
    assert moved.value == pytest.approx(agreement.mantel(x, y, 199, generator()).value)


def test_teacher_and_confusion_distances_by_hand() -> None:
    labels = torch.tensor([0, 0, 1])
    confused = agreement.confusion_distance(torch.tensor([0, 1, 1]), labels, 2)
    assert confused.tolist() == [[0, 0.75], [0.75, 0]]
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [100.0, 0.0]])
    soft = agreement.teacher_distance(logits, labels, 1.0)
    assert soft[0, 1].item() == pytest.approx(1 - (0.5 + 1) / 2)
    assert agreement.confusion_distance(torch.tensor([0]), torch.tensor([0]), 2)[0, 1].isnan()


def test_a_class_tree_as_distances() -> None:
    distance = agreement.class_tree_distance(
        ("cat", "car", "dog"), {"pet": ("cat", "dog"), "thing": ("car",)}
    )
    assert distance.tolist() == [[0, 2, 1], [2, 0, 2], [1, 2, 0]]
