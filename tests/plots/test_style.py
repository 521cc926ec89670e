from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.layout_engine import ConstrainedLayoutEngine

from kdx_analysis.plots.classes import clustered
from kdx_analysis.plots.style import LOOKS, counted, drawing, look, plain, save, style, styled


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


def test_a_figure_is_laid_out_once_for_all_its_files_and_anew_when_it_changed(tmp_path, monkeypatch) -> None:
    layouts = []
    own = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(
        ConstrainedLayoutEngine, "execute", lambda self, figure: (layouts.append(figure), own(self, figure))[1]
    )

    @styled
    def draw():
        figure = drawing(3, 2)
        ax = figure.subplots()
        figure.colorbar(ax.imshow([[0, 1]]))
        return figure, ax

    figure, ax = draw()
    before = ax.get_position(original=True).bounds
    save(figure, tmp_path / "same")
    assert len(layouts) == 1
    assert ax.get_position(original=True).bounds == before
    ax.set_ylabel("of two\nlines")
    save(figure, tmp_path / "changed")
    assert len(layouts) == 2
    assert ax.get_position(original=True).x0 > before[0]
    assert isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)


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
