"""Classes in order, and their dendrogram."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from kdx_analysis.drawing.classes import clustered, dendrogram


def test_clusters_stand_together_whatever_the_classes_numbers() -> None:
    group = np.array([0, 1, 0, 2, 1, 2, 0])
    distances = np.where(group[:, None] == group, 0.1, 1.0)
    np.fill_diagonal(distances, 0)
    distances[0, 1] = distances[1, 0] = np.nan
    found = clustered(distances)
    runs = [g for g, _ in itertools.groupby(group[list(found.order)])]
    assert sorted(runs) == [0, 1, 2]
    at = group[list(found.order)]
    assert [join > 0.9 for join in found.joins] == (at[:-1] != at[1:]).tolist()


def test_a_dendrogram_joins_each_branch_at_the_height_of_its_linkage() -> None:
    place = np.array([0.0, 1.0, 3.5, 10.0])  # {0, 1} at 1, then 2 at 3, then 3 at 8.5
    found = clustered(np.abs(place[:, None] - place))
    ax = Canvas().subplots()
    dendrogram(ax, found.joins)
    drawn = sorted(
        ([tuple(p) for p in line] for line in ax.collections[0].get_segments()),
        key=lambda line: line[1],
    )
    order = found.order if found.order[0] == 0 else tuple(reversed(found.order))
    assert order == (0, 1, 2, 3)
    assert sorted(found.joins) == pytest.approx([1, 3, 8.5])
    assert [line[1][0] for line in drawn] == pytest.approx([1, 3, 8.5])
    ends = [
        (line[0][0], line[3][0]) for line in drawn
    ]  # what each joins: leaves at 0, and the branch before
    assert [sorted(end) for end in ends] == [
        pytest.approx(pair) for pair in ([0, 0], [0, 1], [0, 3])
    ]
