from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from kdx_analysis.plots.classes import clustered
from kdx_analysis.plots.style import LOOKS, counted, look, plain, style


def test_every_objective_looks_different_in_colour_and_without() -> None:
    names = ["hard", "label_smoothing", "hard_T", "kd_flat", "kd_shuffled", "kd"]
    assert sorted(LOOKS) == sorted(names)
    assert len({look(name).marker for name in names}) == len(names)
    for a, b in itertools.combinations(names, 2):
        assert np.linalg.norm(np.subtract(to_rgb(look(a).colour), to_rgb(look(b).colour))) > 0.3


def test_an_unknown_label_always_looks_the_same_and_like_no_known_one() -> None:
    assert look("kd T=1") == look("kd T=1")
    assert look("kd T=1").colour not in {known.colour for known in LOOKS.values()}
    assert look("kd T=1") != look("kd lambda=0.5")


def test_style_is_undone_when_the_body_raises() -> None:
    before = dict(mpl.rcParams)
    with pytest.raises(ZeroDivisionError), style():
        1 / (mpl.rcParams["svg.fonttype"] != "none")
    assert dict(mpl.rcParams) == before


def test_plain_text_starts_no_formula() -> None:
    assert plain("$a$_%") == r"\$a\$_%"


def test_counts_are_ranges_where_they_differ() -> None:
    assert [counted([1]), counted([3, 3]), counted([2, 3, 1])] == ["1 seed", "3 seeds", "1–3 seeds"]


def test_clusters_stand_together_whatever_the_classes_numbers() -> None:
    group = np.array([0, 1, 0, 2, 1, 2, 0])
    distances = np.where(group[:, None] == group, 0.1, 1.0)
    np.fill_diagonal(distances, 0)
    distances[0, 1] = distances[1, 0] = np.nan
    runs = [g for g, _ in itertools.groupby(group[clustered(distances)])]
    assert sorted(runs) == [0, 1, 2]
